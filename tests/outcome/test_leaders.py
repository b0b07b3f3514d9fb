"""Rankings by fresh runs, of studies whose runs were never trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from cvaeopt.errors import StudyError
from cvaeopt.outcome import recipe, report
from cvaeopt.outcome.export import export_best
from cvaeopt.outcome.intervals import t_quantile
from cvaeopt.outcome.leaders import RankedLeader, confirmation, rank, table
from cvaeopt.store.confirmation import Leader, advance
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, open_existing
from tests.support.made_up import NOON, definition, registered, run_all, trials

SEEDS = (11, 12, 13)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as opened:
        yield opened


def leader(number: int, searched: float = 30.0) -> Leader:
    return Leader(f"key{number}", (number,), searched, {"lr": 1e-3 * (number + 1)})


def ran(number: int, *values: float, searched: float = 30.0, **counts: int) -> RankedLeader:
    """A leader with fresh runs of these values, from the first of the common seeds."""
    return RankedLeader(leader(number, searched), values, seeds=SEEDS[: len(values)], **counts)


# ---- the ranking


def test_leaders_are_ranked_by_their_fresh_runs_and_not_by_the_search() -> None:
    found = rank(["x.confirm"], [ran(0, 28.0, 28.2, searched=31.0), ran(1, 29.0, 29.4)])
    assert [one.leader.trials for one in found.ranked] == [(1,), (0,)]
    best = found.best
    assert best is not None and best.mean == pytest.approx(29.2)
    spread = ((0.02 + 0.08) / 2) ** 0.5
    assert found.freedom == 2
    assert found.spread == pytest.approx(spread)
    assert best.standard_error == pytest.approx(spread / 2**0.5)
    assert best.high - best.low == pytest.approx(2 * t_quantile(2) * spread / 2**0.5)  # type: ignore[operator]
    assert [one.tied for one in found.ranked] == [False, t_quantile(2) * spread >= 1.1]


def test_runs_of_settings_that_lead_no_longer_make_nobody_first() -> None:
    found = rank(["x.confirm"], [RankedLeader(leader(0), ())])
    assert found.ranked == () and found.best is None
    assert found.plain()["best"] is None and table(found) == []


def test_one_run_each_tells_nothing_apart() -> None:
    found = rank(["x.confirm"], [ran(0, 28.0), ran(1, 20.0)])
    assert found.spread is None
    assert found.ranked[0].low is found.ranked[0].standard_error is None
    assert found.ranked[1].tied


def test_leaders_are_compared_seed_by_seed() -> None:
    luck = (0.0, 1.5, 3.0)  # of the seeds, for all leaders
    levels = ((29.0, (0.1, 0.0, -0.1)), (28.0, (0.0, 0.1, -0.1)), (28.95, (-0.1, 0.0, 0.1)))
    counted = [
        RankedLeader(leader(number), tuple(level + a + b for a, b in zip(luck, rest, strict=True)), seeds=SEEDS)
        for number, (level, rest) in enumerate(levels)
    ]
    found = rank(["x.confirm"], counted)
    assert found.paired and [one.leader.trials[0] for one in found.ranked] == [0, 2, 1]
    first, near, far = found.ranked
    assert first.behind is None and not first.tied
    assert near.behind is not None and near.behind.mean == pytest.approx(0.05) and near.tied
    assert far.behind is not None and far.behind.mean == pytest.approx(1.0) and not far.tied
    assert found.spread is not None and found.spread > 1.4 and first.standard_error > 0.8  # type: ignore[operator]
    assert far.behind.low is not None and far.behind.low > 0.5
    assert [row["behind, dB"] for row in table(found)][:2] == [
        "-",
        "0.05 (-0.21 to 0.31)",
    ]  # sqrt(0.16 / 3 / 4 * 2 / 3) t(4)
    assert found.plain()["paired"] is True and found.plain()["leaders"][2]["behind_first"]["value"] == 1.0


def test_a_lost_run_of_an_unlucky_seed_makes_nobody_first() -> None:
    luck = {11: 0.0, 12: 2.0, 13: 2.0}
    counted = [
        RankedLeader(leader(0), tuple(29.0 + luck[seed] for seed in SEEDS), seeds=SEEDS),
        RankedLeader(leader(1), tuple(28.5 + luck[seed] for seed in SEEDS[1:]), seeds=SEEDS[1:], lost=1),
        RankedLeader(leader(2), tuple(27.0 + luck[seed] for seed in SEEDS), seeds=SEEDS),
    ]
    found = rank(["x.confirm"], counted)
    assert found.ranked[1].mean > found.ranked[0].mean  # type: ignore[operator]
    assert [one.leader.trials[0] for one in found.ranked] == [0, 1, 2]
    assert found.ranked[1].behind is not None and found.ranked[1].behind.mean == pytest.approx(0.5)


def test_settings_that_diverged_come_after_those_that_did_not() -> None:
    found = rank(
        ["x.confirm"],
        [
            ran(0, 33.0, diverged=1),
            ran(1, 29.0, 29.2, lost=1),
            ran(2, diverged=2),
        ],
    )
    assert [one.leader.trials[0] for one in found.ranked] == [1, 0, 2]
    assert found.ranked[2].mean is None
    rows = table(found)
    assert [row["runs"] for row in rows] == ["2, 1 lost", "1, 1 diverged", "0, 2 diverged"]
    assert rows[2]["confirmed, dB"] == rows[2]["95 %"] == "-"


def test_nothing_is_decided_while_a_run_is_open() -> None:
    found = rank(["x.confirm"], [ran(0, 28.0, 28.2), ran(1, 29.0, open=1)])
    assert (found.runs, found.ended, found.over, found.best) == (4, 3, False, None)


def test_the_first_leader_is_not_credited_with_its_luck() -> None:
    draw = np.random.default_rng(1)
    noise = draw.normal(0, 1.0, (5, 3))  # leaders that do not differ at all
    found = rank(["x.confirm"], [ran(number, *values) for number, values in enumerate((30 + noise).tolist())])
    first = found.best
    assert first is not None and first.mean is not None and first.estimate is not None
    assert first.mean == max(one.mean for one in found.ranked if one.mean is not None)
    assert 30 + noise.mean() <= first.estimate < first.mean - 0.2
    assert found.plain()["best"]["value"] == pytest.approx(first.estimate, abs=1e-4)


# ---- from the storage to the recipe


def test_a_study_without_a_confirmation_has_none(storage: Storage) -> None:
    create_or_open(storage, definition()).add_trials(trials(8))
    assert confirmation(storage, "made-up") is None
    with pytest.raises(StudyError):
        confirmation(storage, "unknown")


def test_the_recipe_is_that_of_the_confirmed_mean(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    planned = registered(storage)
    second = planned.leaders[1]
    seeds = {seed: index for index, seed in enumerate(planned.seeds)}
    run_all(
        storage,
        "made-up.confirm",
        lambda params: (29.0 if params["lr"] == second.params["lr"] else 27.0) + 0.1 * seeds[params["seed"]],
    )
    exported = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON)
    said = recipe.read(tmp_path / "best.toml").provenance
    assert said["trial"] == second.trials[0]
    assert exported.recipe.settings.lr == second.params["lr"]
    assert said["value"] == pytest.approx(29.05)
    assert said["searched_value"] == pytest.approx(second.searched)
    assert said["confirmed"] is True and said["confirmed_by"] == ["made-up.confirm"]
    assert said["estimated"] == "mean of val_psnr over the last 2 epochs, estimated from 2 fresh runs"
    assert said["low"] < said["value"] < said["high"]
    assert said["standard_error"] == pytest.approx(0.05)
    assert said["within_noise"] == 0 and exported.confirmed is not None
    assert not any("highest of many single runs" in warning for warning in exported.warnings)


def test_runners_up_carry_their_intervals(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    planned = registered(storage)
    shift = {seed: 0.5 * index for index, seed in enumerate(planned.seeds)}
    run_all(storage, "made-up.confirm", lambda params: 28.0 + shift[params["seed"]])
    exported = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON)
    said = recipe.read(tmp_path / "best.toml").provenance
    assert said["within_noise"] == len(said["runners_up"]) == 2
    for one in said["runners_up"]:
        assert one["low"] < one["value"] < one["high"] and one["runs"] == 2
    assert any("2 runs each cannot tell them apart" in warning for warning in exported.warnings)


def test_an_unfinished_confirmation_has_no_say_and_is_named(storage: Storage, tmp_path: Path) -> None:
    study = create_or_open(storage, definition())
    study.add_trials(trials(16))
    registered(storage)
    exported = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON)
    assert exported.recipe.provenance["trial"] == study.best_trial.number
    assert exported.recipe.provenance["confirmed"] is False
    assert exported.confirmed is None
    assert any("confirmation has 0 of 6 runs" in warning for warning in exported.warnings)


def test_one_value_of_the_search_is_said_to_be_no_answer(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    warnings = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON).warnings
    assert any("cvaeopt confirm --study made-up" in warning for warning in warnings)


def test_diverged_and_crashed_runs_are_told_apart(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    planned = registered(storage)
    first, second, third = (one.params["lr"] for one in planned.leaders)
    kinds = {first: "diverged", second: "crashed"}

    def ending(params: dict[str, Any]) -> float | str:
        bad = params["seed"] == planned.seeds[0] and kinds.get(params["lr"])
        return bad or {first: 33.0, second: 28.0, third: 27.0}[params["lr"]]

    run_all(storage, "made-up.confirm", ending)
    found = confirmation(storage, "made-up")
    assert found is not None and found.over
    assert [(one.leader.params["lr"], one.diverged, one.lost) for one in found.ranked] == [
        (second, 0, 1),
        (third, 0, 0),
        (first, 1, 0),
    ]
    run = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON).recipe
    assert run.settings.lr == second


def test_when_every_fresh_run_diverged_the_search_decides_and_it_is_said(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    registered(storage, top=1, seeds=2)
    run_all(storage, "made-up.confirm", lambda params: "diverged")
    exported = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON)
    assert exported.recipe.provenance["confirmed"] is False
    assert any("None of the 2 fresh runs came to its end" in warning for warning in exported.warnings)


@pytest.mark.parametrize(("level", "said"), [(20.0, "does not beat copy first"), (23.95, "reaches down to copy first")])
def test_a_confirmed_value_is_held_against_the_baselines(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: float, said: str
) -> None:
    from cvaeopt.outcome import export

    create_or_open(storage, definition()).add_trials(trials(16))  # 30 dB in the search, far above the baseline
    planned = registered(storage)
    run_all(storage, "made-up.confirm", lambda params: level + 0.2 * planned.seeds.index(params["seed"]))
    plain = export.status
    monkeypatch.setattr(export, "status", lambda *given: {**plain(*given), "baselines": {"copy_first": 23.9}})
    warnings = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON).warnings
    assert said in warnings[0]


def test_repeats_of_several_confirmations_count_together(storage: Storage) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    registered(storage, top=2, seeds=1)
    run_all(storage, "made-up.confirm", lambda params: 28.0)
    more = registered(storage, top=2, seeds=3)
    assert more.new_runs == 4
    run_all(storage, "made-up.confirm-2", lambda params: 29.0)
    found = confirmation(storage, "made-up")
    assert found is not None
    assert found.studies == ("made-up.confirm", "made-up.confirm-2")
    assert [one.values for one in found.ranked] == [(28.0, 29.0, 29.0)] * 2


def test_a_successive_confirmation_is_not_over_before_its_second_stage(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    planned = registered(storage, top=4, seeds=None)
    found = confirmation(storage, "made-up")
    assert found is not None and (found.runs, found.ended) == (8, 0)
    luck = {seed: 0.5 * index for index, seed in enumerate(planned.seeds)}
    level = {one.params["lr"]: 28.0 + index for index, one in enumerate(planned.leaders)}
    run_all(storage, "made-up.confirm", lambda params: level[params["lr"]] + luck[params["seed"]])
    found = confirmation(storage, "made-up")
    assert found is not None and (found.runs, found.ended, found.over, found.best) == (8, 4, False, None)
    warnings = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON).warnings
    assert any("confirmation has 4 of 8 runs" in warning for warning in warnings)
    advance(storage, definition())
    run_all(storage, "made-up.confirm-2", lambda params: level[params["lr"]] + luck[params["seed"]])
    found = confirmation(storage, "made-up")
    assert found is not None and found.paired and (found.runs, found.ended, found.over) == (8, 8, True)
    assert [len(one.values) for one in found.ranked] == [3, 3, 1, 1]
    best = found.best
    assert best is not None and best.leader == planned.leaders[3]
    assert best.estimate == pytest.approx(31.0 + 0.5, abs=1e-3)  # no rest, so nothing is shrunk


def test_a_run_that_was_given_up_before_it_had_settings_is_lost(storage: Storage) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    registered(storage, top=1, seeds=1)
    study, _ = open_existing(storage, "made-up.confirm")
    study.tell(study.ask(), state=TrialState.FAIL)
    study.add_trial(create_trial(value=99.0))  # somebody's own, of no leader
    found = confirmation(storage, "made-up")
    assert found is not None
    assert [(one.values, one.lost, one.open) for one in found.ranked] == [((), 1, 0)]


def test_the_report_shows_the_ranking_by_fresh_runs(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition()).add_trials(trials(16))
    bare = report.report(storage, "made-up", tmp_path / "bare", artifacts=tmp_path, now=NOON)
    assert "The leaders, trained again" not in bare.page.read_text()
    planned = registered(storage)
    level = {one.params["lr"]: 30.0 + index for index, one in enumerate(planned.leaders)}
    run_all(storage, "made-up.confirm", lambda p: level[p["lr"]] + 0.3 * planned.seeds.index(p["seed"]))
    page = report.report(storage, "made-up", tmp_path / "out", artifacts=tmp_path, now=NOON).page.read_text()
    assert "6 of 6 fresh runs of the leaders are over" in page
    assert "One run scatters by 0.21 dB (standard deviation, 3 degrees of freedom)" in page
    places = [page.index(f">{mean:.2f}</td>") for mean in (32.15, 31.15, 30.15)]
    assert places == sorted(places), "the best mean comes first, which is the search's third"
    third = planned.leaders[2].trials[0]
    assert f"Trial {third} reached 32.15 dB" in page
    assert "estimated from 2 fresh runs" in page
