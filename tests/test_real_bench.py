"""The comparison on the real network: its studies are the shipped ones, and a campaign goes on where it was cut."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest

from bench import real, real_figures
from bench.search import confirmation, rows_of
from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.outcome.transfer import transfer
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.search.space import params_to_config
from cvaeopt.vae.trainer import Trainer
from tests.support import tiny

SIZE = real.Size()
FRAMES = 2304


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def scaled(space: str, epochs: int = 12, seed: int = 0) -> tuple[Definition, Definition]:
    shipped = load_definition(space, real.STUDIES)
    return shipped, real.scaled(shipped, SIZE, epochs, seed, FRAMES)


def fake(config: Config, limit: float = 1.6e-3) -> Iterator[float]:
    """Learning that likes high rates, a little luck of the seed, and divergence where it is overdone."""
    luck = (config.seed % 97) / 97
    for epoch in range(1, config.num_epoch + 1):
        if config.lr > limit and epoch == 2:
            raise Diverged("The training loss", math.nan, epoch)
        yield 20 + math.log10(config.lr / 1e-5) * (1 - 0.5**epoch) + 0.2 * luck


def campaign(path: Path, size: real.Size = SIZE) -> real.Campaign:
    return real.Campaign(size, fake, FRAMES, "data", path)


@pytest.mark.parametrize("space", real.SPACES)
@pytest.mark.parametrize("epochs", [3, 12, 60])
def test_a_scaled_study_is_the_shipped_one_but_for_what_counts_epochs_and_trials(space: str, epochs: int) -> None:
    shipped, small = scaled(space, epochs)
    assert list(small.search) == list(shipped.search)
    counted = {"tfr_sde", "tfr_d_step", "gamma", "kl_anneal_cycle"}
    for name in set(shipped.search) - counted:
        assert small.search[name] == shipped.search[name]
    added = {*dict(SIZE.widths), "frame_H", "frame_W", "train_vi_len"}
    assert set(small.fixed) - added == set(shipped.fixed)
    for name in set(shipped.fixed) - {"milestones", "ema"}:
        assert small.fixed[name] == shipped.fixed[name]
    assert type(small.sampler) is type(shipped.sampler) and type(small.pruner) is type(shipped.pruner)
    assert small.pruner.warmup_epochs / epochs == pytest.approx(
        shipped.pruner.warmup_epochs / shipped.epochs, abs=0.5 / epochs
    )
    assert [set(point) for point in small.enqueue] == [set(point) for point in shipped.enqueue]
    for before, after in zip(shipped.enqueue, small.enqueue, strict=True):
        assert {name: value for name, value in before.items() if name not in counted} == {
            name: value for name, value in after.items() if name not in counted
        }


def test_a_study_scaled_to_its_own_size_is_the_shipped_one() -> None:
    shipped = load_definition("main", real.STUDIES)
    size = dataclasses.replace(SIZE, trials=shipped.budget.trials)
    same = real.scaled(shipped, size, shipped.epochs, shipped.seed, FRAMES)
    assert (same.search, same.enqueue, same.window) == (shipped.search, shipped.enqueue, shipped.window)
    assert (same.sampler, same.pruner) == (shipped.sampler, shipped.pruner)


def test_scaled_points_and_ranges_are_carried_over_as_any_recipe_is() -> None:
    for space in real.SPACES:
        shipped, small = scaled(space, 24)
        for before, after in zip(shipped.enqueue, small.enqueue, strict=True):
            carried = transfer(params_to_config(shipped, before, 0), 24, "proportional").plain()
            assert {name: carried[name] for name in after if name != "kl_anneal_cycle"} == pytest.approx(
                {name: value for name, value in after.items() if name != "kl_anneal_cycle"}
            )
            assert after["kl_anneal_cycle"] == min(before["kl_anneal_cycle"], 12)
    _, wide = scaled("wide", 25)
    assert (wide.search["tfr_sde"].low, wide.search["tfr_sde"].high) == (0, 10)
    assert wide.search["gamma"].low == pytest.approx(0.9**2)
    assert wide.fixed["milestones"] == [12, 20]
    steps = 25 * SIZE.clips / (50 * 144)
    assert 1 - wide.fixed["ema"] == pytest.approx(0.01 / steps)


def test_no_training_is_done_twice_and_one_that_was_left_goes_on() -> None:
    begun: list[float] = []

    def train(config: Config) -> Iterator[float]:
        begun.append(config.lr)
        return fake(config)

    memo = real.Memo(train)
    good, bad = (tiny.config(lr=lr, num_epoch=5) for lr in (1e-3, 1.7e-3))
    assert list(itertools.islice(memo(good), 2)) == list(fake(good))[:2]
    assert list(memo(good)) == list(memo(good)) == list(fake(good))
    for _ in range(2):
        values = memo(bad)
        next(values)
        with pytest.raises(Diverged):
            next(values)
    assert begun == [1e-3, 1.7e-3]


@pytest.mark.parametrize("name", real.METHODS)
@pytest.mark.parametrize("space", real.SPACES)
def test_every_method_spends_its_epochs_and_no_more(name: str, space: str) -> None:
    _, small = scaled(space, seed=3)
    row = real.one_study(small, real.METHODS[name], real.Memo(fake), SIZE.budget)
    assert row["spent"] <= SIZE.budget
    assert SIZE.budget - row["spent"] <= (12 * 3 if real.METHODS[name].own else 0)
    states = {trial["state"] for trial in row["trials"]}
    assert "complete" in states and states <= {"complete", "pruned", "diverged", "cut"}
    assert all(len(trial["curve"]) == 12 for trial in row["trials"] if trial["state"] == "complete")
    chosen = next(trial for trial in row["trials"] if trial["number"] == row["chosen"])
    assert chosen["state"] == "complete" and chosen["params"] == row["params"]
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_ours_runs_the_points_first_and_confirms_from_fresh_seeds() -> None:
    _, small = scaled("main")
    row = real.one_study(small, real.METHODS["ours"], fake, SIZE.budget)
    assert [trial["params"] for trial in row["trials"][:3]] == small.enqueue
    leaders, seeds = confirmation(SIZE.budget, SIZE.epochs)
    assert leaders == 1 and len(row["confirmed"]) == len({one["number"] for one in row["confirmed"]}) == seeds
    fresh = [np.mean(one["curve"][-small.window :]) for one in row["confirmed"]]
    assert row["reported"] == pytest.approx(np.mean(fresh), abs=2e-3)
    without = real.one_study(small, real.METHODS["ours, no points"], fake, SIZE.budget)
    assert without["trials"][0]["params"] not in small.enqueue
    assert real.one_study(small, real.METHODS["random"], fake, SIZE.budget)["confirmed"] == []


def test_a_diverged_trial_teaches_ours_and_fails_with_plain_optuna() -> None:
    _, small = scaled("main")
    told: dict[str, set[str]] = {}
    for name in ("ours, no points", "tpe"):
        asked: list[optuna.Study] = []
        method = real.METHODS[name]

        def pruner(definition: Definition, asked: list = asked) -> optuna.pruners.BasePruner:
            return Remember(asked)

        fragile = partial(fake, limit=1e-4)
        ran = real.searched(small, dataclasses.replace(method, pruner=pruner), fragile, SIZE.budget)
        bad = [one.number for one in ran if one.state == "diverged"]
        assert bad
        trials = asked[0].get_trials()
        told[name] = {trials[number].state.name for number in bad if number < len(trials)}
        if name != "tpe":
            assert all(trials[number].constraints["diverged"] == 1 for number in bad)
    assert told == {"ours, no points": {"PRUNED"}, "tpe": {"FAIL"}}


class Remember(optuna.pruners.BasePruner):
    """Prunes nothing and keeps the study it is asked about."""

    def __init__(self, asked: list[optuna.Study]) -> None:
        self._asked = asked

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self._asked.append(study)
        return False


def test_a_campaign_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "real.jsonl"
    wanted = [(repeat, "main", name) for repeat in range(2) for name in ("ours", "random")]
    assert campaign(path).methods(wanted[:3]) == 3
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole[:2], whole[2][:400]]) + "\n")  # cut short in the third
    again = campaign(path)
    assert again.methods(wanted) == 2
    rows = {(row["repeat"], row["space"], row["method"]): row for row in rows_of(path)}
    assert list(rows) == wanted
    assert {**rows[wanted[2]], "seconds": 0} == {**json.loads(whole[2]), "seconds": 0}
    assert again.methods(wanted) == 0
    assert again.budgets(3) == 3 and again.budgets(4) == 1
    packed = real.pack(path)
    assert not path.exists() and len(packed) == 8
    assert again.methods(wanted) == 0 and again.budgets(4) == 0
    # Lines of another size are others, and so are those of our methods once the shipped study is another.
    assert campaign(path, dataclasses.replace(SIZE, trials=8)).methods(wanted[:1]) == 1
    changed = {**again.studies, "main": "0" * 12}
    left = real_figures.of_campaign(packed, again.digests, changed)
    assert {row["method"] for row in left if row["part"] == "methods"} == {"random"}


def test_the_report_shows_both_parts_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_figures, "DRAWS", 50)
    made = campaign(tmp_path / "real.jsonl", dataclasses.replace(SIZE, trials=2))
    for part in real.PARTS:
        made.note(part, {"processor": "a chip", "torch": "2"}, {"mean_frame": 29.0, "copy_first": 30.0})
    made.methods([(0, "main", "random")])
    made.budgets(4)
    rows = rows_of(made.path)
    text = real_figures.report([*rows, {**rows[-1], "digest": "another"}], tmp_path)
    assert "| main | random | 1 |" in text and "| 3 epochs | 48 epochs | 4 |" in text
    assert text.endswith("1 lines of other sizes or studies are left out.\n")
    assert text in (tmp_path / "real.md").read_text()


def test_equal_recommendations_are_trained_once(tmp_path: Path) -> None:
    trained: list[int] = []

    def train(config: Config) -> Iterator[float]:
        trained.append(config.seed)
        return fake(config)

    size = dataclasses.replace(SIZE, trials=1)  # one trial: random, tpe and optuna all recommend it
    made = real.Campaign(size, train, FRAMES, "data", tmp_path / "real.jsonl")
    assert made.methods([(0, "main", name) for name in ("random", "tpe", "optuna")]) == 3
    rows = rows_of(made.path)
    assert len({json.dumps(row["retrained"]) for row in rows}) == 1 and len(rows[0]["retrained"]) == SIZE.seeds
    assert len(trained) == 1 + SIZE.seeds


def test_the_small_data_are_whole_clips_from_all_over_the_video() -> None:
    size = dataclasses.replace(SIZE, clips=3, length=4, val=(1, 5))
    whole = tiny.dataset(24, 7)
    part = real.small(whole, size)
    assert np.array_equal(part.train.frames, whole.train.frames[[*range(4), *range(8, 12), *range(20, 24)]])
    assert np.array_equal(part.val.labels, whole.val.labels[1:5])
    assert part.digest != whole.digest


def test_the_baselines_are_the_psnr_of_a_constant_error() -> None:
    data = tiny.dataset(24, 7)
    frames = np.full((7, 3, 8, 16), 51, np.uint8)
    frames[0] = 0
    train = dataclasses.replace(data.train, frames=np.full((24, 3, 8, 16), 255, np.uint8))
    known = real.baselines(dataclasses.replace(data, train=train, val=dataclasses.replace(data.val, frames=frames)))
    assert known == {"copy_first": pytest.approx(13.98, abs=0.01), "mean_frame": pytest.approx(1.94, abs=0.01)}


def test_a_real_training_is_the_trainers() -> None:
    config = tiny.config(num_epoch=2)
    data = tiny.dataset()
    assert list(real.trained(data, config)) == [result.val_psnr for result in Trainer(config, data).run()]


def test_the_tables_pair_the_methods_and_count_what_diverged() -> None:
    def row(space: str, method: str, repeat: int, values: list[float | None], reported: float) -> dict:
        common = {"part": "methods", "chosen": 0, "params": {"lr": 1e-3}, "point": False, "spent": 192}
        trials = [{"state": "complete"}, {"state": "pruned"}]
        return {**common, "space": space, "method": method, "repeat": repeat, "retrained": values, "trials": trials} | {
            "reported": reported
        }

    rows = [
        row("main", "ours", 0, [30.0, 31.0], 30.5),
        row("main", "ours", 1, [32.0, 32.0], 32.5),
        row("main", "tpe", 0, [29.0, 30.0], 31.0),
        row("main", "tpe", 1, [31.0, None], 33.0),
        row("main", "tpe", 2, [90.0, 90.0], 90.0),
    ]
    assert real_figures.worth(rows[3]) == (31.0 + real_figures.NOTHING_DB) / 2
    assert real_figures.optimism(rows[3]) is None
    table = real_figures.methods_table(rows)
    # Repeat 2 has no partner: (30.5 - 29.5 + 32 - 21.5) / 2.
    assert "| main | tpe | 3 |" in table and "+5.75 [" in table
    assert "| both | ours | 2 |" in table
    assert "1 diverged" in real_figures.recommended(rows)


def test_rank_correlations_and_regret_are_those_of_their_definitions() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 30))
    scipy_free = 1 - 6 * float(((real_figures.ranks(one) - real_figures.ranks(other)) ** 2).sum()) / (30 * (30**2 - 1))
    assert real_figures.spearman(one, other) == pytest.approx(scipy_free)
    assert real_figures.spearman(one, np.exp(one)) == pytest.approx(1)
    assert list(real_figures.ranks([3.0, 1.0, 3.0])) == [2.5, 1.0, 2.5]
    assert real_figures.regret([1.0, 5.0, 2.0], [7.0, 8.0, 9.5]) == 1.5
    found, low, high = real_figures.bootstrapped(real_figures.spearman, one, one + 0.3 * other)
    assert low < found < high <= 1


def test_budget_rows_become_a_table() -> None:
    rows = [
        {
            "part": "budgets",
            "number": n,
            "values": {"3": float(n), "12": n + 0.1 * (-1) ** n, "again": None if n == 0 else float(n)},
        }
        for n in range(8)
    ]
    table = real_figures.budgets_table(rows, [3, 12], 12)
    assert "| 3 epochs | 12 epochs | 8 |" in table and "another seed" in table
    assert "1 at again" in table


def test_early_epochs_are_read_from_the_whole_trials_of_random_search() -> None:
    trials = [{"state": "complete", "curve": [float(-n), float(n), n + 0.5, float(n)]} for n in range(6)]
    trials.append({"state": "diverged", "curve": [0.0]})
    rows = [{"space": "main", "method": name, "trials": trials} for name in ("random", "ours")]
    first, second, _ = real_figures.epochs_table(rows).splitlines()[2:]
    assert "| main | 1 of 4 | 6 | -1.00" in first and "| main | 2 of 4 | 6 | 1.00" in second


def test_what_a_seed_does_to_all_settings_is_told_from_the_rest() -> None:
    generator = np.random.default_rng(4)
    values = generator.normal(30, 3, (400, 1)) + generator.normal(0, 1.5, 300) + generator.normal(0, 0.5, (400, 300))
    assert real_figures.seed_parts(values) == pytest.approx((1.5, 0.5), rel=0.1)
    rows = [{"space": "main", "chosen": 0, "key": str(n % 3), "retrained": list(values[n % 3, :5])} for n in range(4)]
    assert "| main | 3 | 5 |" in real_figures.seeds_table(rows)
