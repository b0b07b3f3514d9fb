"""Definitions: what is refused and how it is said, what is kept, and the studies that are shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import tomli_w
from pydantic import ValidationError

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.search import space
from cvaeopt.search import tables as module
from cvaeopt.search.claims import Claim
from cvaeopt.search.definition import SHIPPED, Definition, definition_path, is_shipped, load_definition

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = sorted(path.stem for path in STUDIES.glob("*.toml"))
LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
KIND = {"type": "categorical", "choices": ["cyclical", "monotonic", "none"]}


def tables(**changes):
    base = {"budget": {"trials": 5, "epochs": 30}, "search": {"lr": dict(LR)}}
    return {name: table for name, table in (base | changes).items() if table is not None}


def parse(**changes):
    return Definition.parse(tables(**changes), "test", "studies/test.toml")


def search(**dimensions):
    return {"search": {"lr": dict(LR)} | dimensions}


def choices(*values, **more):
    return {"type": "categorical", "choices": list(values), **more}


def floats(low, high, **more):
    return {"type": "float", "low": low, "high": high, **more}


def ints(low, high, **more):
    return {"type": "int", "low": low, "high": high, **more}


CIRCLE = {
    "optim": choices("Adam", "SGD", when={"output": ["linear"]}),
    "output": choices("linear", "clamp", when={"shuffle": [True]}),
    "shuffle": choices(True, False, when={"optim": ["SGD"]}),
}
CYCLE = ints(2, 8, when={"kl_anneal_type": ["cyclical"]})

REFUSED = {
    "an unknown table": ({"serach": {}}, "has no table 'serach'. Did you mean 'search'?"),
    "no budget": ({"budget": None}, "the table [budget] is missing or empty"),
    "no search": ({"search": {}}, "the table [search] is missing or empty"),
    "no epochs": ({"budget": {"trials": 5}}, "[budget]: epochs is missing"),
    "no limit": ({"budget": {"epochs": 5}}, "one of trials, total_epochs and wall_clock_h is needed"),
    "a misspelt budget": ({"budget": {"trial": 5, "epochs": 5}}, "no key 'trial'. Did you mean 'trials'?"),
    "a text for a number": ({"budget": {"trials": "5", "epochs": 5}}, "[budget]: trials = '5'"),
    "a truth for a number": ({"budget": {"trials": True, "epochs": 5}}, "[budget]: trials = True"),
    "less than one trial": ({"budget": {"total_epochs": 5, "epochs": 6}}, "less than one trial's epochs"),
    "a table that is none": ({"budget": 5}, "Expected: a table, [budget]"),
    "a metric that is none": ({"study": {"metric": "psnr"}}, "[study]: metric = 'psnr'"),
    "a window beyond the end": ({"study": {"window": 31}}, "Expected: at most [budget] epochs = 30"),
    "a misspelt setting": (
        search(kl_aneal_cycle=ints(1, 2)),
        "[search] has no setting 'kl_aneal_cycle'. Did you mean 'kl_anneal_cycle'?",
    ),
    "a misspelt fixed setting": ({"fixed": {"ftr": 1.0}}, "[fixed] has no setting 'ftr'. Did you mean 'tfr'?"),
    "searched and fixed": ({"fixed": {"lr": 1e-3}}, "'lr' is searched and fixed"),
    "a fixed num_epoch": ({"fixed": {"num_epoch": 5}}, "Write epochs under [budget]"),
    "a fixed value of another type": ({"fixed": {"tfr": "no"}}, "[fixed]: tfr = 'no'"),
    "a fixed value out of range": ({"fixed": {"tfr": 2.0}}, "[fixed]: tfr = 2.0. Expected: "),
    "a searched num_epoch": (search(num_epoch=ints(1, 2)), "every trial runs [budget] epochs"),
    "a searched seed": (search(seed=ints(1, 2)), "'seed' cannot be searched"),
    "searched milestones": (search(milestones=choices(2, 5)), "a list of epochs is no range"),
    "a searched noise seed": (search(val_noise_seed=ints(0, 9)), "the luckiest noise"),
    "no type": (search(tfr={"low": 0, "high": 1}), "tfr has no type. Expected: a table with type = 'float'"),
    "a dimension that is none": (search(tfr=0.5), "tfr has no type"),
    "an int for a float": (search(tfr=ints(0, 1)), "tfr has type = 'int'. Expected: a table with type = 'float'"),
    "a float for an int": (search(batch_size=floats(1.0, 2.0)), "Expected: a table with type = 'int'"),
    "a float for a choice": (search(optim=floats(1.0, 2.0)), "Expected: a table with type = 'categorical'"),
    "a misspelt key": (search(tfr=floats(0, 1, hihg=2)), "[search] tfr has no key 'hihg'. Did you mean 'high'?"),
    "half a range": (search(tfr={"type": "float", "low": 0}), "[search] tfr: high is missing"),
    "low above high": (search(tfr=floats(0.5, 0.25)), "low = 0.5 is above high = 0.25"),
    "the logarithm of 0": (search(lr=floats(0, 0.002, log=True)), "log needs low > 0, found 0"),
    "log and step": (search(lr=floats(0.1, 0.3, log=True, step=0.1)), "log and step exclude each other"),
    "a step that does not fit": (search(tfr=floats(0, 1, step=0.3)), "no multiple of step = 0.3"),
    "an int step that does not fit": (search(batch_size=ints(1, 4, step=2)), "no multiple of step = 2"),
    "no choice": (search(optim=choices()), "[search] optim: choices"),
    "a doubled choice": (search(optim=choices("Adam", "Adam")), "'Adam' stands there twice"),
    "a choice that is none": (search(optim=choices("Adam", "adamm")), "[search]: optim = 'adamm'"),
    "a choice in two spellings": (search(optim=choices("Adam", "adam")), "'Adam' stands there twice"),
    "a range that Config refuses": (search(tfr=floats(0, 1.5)), "[search]: tfr = 1.5. Expected: "),
    "widths that Config refuses": (search(F_dim=ints(8, 20, step=4)), "[search]: F_dim = 20. Expected: "),
    "a corner that cannot run": (
        search(kl_anneal_ratio=floats(0.5, 2.0), kl_formula=choices("seed000", "fu")),
        "(kl_anneal_ratio = 2.0, kl_formula = 'fu'): kl_anneal_ratio is a fraction",
    ),
    "lr below its end": (
        {**search(), "fixed": {"lr_scheduler": "cosine", "lr_min": 1e-3}},
        "(lr = 0.0001, lr_min = 0.001): lr_min is above lr",
    ),
    "a condition on nothing": (search(tfr=floats(0, 1, when={"optm": ["SGD"]})), "when has no setting 'optm'"),
    "a condition without values": (search(tfr=floats(0, 1, when={"optim": []})), "[search] tfr: when.optim"),
    "a condition never met": (
        search(momentum=floats(0, 0.9, when={"optim": ["SGD"]})),
        "'momentum' is never searched: its when needs optim = 'SGD', and optim is 'Adam'",
    ),
    "a condition on a value not offered": (
        search(optim=choices("Adam", "SGD"), momentum=floats(0, 0.9, when={"optim": ["sdg"]})),
        "when optim = 'sdg', which is never suggested. Expected: one of 'Adam', 'SGD'",
    ),
    "a condition on a continuous range": (
        search(tfr=floats(0, 1), tfr_sde=ints(0, 5, when={"tfr": [0.5]})),
        "when reads 'tfr', a continuous range",
    ),
    "a circle": (search(**CIRCLE), "in a circle: optim -> output -> shuffle -> optim"),
    "no effect: momentum": (search(momentum=floats(0, 0.9)), "'momentum' has no effect anywhere in this study"),
    "no effect: cycle": (
        {**search(kl_anneal_cycle=ints(1, 5)), "fixed": {"kl_anneal_type": "none"}},
        "'kl_anneal_cycle' has no effect anywhere",
    ),
    "no effect: decay after the end": (search(tfr_sde=ints(30, 40)), "'tfr_sde' has no effect anywhere"),
    "no effect: decay of nothing": (
        {**search(tfr_d_step=floats(0.1, 0.5)), "fixed": {"tfr": 0.0}},
        "it needs tfr above 0",
    ),
    "an unknown sampler": ({"sampler": {"kind": "tpee"}}, "Expected one of: tpe, random, grid, qmc, gp. Did you mean"),
    "an option of another sampler": (
        {"sampler": {"kind": "random", "n_startup_trials": 3}},
        "[sampler] has no key 'n_startup_trials'",
    ),
    "an unknown pruner": ({"pruner": {"kind": "mean"}}, "Did you mean 'median'?"),
    "a pruner with silent options": ({"pruner": {"kind": "median"}}, "[pruner]: n_startup_trials is missing"),
    "a pruner that never prunes": (
        {"pruner": {"kind": "halving", "warmup_epochs": 30, "reduction_factor": 2}},
        "no trial is ever pruned",
    ),
    "a forecast from too few trials": (
        {"pruner": {"kind": "forecast", "warmup_epochs": 5, "interval_epochs": 1, "n_startup_trials": 1}},
        "[pruner]: n_startup_trials = 1. Expected: input should be greater than or equal to 2",
    ),
    "a forecast that is never made": (
        {"pruner": {"kind": "forecast", "warmup_epochs": 30, "interval_epochs": 1}},
        "[pruner] warmup_epochs = 30, so that no trial is ever pruned",
    ),
    "a patience of nothing": ({"budget": {"trials": 5, "epochs": 30, "patience_trials": 0}}, "patience_trials = 0"),
    "a warm start from itself": ({"warm_start": {"study": "test"}}, "[warm_start] study = 'test': this is the study"),
    "a warm start from nowhere": ({"warm_start": {"top": 3}}, "[warm_start]: study is missing"),
    "a warm start beyond the budget": (
        {"warm_start": {"study": "old", "top": 6}},
        "6 points are enqueued, [budget] trials = 5",
    ),
    "a target alone": ({"budget": {"epochs": 5, "target_db": 30.0}}, "no limit: one of trials, total_epochs"),
    "a grid of a continuum": ({"sampler": {"kind": "grid"}}, "lr is continuous"),
    "a grid larger than its budget": (
        {"sampler": {"kind": "grid"}, "search": {"tfr": choices(0, 1, 0.5)}},
        "the grid has 3 points. Expected: one trial a point. Write trials = 3",
    ),
    "a grid with a queue": (
        {"sampler": {"kind": "grid"}, "search": {"tfr": choices(0, 1)}, "enqueue": [{"tfr": 0.0}]},
        "which runs every point anyway",
    ),
    "a huge grid": (
        {"sampler": {"kind": "grid"}, "search": {"tfr_sde": ints(0, 200), "kl_anneal_cycle": ints(1, 200)}},
        "more than 10000 points",
    ),
    "a point of something else": ({"enqueue": [{"tfr": 0.5}]}, "[[enqueue]] 1 has no searched setting 'tfr'"),
    "a point out of range": ({"enqueue": [{"lr": 0.5}]}, "[[enqueue]] 1: lr = 0.5. Expected: 0.0001 to 0.01"),
    "a point between the steps": (
        {**search(batch_size=ints(2, 8, step=2)), "enqueue": [{"lr": 1e-3}, {"batch_size": 3}]},
        "[[enqueue]] 2: batch_size = 3. Expected: 2 to 8 in steps of 2",
    ),
    "a point that its condition hides": (
        {**search(kl_anneal_type=KIND, kl_anneal_cycle=CYCLE), "enqueue": [
            {"kl_anneal_type": "none", "kl_anneal_cycle": 3}]},
        "kl_anneal_cycle = 3 is not searched at this point. Expected beside it: kl_anneal_type in ['cyclical']",
    ),
    "a point without its condition": (
        {**search(kl_anneal_type=KIND, kl_anneal_cycle=CYCLE), "enqueue": [{"kl_anneal_cycle": 3}]},
        "is not searched at this point",
    ),
    "a doubled point": ({"enqueue": [{"lr": 1e-3}, {"lr": 0.001}]}, "[[enqueue]] 2 repeats 1"),
    "an empty point": ({"enqueue": [{}]}, "[[enqueue]] 1 is empty"),
    "single brackets": ({"enqueue": {"lr": 1e-3}}, "[[enqueue]], in double brackets"),
    "more points than trials": (
        {"budget": {"trials": 1, "epochs": 2}, "enqueue": [{"lr": 1e-3}, {"lr": 2e-3}]},
        "2 points are enqueued, [budget] trials = 1",
    ),
    "a misspelt service": ({"service": {"storge": "x"}}, "[service] has no key 'storge'. Did you mean 'storage'?"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_definition_is_refused_with_the_reason(what):
    changes, says = REFUSED[what]
    with pytest.raises(SettingsError) as caught:
        parse(**changes)
    message = str(caught.value)
    assert says in message
    assert message.startswith("studies/test.toml")
    assert caught.value.expected or caught.value.todo


def test_all_mistakes_of_a_file_are_named_at_once():
    with pytest.raises(SettingsError) as caught:
        parse(
            study={"windw": 1, "seed": -1},
            budget={"trials": "5", "epoch": 3},
            fixed={"tfr_sd": 0.1, "batch_size": 0},
            search={"lrr": dict(LR), "tfr": {"type": "flaot"}},
            sampler={"kind": "tpee"},
            extra={},
        )
    first, *lines = str(caught.value).splitlines()
    assert first == f"studies/test.toml has {len(lines)} mistakes. Correct each of them:"
    names = ("windw", "seed", "trials", "epoch'", "tfr_sd'", "batch_size", "lrr", "tfr has", "tpee", "extra")
    for name in names:
        assert sum(name in line for line in lines) == 1, name
    assert len(lines) == len(names)


def test_a_definition_says_what_it_is_with_its_defaults():
    definition = parse(fixed={"tfr": 0, "milestones": [3, 9]})
    assert (definition.metric, definition.window, definition.seed) == ("val_psnr", 1, 0)
    assert definition.sampler.kind == "tpe"
    assert definition.pruner.kind == "none"
    assert definition.fixed == {"tfr": 0.0, "milestones": [3, 9]}
    assert definition.epochs == 30
    assert definition.frame_size == (32, 64)
    assert parse(fixed={"frame_H": 16}).frame_size == (16, 64)
    with pytest.raises(ValidationError, match="frozen"):
        definition.seed = 3


def test_whole_numbers_become_real_ones_where_settings_are_real():
    definition = parse(search={"tfr": choices(1, 0.8, 0)}, enqueue=[{"tfr": 1}])
    assert [type(choice) for choice in definition.search["tfr"].choices] == [float] * 3
    assert definition.points() == [{"tfr": 1.0}]


def test_a_point_may_leave_settings_to_the_sampler():
    definition = parse(**search(tfr=floats(0, 1)), enqueue=[{"tfr": 0}])
    assert definition.points() == [{"tfr": 0.0}]


def test_the_digest_follows_what_is_searched_and_nothing_else():
    digest = parse().digest()
    assert parse(study={"description": "words"}).digest() == digest
    assert parse(study={"seeds": "each"}).digest() == digest  # as studies from before this key are stored
    assert parse(service={"storage": "sqlite:///x.db"}).digest() == digest
    assert parse(sampler={"kind": "tpe", "n_startup_trials": 10}).digest() == digest
    assert parse(**search(lr=floats(1e-4, 1e-2, log=True, when={}))).digest() == digest
    others = [
        parse(study={"seed": 1}),
        parse(study={"window": 2}),
        parse(study={"seeds": "common"}),
        parse(budget={"trials": 6, "epochs": 30}),
        parse(fixed={"tfr": 0.5}),
        parse(enqueue=[{"lr": 1e-3}]),
        parse(pruner={"kind": "halving", "warmup_epochs": 5, "reduction_factor": 2}),
        parse(search={"lr": LR, "tfr": floats(0, 1)}),
        parse(search={"tfr": floats(0, 1), "lr": LR}),
    ]
    assert len({digest, *(other.digest() for other in others)}) == len(others) + 1


def test_a_name_is_read_from_the_studies_folder_and_a_path_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    Path("elsewhere").mkdir()
    Path("studies/mine.toml").write_text(tomli_w.dumps(tables()))
    Path("elsewhere/other.v2.toml").write_text(tomli_w.dumps(tables()))
    assert load_definition("mine").name == "mine"
    assert load_definition("studies/mine.toml").digest() == load_definition("mine").digest()
    assert load_definition(str(tmp_path / "elsewhere" / "other.v2.toml")).name == "other.v2"


def test_a_study_that_is_not_there_is_answered_with_those_that_are(tmp_path, monkeypatch):
    (tmp_path / "main.toml").write_text("")
    (tmp_path / "wide.toml").write_text("")
    with pytest.raises(StudyError, match=r"mian\.toml\. Did you mean 'main'\?"):
        load_definition("mian", tmp_path)
    with pytest.raises(StudyError, match="There are: main, wide"):
        load_definition("zzz", tmp_path)
    with pytest.raises(StudyError, match=r"There are: none\. With cvaeopt come: .*main.*smoke"):
        load_definition("zzz", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StudyError, match=rf"{tmp_path}/studies/zzz\.toml\. You are in {tmp_path}, which has no folder st"
    ):
        load_definition("zzz")


def test_a_study_of_the_package_is_used_only_where_the_folder_has_none_of_its_name(tmp_path):
    path = definition_path("main", tmp_path)
    assert is_shipped(path) and load_definition("main", tmp_path).digest() == load_definition("main", STUDIES).digest()
    with pytest.raises(StudyError, match="Did you mean 'main'"):
        load_definition(str(tmp_path / "mian.toml"))
    (tmp_path / "main.toml").write_text(tomli_w.dumps(tables()))
    assert definition_path("main", tmp_path) == tmp_path / "main.toml"
    assert not is_shipped(tmp_path / "main.toml")
    assert load_definition("main", tmp_path).digest() == Definition.parse(tables(), "main", "x").digest()


def test_every_study_of_the_repository_comes_with_the_package():
    names = {path.name for path in STUDIES.glob("*.toml")}
    assert names and {path.name for path in SHIPPED.glob("*.toml")} == names


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "", ".hidden", "a b", "x" * 65, "'; drop table", "a/../b", "ä", "-x", "../.toml"]
)
def test_a_name_that_could_leave_its_folder_is_refused(name, tmp_path):
    with pytest.raises(StudyError, match="is no study name"):
        load_definition(name, tmp_path)


def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[study]\nseed = 1\nmetric = val_psnr\n")
    with pytest.raises(SettingsError, match=r"bad\.toml is not TOML: .*line 3"):
        load_definition(str(path))
    path.write_bytes(b"[study]\ndescription = '\xff'\n")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_definition(str(path))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(StudyError, match="directory"):
        load_definition(str(tmp_path / "folder.toml"))


# ---- the studies that are shipped


def test_the_promised_studies_are_there():
    ablations = {"seed000-tfr", "seed000-kl", "seed001-tfr", "seed001-kl", "seed003-kl", "seed004-kl"}
    printed = {"seed000-final", "seed001-search", "seed001-final", "seed003-kl-printed", "seed004-kl-printed"}
    assert set(NAMES) == {"main", "wide", "reduced", "smoke", "demo"} | ablations | printed


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_survives_the_way_through_the_storage(name):
    definition = load_definition(name, STUDIES)
    assert definition.description
    stored = json.loads(json.dumps(definition.plain()))
    again = Definition.parse(stored, name, "stored")
    assert again.digest() == definition.digest()
    assert list(again.search) == list(definition.search)
    for index, point in enumerate(definition.points()):
        space.params_to_config(definition, point, index)


def runs(name):
    definition = load_definition(name, STUDIES)
    return [space.params_to_config(definition, point, number) for number, point in enumerate(definition.points())]


def fields(configs, *names):
    return [tuple(getattr(config, name) for name in names) for config in configs]


def template_lr(configs):
    return set(fields(configs, "optim", "lr", "lr_scheduler", "milestones", "gamma", "kl_norm", "output")) == {
        ("Adam", 1e-3, "MultiStepLR", (2, 5), 0.1, "batch", "linear")
    }


def test_the_ablations_of_report_000_have_its_grid_and_settings():
    forcing, annealing = runs("seed000-tfr"), runs("seed000-kl")
    assert fields(forcing, "tfr", "seed") == [(1.0, 100), (0.8, 100), (0.5, 100)]
    assert set(fields(forcing, "kl_anneal_type")) == {("cyclical",)}
    assert fields(annealing, "kl_anneal_type", "tfr", "seed") == [
        ("monotonic", 0.8, 42),
        ("cyclical", 0.8, 42),
        ("none", 0.8, 42),
    ]
    both = forcing + annealing
    assert template_lr(both)
    assert set(
        fields(both, "num_epoch", "tfr_sde", "tfr_d_step", "kl_anneal_cycle", "kl_anneal_ratio", "kl_formula")
    ) == {(100, 10, 0.1, 10, 1.0, "seed000")}


def test_the_ablations_of_report_001_have_its_grid_and_settings():
    forcing, annealing = runs("seed001-tfr"), runs("seed001-kl")
    assert fields(forcing, "tfr", "kl_anneal_type") == [(1.0, "cyclical"), (0.8, "cyclical"), (0.0, "cyclical")]
    assert fields(annealing, "kl_anneal_type", "tfr") == [("monotonic", 1.0), ("cyclical", 1.0), ("none", 1.0)]
    both = forcing + annealing
    assert template_lr(both)
    assert set(
        fields(both, "num_epoch", "tfr_sde", "tfr_d_step", "kl_anneal_cycle", "kl_anneal_ratio", "kl_formula")
    ) == {(100, 10, 0.1, 10, 1.0, "seed001")}


def test_the_ablation_of_report_003_has_its_four_runs():
    found = runs("seed003-kl")
    assert fields(found, "kl_anneal_type", "kl_anneal_cycle", "kl_anneal_ratio", "tfr") == [
        ("monotonic", 10, 1.0, 1.0),
        ("cyclical", 10, 1.0, 1.0),
        ("none", 10, 1.0, 1.0),
        ("cyclical", 5, 0.5, 0.0),
    ]
    assert set(fields(found, "num_epoch", "kl_formula", "tfr_formula")) == {(50, "seed003", "seed003")}
    assert template_lr(found)


def test_the_ablation_of_report_004_has_its_grid_and_settings():
    found = runs("seed004-kl")
    assert fields(found, "kl_anneal_type") == [("cyclical",), ("monotonic",), ("none",)]
    assert set(fields(found, "num_epoch", "batch_size", "partial", "tfr_sde", "tfr_d_step", "kl_formula")) == {
        (30, 4, 0.4, 8, 0.1, "seed004")
    }
    assert template_lr(found)


@pytest.mark.parametrize("name", ["seed003-kl", "seed004-kl"])
def test_a_printed_study_differs_from_its_repaired_one_in_what_the_report_prints_alone(name):
    printed = {"posterior", "detach", "forced_loss", "clip_order", "val_statistics"}
    for one, other in zip(runs(name), runs(f"{name}-printed"), strict=True):
        before, after = one.plain(), other.plain()
        assert {key for key in before if before[key] != after[key]} <= printed
        assert before != after


def test_the_search_of_report_001_has_its_space_and_no_learning_rate_of_0():
    search = load_definition("seed001-search", STUDIES).search
    assert {name: (one.low, one.high) for name, one in search.items()} == {
        "lr": (1e-6, 0.002),
        "tfr": (0.3, 1.0),
        "tfr_sde": (5, 20),
        "tfr_d_step": (0.0, 0.5),
        "kl_anneal_cycle": (5, 20),
        "kl_anneal_ratio": (0.1, 1.0),
    }
    assert not any(one.log for one in search.values())


def test_main_searches_the_six_settings_of_report_001():
    definition = load_definition("main", STUDIES)
    assert list(definition.search) == [
        "lr", "tfr", "tfr_sde", "tfr_d_step", "kl_anneal_cycle", "kl_anneal_ratio",
    ]  # fmt: skip
    assert definition.search["lr"].log
    assert definition.search["tfr"].contains(0.0)
    assert definition.epochs == 100
    assert definition.fixed["kl_formula"] == "seed001"
    assert any(point["tfr"] == 0.0 for point in definition.points())


def test_wide_searches_what_the_reports_disagree_about():
    wanted = {"tfr", "kl_anneal_type", "kl_norm", "lr_scheduler", "optim", "output", "batch_size"}
    definition = load_definition("wide", STUDIES)
    assert wanted <= set(definition.search)
    assert definition.search["tfr"].contains(0.0)


# ---- studies/README.md


def tables_documented():
    """{heading: {key: row}} of the key tables in studies/README.md."""
    found, heading = {}, ""
    for line in (STUDIES / "README.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.match(r"\| `(\w+)` \|(.*)\|$", line):
            found.setdefault(heading, {})[match[1]] = [cell.strip() for cell in match[2].split(" | ")]
    return found


MODELS = {
    "[study]": module.StudyTable,
    "[budget]": module.Budget,
    "[service]": module.ServiceTable,
    "[warm_start]": module.WarmStart,
    "[[claims]]": Claim,
    'type = "float"': space.FloatDimension,
    'type = "int"': space.IntDimension,
    'type = "categorical"': space.CategoricalDimension,
    'kind = "tpe"': module.TpeSampler,
    'kind = "gp"': module.GpSampler,
    'kind = "median"': module.MedianPruner,
    'kind = "percentile"': module.PercentilePruner,
    'kind = "halving"': module.HalvingPruner,
    'kind = "hyperband"': module.HyperbandPruner,
    'kind = "forecast"': module.ForecastPruner,
}


def shown(value):
    return json.dumps(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(("heading", "model"), MODELS.items())
def test_every_key_of_a_definition_is_documented(heading, model):
    rows = tables_documented()[heading]
    fields_of = {name: field for name, field in model.model_fields.items() if name not in ("kind", "type", "when")}
    assert set(rows) == set(fields_of)
    for name, field in fields_of.items():
        expected = "required" if field.is_required() else "-" if field.default is None else shown(field.default)
        assert rows[name][-2].strip("`") == expected, name


def test_every_setting_is_documented_with_its_default():
    rows = tables_documented()["Settings"]
    assert list(rows) == list(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert rows[name][-2] == f"`{shown(field.default)}`", name
        assert rows[name][-1] == field.description, name


def test_every_shipped_study_and_kind_is_documented():
    text = (STUDIES / "README.md").read_text()
    kinds = re.findall(r'kind: Literal\["(\w+)"\]', Path(module.__file__).read_text())
    assert len(kinds) == len(get_args(module.Sampler)) + len(get_args(module.Pruner))
    for name in NAMES:
        assert f"[{name}.toml]({name}.toml)" in text, name
    for kind in kinds:
        assert f'`kind = "{kind}"`' in text or f'kind = "{kind}"\n' in text, kind


def test_the_shipped_searches_meet_several_learning_rates_and_every_batch_size_early():
    main, wide = (load_definition(name, STUDIES) for name in ("main", "wide"))
    rates = sorted({point["lr"] for point in main.enqueue})
    assert len(rates) >= 4 and rates[-1] >= 10 * rates[0]
    assert main.sampler.n_startup_trials > len(main.enqueue)
    assert {point["batch_size"] for point in wide.enqueue} == set(wide.search["batch_size"].choices)
