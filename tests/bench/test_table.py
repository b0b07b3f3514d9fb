"""The table of real trainings: resumed to the training, never half written, and read for what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import table, table_figures, tabled
from bench.machine import rows_of
from cvaeopt.config import Config
from cvaeopt.search.space import has_effect, key_of, params_to_config
from tests.bench.made_tables import DEFINITION, curve_of, fake, filled, table_in, wanted_of


def test_more_settings_continue_the_same_sequence_and_none_trains_like_another() -> None:
    many = table.settings(DEFINITION, 200)
    assert table.settings(DEFINITION, 50) == many[:50]
    assert len({setting.key for setting in many}) == 200
    assert [setting.index for setting in many] == list(range(200))


def test_a_setting_holds_what_has_an_effect_and_trains_what_its_key_names() -> None:
    many = table.settings(DEFINITION, 200)
    for setting in many:
        config = params_to_config(DEFINITION, setting.params, 0).plain()
        assert all(has_effect(name, config) for name in setting.params)
        assert key_of(DEFINITION, setting.params) == setting.key
    without = [setting.params for setting in many if setting.params["tfr"] == 0]
    assert without and all("tfr_sde" not in params for params in without)


def test_each_choice_and_each_tenth_of_the_learning_rates_is_met() -> None:
    many = table.settings(DEFINITION, 200)
    for name in ("lr_scheduler", "output", "kl_norm", "kl_anneal_type"):
        assert {setting.params[name] for setting in many} == set(DEFINITION.search[name].choices)
    tenths = [int(10 * math.log(setting.params["lr"] / 1e-4) / math.log(200)) for setting in many]
    assert min(np.bincount(tenths)) >= 15


def test_a_table_goes_on_where_it_was_cut_and_trains_nothing_twice(tmp_path: Path) -> None:
    trained: list[tuple[float, int]] = []

    def cut(config: Config, after: int) -> Iterator[SimpleNamespace]:
        if len(trained) == after:
            raise MemoryError
        trained.append((config.lr, config.seed))
        return fake(config)

    made, wanted = table_in(tmp_path), wanted_of(4)
    with pytest.raises(MemoryError):
        table.fill(DEFINITION, made, wanted, partial(cut, after=3), "here")
    assert list(made.rows()) == [(0, 1), (0, 2), (1, 1)]
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[:-40])  # the machine died while the last line was written
    assert table.fill(DEFINITION, made, wanted, partial(cut, after=99), "here") == 6
    assert list(made.rows()) == [(setting.index, seed) for setting, seed in wanted]
    assert table.fill(DEFINITION, made, wanted, partial(cut, after=0), "here") == 0
    assert sorted(trained) == sorted([*((one.params["lr"], seed) for one, seed in wanted), trained[2]])


def test_a_training_that_another_process_does_is_left_to_it(tmp_path: Path) -> None:
    made = table_in(tmp_path)
    with made.claimed((0, 1)) as mine, made.claimed((0, 1)) as other, made.claimed((0, 2)) as second:
        assert (mine, other, second) == (True, False, True)
    made.append({"index": 0, "seed": 1})
    with made.claimed((0, 1)) as done:
        assert not done


def test_a_divergence_and_an_error_of_the_trainer_are_rows(tmp_path: Path) -> None:
    setting = table.settings(DEFINITION, 1)[0]
    row = table.training(DEFINITION, setting, 1, partial(fake, limit=0.0))
    assert (row["diverged"], len(row["val_psnr"]), row["error"]) == (3, 2, None)
    assert table.value_of(row, 3) is None

    def broken(config: Config) -> Iterator[SimpleNamespace]:
        raise ValueError("odd")

    row = table.training(DEFINITION, setting, 1, broken)
    assert (row["diverged"], row["error"]) == (None, "ValueError: odd")
    made = table_in(tmp_path)
    made.append(row)
    assert table.value_of(made.rows()[0, 1], 3) is None


def test_a_clone_goes_on_from_the_packed_table_whose_bytes_depend_on_its_rows_alone(tmp_path: Path) -> None:
    made = filled(tmp_path / "one", 3)
    made.append({"header": "here"})
    other = table_in(tmp_path / "other")
    for row in reversed([*made.headers(), *made.rows().values()]):
        other.append({name: value for name, value in row.items() if name != "meaning"})
    assert made.pack() == other.pack() == 6
    assert made.packed.read_bytes() == other.packed.read_bytes()
    clone = table.Table(tmp_path / "clone.jsonl", made.packed, "meaning")
    assert clone.rows() == made.rows()
    assert table.fill(DEFINITION, clone, wanted_of(3), fake, "here") == 0
    assert table.Table(tmp_path / "clone.jsonl", made.packed, "another").rows() == {}


def test_the_committed_table_is_of_the_space_that_is_committed() -> None:
    kept = table.kept()
    rows = rows_of(kept.packed.with_suffix(""))
    assert {row["meaning"] for row in rows} <= {kept.meaning}
    keys = {setting.index: setting.key for setting in table.settings(DEFINITION, 1 + max((0, *map(_index, rows))))}
    assert all(keys[row["index"]] == row["key"] for row in rows if "index" in row)


def _index(row: table.Row) -> int:
    return int(row.get("index", 0))


def test_the_best_settings_are_those_with_the_highest_means_and_none_that_diverged(tmp_path: Path) -> None:
    rows = filled(tmp_path, 40).rows()
    means = {}
    for setting in table.settings(DEFINITION, 40):
        configs = [params_to_config(DEFINITION, setting.params, 0, seed) for seed in table.SEEDS]
        if setting.params["lr"] <= 1.5e-2:
            means[setting.index] = float(np.mean([curve_of(config)[-3:].mean() for config in configs]))
    assert len(means) < 40
    assert table.best(rows, 3, 5) == sorted(means, key=lambda index: -means[index])[:5]


# ---- what it says


def test_what_a_seed_adds_to_all_settings_is_no_part_of_their_truth(tmp_path: Path) -> None:
    of = tabled.entries(filled(tmp_path, 40).rows(), 3)
    differences = [one.values[2] - one.values[1] for one in of if one.steady]
    assert abs(np.median(differences)) < 1e-3  # the second seed adds 1 dB
    own, share = table_figures.seed_noise([one for one in of if one.steady])
    assert 0.05 < own < 0.2 and 0 < share < 0.02
    assert tabled.best_of(of) == tabled.truths(of).max()
    lost = [truth for one, truth in zip(of, tabled.truths(of), strict=True) if not one.steady]
    assert lost and set(lost) == {tabled.truths(of).min()}


def test_extra_seeds_count_for_the_table_best_once_they_are_there(tmp_path: Path) -> None:
    made = filled(tmp_path, 20)
    points = table.settings(DEFINITION, 20)
    chosen = table.best(made.rows(), 3, 3)
    table.fill(DEFINITION, made, [(points[index], seed) for seed in (3, 4, 5, 6) for index in chosen], fake, "here")
    of = tabled.entries(made.rows(), 3)
    assert sorted(one.index for one in of if len(one.values) == 6) == sorted(chosen)
    assert tabled.best_of(of) == max(one.mean for one in of if one.index in chosen)


def test_the_expected_best_of_some_is_the_mean_over_all_draws() -> None:
    values = [3.0, 1.0, 2.0]
    every = [max(a, b) for a in values for b in values]
    assert table_figures.expected_best(values, 2) == pytest.approx(np.mean(every))
    assert table_figures.expected_best(values, 1) == pytest.approx(2.0)


def test_lr_explains_a_value_made_of_it_and_nothing_of_one_that_is_not() -> None:
    x = np.random.default_rng(0).normal(size=200)
    assert table_figures.explained(x, 1 - x**2 + x**3) == pytest.approx(1)
    assert table_figures.explained(x, np.random.default_rng(1).normal(size=200)) < 0.05


def test_settings_at_a_bound_are_counted_there(tmp_path: Path) -> None:
    low = [tabled.Entry(0, "0", {"lr": 1.05e-4, "tfr": 0.5}, {}, {}), tabled.Entry(1, "1", {"lr": 1.9e-2}, {}, {})]
    assert table_figures.at_bounds(low, DEFINITION) == [
        ("lr", 2, pytest.approx(0.5, abs=0.1), 1, 1),
        ("tfr", 1, pytest.approx(0.5), 0, 0),
    ]


@pytest.mark.parametrize("count", [0, 5, 20])
def test_a_table_of_any_length_can_be_reported(tmp_path: Path, count: int) -> None:
    text = table_figures.report(filled(tmp_path, count).rows(), DEFINITION)
    assert ("too few" in text) == (count < 10)
    assert "nan" not in text


def test_rows_are_json_without_nan(tmp_path: Path) -> None:
    lines = filled(tmp_path, 20).path.read_text().splitlines()
    assert len(lines) == 40
    for line in lines:
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
