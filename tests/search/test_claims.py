"""Claims: which arms they name, what is refused, and the measures of a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.errors import SettingsError
from cvaeopt.search.claims import arms_with, measures, swing
from cvaeopt.search.definition import Definition

KINDS = {"type": "categorical", "choices": ["monotonic", "cyclical", "none"], "when": {"tfr": [1.0]}}
CLAIM = {"text": "off is better", "better": {"tfr": 0}, "worse": {"tfr": 1.0}}


def grid(*claims: Any, **tables: Any) -> Definition:
    """Four arms: three kinds of annealing with forcing, and one arm without forcing."""
    return Definition.parse(
        {
            "budget": {"trials": 4, "epochs": 5},
            "search": {"tfr": {"type": "categorical", "choices": [1.0, 0.0]}, "kl_anneal_type": KINDS},
            "sampler": {"kind": "grid"},
            **({"claims": list(claims)} if claims else {}),
            **tables,
        },
        "grid",
        "a test",
    )


def test_claims_change_neither_the_digest_nor_what_is_stored() -> None:
    assert grid(CLAIM).digest() == grid().digest()
    assert grid(CLAIM).plain() == grid().plain()
    assert grid(CLAIM).claims and not grid().claims


def test_a_table_names_every_arm_with_its_settings_and_defaults_count() -> None:
    made = grid()
    assert len(arms_with({"tfr": 1.0}, made.search, made.fixed)) == 3
    # The arm without forcing does not search the type, and its default is cyclical.
    assert arms_with({"kl_anneal_type": "cyclical"}, made.search, made.fixed) == [
        {"tfr": 1.0, "kl_anneal_type": "cyclical"},
        {"tfr": 0.0},
    ]


def test_lists_make_pairs_and_spellings_are_ours() -> None:
    (claim,) = grid({**CLAIM, "worse": [{"kl_anneal_type": "Monotonic"}, {"kl_anneal_type": "None"}]}).claims
    assert claim.pairs == [({"tfr": 0.0}, {"kl_anneal_type": "monotonic"}), ({"tfr": 0.0}, {"kl_anneal_type": "none"})]
    assert claim.measure == "final_psnr"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"text": ""}, "[[claims]] 1: text"),
    "no side": ({"worse": None}, "[[claims]] 1 worse = None. Expected: a table of settings"),
    "an empty table": ({"worse": [{}]}, "Expected: a table of settings"),
    "an empty list": ({"worse": []}, "worse"),
    "a setting that is not searched": ({"worse": {"lr": 0.1}}, "has no searched setting 'lr'"),
    "a value that no arm has": ({"worse": {"tfr": 0.5}}, "no arm has tfr 0.5"),
    "an arm on both sides": ({"worse": {"kl_anneal_type": "cyclical"}}, "an arm is in better and in worse"),
    "an unknown measure": ({"measure": "psnr"}, "measure = 'psnr'"),
    "an unknown key": ({"beter": 1}, "no key 'beter'. Did you mean 'better'?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_claim_that_cannot_be_tested_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(SettingsError) as caught:
        grid({**CLAIM, **changes})
    assert message in str(caught.value) and caught.value.found.startswith("a test: [[claims]]")


def test_only_a_grid_has_arms() -> None:
    search = {"lr": {"type": "float", "low": 0.1, "high": 0.2}}
    with pytest.raises(SettingsError, match="beside \\[sampler\\] kind = 'tpe'"):
        grid(CLAIM, search=search, sampler={"kind": "tpe"})
    with pytest.raises(SettingsError, match="in double brackets"):
        grid(claims={"text": "x"})


def row(psnr: float, loss: float) -> dict[str, float]:
    return {"val_psnr": psnr, "val_psnr_late": psnr - 1, "train_loss": loss}


def test_the_measures_of_a_run_are_those_of_its_curves() -> None:
    found = measures([row(20, 5), row(26, 1), row(24, 2)])
    assert found == {
        "final_psnr": 24,
        "best_psnr": 26,
        "late_psnr": 23,
        "loss": 2,
        "psnr_swing": 4,
        "loss_swing": 2.5,
    }
    assert "loss_swing" not in measures([row(20, 5)])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-100, 100), st.floats(0.1, 10))
def test_a_swing_is_moved_by_no_constant_and_scales_with_the_curve(
    curve: list[float], by: float, factor: float
) -> None:
    assert swing([value + by for value in curve]) == pytest.approx(swing(curve), abs=1e-9)
    assert swing([value * factor for value in curve]) == pytest.approx(factor * swing(curve), abs=1e-9)
    assert swing(curve) >= abs(curve[-1] - curve[0]) / (len(curve) - 1) - 1e-9
    assert math.isclose(swing(curve), swing(curve[::-1]))
