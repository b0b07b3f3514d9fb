"""The best trial is the same one for the database, for Optuna's trials and for the facts of a report."""

from __future__ import annotations

import math
import random

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from cvaeopt.outcome.trials import best_of, facts
from cvaeopt.store.opening import open_storage
from cvaeopt.store.optuna_private import id_of
from cvaeopt.store.ranking import best_row, best_rows, progress, ranked
from tests.support.fakes import make_study


def drawn(draw: random.Random) -> FrozenTrial:
    """A finished trial; values repeat, some are infinite and some constraints are violated."""
    state = draw.choice([TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
    value = draw.choice([25.0, 26.0, 26.5, math.inf, -math.inf])
    violated = {"constraints:diverged": draw.choice([0.0, 0.0, 1.0]), "constraints:crashed": 0.0}
    older = {"constraints": [draw.choice([0.0, 2.0])]}  # as Optuna 4 writes them
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        system_attrs=draw.choice([{}, violated, older]),
    )


@pytest.mark.parametrize("seed", range(6))
def test_every_way_to_the_best_trial_leads_to_the_same(ready_url: str, seed: int) -> None:
    draw = random.Random(seed)
    with open_storage(ready_url) as storage:
        make_study(storage, "other").add_trial(create_trial(value=99.0))
        study = make_study(storage)
        study.add_trials([drawn(draw) for _ in range(seed * 3)])
        best = next(iter(ranked(study.trials)), None)
        with storage.reading() as connection:
            row = best_row(connection, id_of(study))
            several = [one.number for one in best_rows(connection, id_of(study), 3)]
            value, since = progress(connection, id_of(study))
        assert several == [trial.number for trial in ranked(study.trials)[:3]]
        known = best_of(facts(study.trials))
        if best is None:
            assert (row, value, known) == (None, None, None)
            assert since == len(study.trials)
            return
        assert row is not None and known is not None
        assert (row.number, row.value) == (best.number, best.value) == (known.number, known.value)
        assert (value, since) == (best.value, len(study.trials) - 1 - best.number)
        others = [trial for trial in study.trials if trial.number != best.number]
        assert all(trial.number > best.number for trial in ranked(others) if trial.value == best.value)
