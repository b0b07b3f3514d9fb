"""Verdicts on claims: closed forms, and by simulation whether they are wrong as rarely as they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from cvaeopt.errors import SettingsError, StudyDamaged
from cvaeopt.outcome import report
from cvaeopt.outcome.claims import MAX_SEEDS, POWER, assess, judge, needed_text, seeds_needed, verdict_text
from cvaeopt.outcome.two_way import two_way
from cvaeopt.search.claims import MEASURES
from cvaeopt.search.definition import Definition
from cvaeopt.store import claims as stored
from cvaeopt.store.confirmation import register
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, open_existing
from tests.support.made_up import NOON

LUCK_DB, REST_DB = 1.0, 0.5
"""Standard deviations of simulated runs: what a seed does to all arms alike, and the rest."""

runs = st.lists(st.floats(-5, 5), min_size=4, max_size=8)


@given(runs, runs)
def test_one_claim_about_one_pair_is_what_its_interval_says(one: list[float], other: list[float]) -> None:
    differences = [a - b for a, b in zip(one, other, strict=False)]
    (found,) = judge([[differences]])
    (pair,) = found.pairs
    assert pair is not None and pair.low is not None and pair.high is not None
    expected = "holds" if pair.low > 1e-9 else "reversed" if pair.high < -1e-9 else "open"
    if min(abs(pair.low), abs(pair.high)) > 1e-6:
        assert found.verdict == expected
    rows = [dict(enumerate(values[: len(differences)])) for values in (one, other)]
    both = two_way(rows)
    assert both is not None
    apart = both.difference(0, 1)
    assert apart is not None and apart.low == pytest.approx(pair.low, abs=0.02)  # its residual is never quite 0


@given(st.lists(runs, min_size=1, max_size=4))
def test_the_sign_of_all_differences_turns_a_claim_of_one_pair_round(claims: list[list[float]]) -> None:
    opposite = {"holds": "reversed", "reversed": "holds", "open": "open"}
    there = judge([[[-value for value in differences]] for differences in claims])
    for here, turned in zip(judge([[differences] for differences in claims]), there, strict=True):
        assert turned.verdict == opposite[here.verdict] and turned.p == pytest.approx(here.p)


def test_several_claims_are_adjusted_by_holms_method() -> None:
    claims = [[[1.0, 1.4, 0.9, 1.3]], [[0.5, 1.5, -0.1, 1.0]], [[0.2, -0.3, 0.1, 0.1]]]
    alone = [judge([claim])[0].p for claim in claims]
    assert sorted(alone) == alone
    expected = [min(1, 3 * alone[0]), min(1, 2 * alone[1]), min(1, alone[2])]
    assert [one.p for one in judge(claims)] == pytest.approx(np.maximum.accumulate(expected))


def test_a_claim_holds_if_every_pair_does_and_is_reversed_if_any_pair_is() -> None:
    clear, unclear, turned = [1.0, 1.4, 0.9, 1.3], [0.2, -0.3, 0.1, 0.1], [-1.0, -1.2, -0.9, -1.1]
    verdicts = [judge([pairs])[0].verdict for pairs in ([clear, clear], [clear, unclear], [clear, turned])]
    assert verdicts == ["holds", "open", "reversed"]
    assert judge([[clear, clear]])[0].p == judge([[clear]])[0].p
    assert judge([[clear, turned]])[0].p == pytest.approx(2 * judge([[turned]])[0].p)


def test_one_seed_and_equal_arms_decide_nothing() -> None:
    for differences in ([], [3.0], [0.0, 0.0, 0.0]):
        (found,) = judge([[differences]])
        assert (found.verdict, found.p, found.needed) == ("open", 1.0, None)
    assert judge([[[0.5, 0.5, 0.5]]])[0].verdict == "holds"  # a difference without any noise


# ---- by simulation


def arms(draw: np.random.Generator, levels: list[float], noises: list[float], seeds: int) -> np.ndarray:
    """The values of simulated runs, (arms, seeds)."""
    shape = (len(levels), seeds)
    return np.array(levels)[:, None] + draw.normal(0, LUCK_DB, seeds) + draw.normal(0, 1, shape) * np.c_[noises]


@pytest.mark.parametrize("noises", [[REST_DB] * 3, [2.0, 0.1, 0.1]], ids=["equal noise", "one noisy arm"])
def test_where_nothing_differs_five_of_a_hundred_claims_are_false(noises: list[float]) -> None:
    draw = np.random.default_rng(1)
    alone = family = 0
    count = 1500
    for _ in range(count):
        a, b, c = arms(draw, [30.0] * 3, noises, 5)
        alone += judge([[a - b]])[0].verdict != "open"
        family += any(one.verdict != "open" for one in judge([[a - b, a - c], [b - a, b - c], [c - b]]))
    # Four standard errors of a rate of 5 % in so many repeats are 2.3 %.
    assert abs(alone / count - 0.05) < 0.023
    assert 0 < family / count < 0.073


def test_a_standard_deviation_of_all_arms_would_be_wrong_more_often() -> None:
    draw = np.random.default_rng(2)
    count, pooled, alone = 400, 0, 0
    for _ in range(count):
        values = arms(draw, [30.0] * 5, [2.0, 0.1, 0.1, 0.1, 0.1], 5)
        found = two_way([dict(enumerate(row)) for row in values.tolist()])
        assert found is not None
        apart = found.difference(0, 1)
        assert apart is not None and apart.low is not None and apart.high is not None
        pooled += apart.low > 0 or apart.high < 0
        alone += judge([[values[0] - values[1]]])[0].verdict != "open"
    assert pooled / count > 0.1 > alone / count


@pytest.mark.parametrize("sign", [1, -1])
def test_planted_effects_are_found_and_have_their_direction(sign: int) -> None:
    draw = np.random.default_rng(3)
    verdicts = []
    for _ in range(200):
        good, bad, worst = arms(draw, [30.0 + 3 * sign, 30.0, 30.0 - sign], [REST_DB] * 3, 5)
        verdicts.append(judge([[good - bad, good - worst]])[0].verdict)
    assert verdicts.count("holds" if sign > 0 else "reversed") > 190
    assert ("reversed" if sign > 0 else "holds") not in verdicts


def test_where_one_pair_does_not_differ_the_claim_seldom_holds_however_clear_the_other_pair_is() -> None:
    draw = np.random.default_rng(4)
    holds = 0
    for _ in range(1000):
        a, b, c = arms(draw, [30.0, 30.0, 20.0], [REST_DB] * 3, 5)
        holds += judge([[a - b, a - c]])[0].verdict == "holds"
    assert abs(holds / 1000 - 0.025) < 0.02


@pytest.mark.parametrize("effect_db", [0.5, 1.0])
def test_the_stated_number_of_seeds_decides_as_often_as_it_says(effect_db: float) -> None:
    draw = np.random.default_rng(5)
    seeds = seeds_needed(effect_db, REST_DB * math.sqrt(2), 0.05)
    assert seeds is not None
    decided = {}
    for number in (seeds - 1, seeds):
        drawn = [draw.normal(effect_db, REST_DB * math.sqrt(2), number).tolist() for _ in range(500)]
        decided[number] = np.mean([judge([[differences]])[0].verdict == "holds" for differences in drawn])
    assert decided[seeds] > POWER - 0.08 and decided[seeds - 1] < POWER + 0.08


def test_an_open_claim_needs_more_seeds_than_it_has_and_a_smaller_difference_needs_more() -> None:
    draw = np.random.default_rng(6)
    for _ in range(200):
        pairs = [draw.normal(0.3, 1, 5).tolist() for _ in range(2)]
        (found,) = judge([pairs])
        assert (found.needed is None or found.needed > 5) if found.verdict == "open" else found.needed is None
    needed = [seeds_needed(mean, 1.0, 0.05) for mean in (3.0, 1.0, 0.3, 0.1)]
    assert needed == sorted(needed, key=lambda one: one or MAX_SEEDS) and needed[0] == 4
    assert seeds_needed(0.01, 1.0, 0.05) is seeds_needed(0.0, 1.0, 0.05) is None


# ---- from the storage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as opened:
        yield opened


def grid(*claims: dict[str, Any]) -> Definition:
    """Three arms of forcing, and a setting without effect where forcing is off."""
    return Definition.parse(
        {
            "budget": {"trials": 3, "epochs": 2},
            "fixed": {"seed": 100},
            "search": {"tfr": {"type": "categorical", "choices": [1.0, 0.8, 0.5]}},
            "sampler": {"kind": "grid"},
            "claims": list(claims)
            or [
                {"text": "0.8 is best", "better": {"tfr": 0.8}, "worse": [{"tfr": 1.0}, {"tfr": 0.5}]},
                {"text": "0.5 is calmer", "better": {"tfr": 0.5}, "worse": {"tfr": 1.0}, "measure": "loss_swing"},
            ],
        },
        "grid",
        "a test",
    )


def registered(storage: Storage, definition: Definition, seeds: int | None) -> None:
    create_or_open(storage, definition)
    stored.record(storage, definition)
    register(storage, stored.plan(storage, definition, seeds))


def train(storage: Storage, name: str, measured: Any, limit: int = 100) -> None:
    """End the waiting runs of a confirmation with the measures `measured(params)`; None for a diverged run."""
    study, found = open_existing(storage, name)
    for _ in range(min(limit, found.budget.trials or 0)):
        trial = study.ask()
        point = study.get_trials()[trial.number].system_attrs["fixed_params"]
        params = {key: found.search[key].suggest(key, trial) for key in point}
        values = measured(params)
        if values is None:
            trial.set_user_attr("failed", "diverged")
            study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(MEASURES, values)
            study.tell(trial, values["final_psnr"])


def outcome(params: dict[str, Any]) -> dict[str, float]:
    """0.8 is 2 dB above the others; a seed moves all arms; 0.5 swings least."""
    noise = (params["seed"] % 7) / 50 * params["tfr"]
    luck = params["seed"] % 5
    return {"final_psnr": 30 + luck + 2 * (params["tfr"] == 0.8) + noise, "loss_swing": 1 + params["tfr"] + noise}


def test_every_arm_gets_the_same_fresh_seeds_and_all_of_them_are_judged(storage: Storage) -> None:
    definition = grid()
    registered(storage, definition, 5)
    planned = stored.plan(storage, definition, 5)
    assert planned.new_runs == 0 and planned.registered == ("grid.confirm",) and 100 not in planned.seeds
    found = assess(storage, "grid")
    assert found is not None and (found.arms, found.runs, found.ended) == (3, 15, 0)
    assert [verdict_text(one) for one in found.judged] == ["cannot be told from 0 seeds"] * 2
    train(storage, "grid.confirm", outcome)
    found = assess(storage, "grid")
    assert found is not None and (found.ended, found.without) == (15, 0)
    assert [one.verdict for one in found.judged] == ["holds", "holds"] and found.judged[0].seeds == (5, 5)
    first = found.judged[0].pairs[1]
    assert first is not None and 2 < first.mean < 2.1  # the seeds' luck, up to 4 dB, drops out
    rows = found.table
    assert [row["pair"] for row in rows][:2] == ["tfr 0.8 over tfr 1.0", "tfr 0.8 over tfr 0.5"]
    assert (rows[0]["claim"], rows[1]["claim"], rows[0]["would decide"]) == ("1", "", "decided")
    assert found.sentences == ["0.8 is best (final_psnr): holds", "0.5 is calmer (loss_swing): holds"]
    plain = found.plain()["claims"]
    assert plain[0]["seeds"] == 5 and plain[0]["pairs"][0]["low"] > 0 and plain[0]["seeds_needed"] is None


def test_more_seeds_are_added_and_without_a_number_nothing_is(storage: Storage) -> None:
    definition = grid()
    registered(storage, definition, 2)
    assert stored.plan(storage, definition, None).new_runs == 0
    registered(storage, definition, 4)
    assert stored.plan(storage, definition, None).registered == ("grid.confirm", "grid.confirm-2")
    assert stored.registered_seeds(storage, definition) == 4
    train(storage, "grid.confirm", outcome)
    train(storage, "grid.confirm-2", outcome, limit=2)
    found = assess(storage, "grid")
    assert found is not None and (found.runs, found.ended) == (12, 8)
    assert found.judged[0].seeds == (3, 2)  # the third seed has two of its three arms


def test_a_run_that_diverged_takes_its_seed_out_of_its_pairs(storage: Storage) -> None:
    definition = grid()
    registered(storage, definition, 3)
    bad = stored.plan(storage, definition, 3).seeds[0]
    train(storage, "grid.confirm", lambda p: None if (p["seed"], p["tfr"]) == (bad, 1.0) else outcome(p))
    found = assess(storage, "grid")
    assert found is not None and (found.ended, found.without) == (9, 1)
    assert found.judged[0].seeds == (2, 3)


def test_a_table_of_several_arms_is_their_mean(storage: Storage) -> None:
    rest = {"text": "x", "better": {"tfr": 0.8}, "worse": {"tfr_sde": 10}}
    with pytest.raises(SettingsError):
        grid(rest)
    definition = Definition.parse(
        {
            "budget": {"trials": 3, "epochs": 20},
            "search": {
                "tfr": {"type": "categorical", "choices": [1.0, 0.0]},
                "tfr_sde": {"type": "categorical", "choices": [2, 4], "when": {"tfr": [1.0]}},
            },
            "sampler": {"kind": "grid"},
            "claims": [{"text": "off is better", "better": {"tfr": 0}, "worse": {"tfr": 1}}],
        },
        "grid",
        "a test",
    )
    registered(storage, definition, 2)
    train(storage, "grid.confirm", lambda p: {"final_psnr": 30.0 - p.get("tfr_sde", 0)})
    found = assess(storage, "grid")
    assert found is not None and found.judged[0].pairs[0] is not None
    assert found.judged[0].pairs[0].mean == pytest.approx(3.0)


def test_claims_of_the_file_count_before_stored_ones_and_damaged_ones_are_named(storage: Storage) -> None:
    definition = grid()
    registered(storage, definition, 2)
    other = grid({"text": "other", "better": {"tfr": 1.0}, "worse": {"tfr": 0.5}})
    found = assess(storage, "grid", other.claims)
    assert found is not None and [claim.text for claim in found.claims] == ["other"]
    assert [claim.text for claim in stored.recorded(storage, definition)] == ["0.8 is best", "0.5 is calmer"]
    storage.set_study_user_attr(storage.get_study_id_from_name("grid"), stored.CLAIMS, [{"text": "x"}])
    with pytest.raises(StudyDamaged, match="claims about its arms"):
        assess(storage, "grid")


def test_words_for_what_is_not_decided() -> None:
    (near,) = judge([[[0.1, -0.1, 0.2, 0.0, 0.05]]])
    assert verdict_text(near) == "cannot be told from 5 seeds" and needed_text(near).startswith("about ")
    assert needed_text(judge([[[0.001, -1.0, 1.0]]])[0]) == f"over {MAX_SEEDS}"
    assert needed_text(judge([[[1.0]]])[0]) == "unknown before 2 seeds"


def test_the_report_shows_the_claims_that_were_tested(storage: Storage, tmp_path: Path) -> None:
    registered(storage, grid(), 3)
    train(storage, "grid.confirm", outcome)
    page = report.report(storage, "grid", tmp_path / "out", artifacts=tmp_path, now=NOON).page.read_text()
    assert "9 of 9 fresh runs of 3 arms are over" in page
    assert "<li>0.5 is calmer (loss_swing): holds</li>" in page and "tfr 0.8 over tfr 0.5</th>" in page
