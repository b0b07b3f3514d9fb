"""What becomes of the trials of a study that goes on under a changed definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, Trial, TrialState

from cvaeopt.errors import SettingsError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store import confirmation, extension
from cvaeopt.store.confirmation import register
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.roles import HISTORY
from cvaeopt.store.status import counts, status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, stored_definition

LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
CONSTANT = {"lr_scheduler": "constant", "kl_anneal_type": "none"}


def define(**tables: Any) -> Definition:
    """Five trials of four epochs; no schedule depends on the number of epochs."""
    given = {"budget": {"trials": 5, "epochs": 4}, "fixed": CONSTANT, "search": {"lr": LR}, **tables}
    return Definition.parse({"study": {"seed": 3}, "sampler": {"kind": "random"}, **given}, "main", "a test")


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url)) as opened:
        yield opened


def begin(storage: Storage, worker: str = "worker") -> tuple[Trial, Lease]:
    """The next trial under the study's newest version, with its settings chosen."""
    definition = stored_definition(storage, "main")
    study = create_or_open(storage, definition)
    lease = LeaseRegistry(storage, "main").claim(worker)
    assert isinstance(lease, Lease)
    study.get_trials()  # as a worker does: Optuna's cache of ids needs it
    trial = Trial(study, lease.trial_id)
    suggest(definition, trial)
    return trial, lease


def end(storage: Storage, trial: Trial, lease: Lease, value: float | None, epochs: int) -> None:
    """Report up to `epochs` epochs; a trial without a value is pruned."""
    registry = LeaseRegistry(storage, "main")
    for epoch in range(lease.epochs_done + 1, epochs + 1):
        registry.report(lease, epoch, (value or 0.0) - epochs + epoch)
    trial.study.tell(trial, value, TrialState.COMPLETE if value is not None else TrialState.PRUNED)
    registry.finish(lease, "complete" if value is not None else "pruned", "over", epochs)


def train(storage: Storage, *points: tuple[dict[str, Any], float | None]) -> None:
    """A study whose first trials have these settings and values."""
    definition = define(enqueue=[point for point, _ in points])
    create_or_open(storage, definition)
    for _, value in points:
        trial, lease = begin(storage)
        end(storage, trial, lease, value, definition.epochs if value is not None else 2)


def trials(storage: Storage) -> list[FrozenTrial]:
    found = storage.get_all_trials(storage.get_study_id_from_name("main"))
    return sorted(found, key=lambda trial: trial.number)


THREE = (({"lr": 1e-3}, 20.0), ({"lr": 5e-3}, 22.0), ({"lr": 9e-3}, None))


def test_a_wider_range_counts_every_trial_and_samplers_see_one_range(storage: Storage) -> None:
    train(storage, *THREE)
    wider = define(search={"lr": {**LR, "high": 1e-1}})
    done = extension.extend(storage, "main", wider, "anna@lab")
    assert (done.counts, done.history, done.continues) == (3, [], [])
    assert done.free == 2
    first, second, pruned = trials(storage)
    assert [one.distributions for one in (first, second, pruned)] == [
        {"lr": FloatDistribution(1e-4, 1e-1, log=True)}
    ] * 3
    assert [one.params["lr"] for one in (first, second, pruned)] == pytest.approx([1e-3, 5e-3, 9e-3])
    assert [one.state.name for one in (first, second, pruned)] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert (first.value, second.value) == (20.0, 22.0)
    assert status(storage, "main")["best"]["number"] == 1


def test_a_setting_that_was_fixed_has_its_value_in_the_old_trials(storage: Storage) -> None:
    train(storage, *THREE)
    tfr = {"type": "float", "low": 0.0, "high": 1.0}
    more = define(
        fixed=CONSTANT, search={"tfr": tfr, "lr": LR, "optim": {"type": "categorical", "choices": ["SGD", "Adam"]}}
    )
    assert extension.extend(storage, "main", more, "anna@lab").counts == 3
    assert [trial.params for trial in trials(storage)] == [
        {"tfr": 1.0, "lr": pytest.approx(lr), "optim": "Adam"} for lr in (1e-3, 5e-3, 9e-3)
    ]
    assert set(intersection_search_space(trials(storage))) == {"tfr", "lr", "optim"}  # TPE learns from all of them
    begin(storage)
    (*_, new) = trials(storage)
    assert set(new.params) == {"tfr", "lr", "optim"}
    # The next extension knows these trials by their new version.
    narrow = define(search={**more.plain()["search"], "tfr": {**tfr, "low": 0.5}}, budget={"trials": 9, "epochs": 4})
    done = extension.extend(storage, "main", narrow, "anna@lab")
    assert done.counts == 3 and done.open == [3]


def test_a_trial_outside_a_narrower_range_is_history_until_the_range_is_wide_again(storage: Storage) -> None:
    train(storage, *THREE)
    narrow = define(search={"lr": {**LR, "low": 2e-3, "high": 6e-3}})
    done = extension.extend(storage, "main", narrow, "anna@lab")
    assert done.counts == 1
    assert [one["number"] for one in done.history] == [0, 2]
    assert done.history[0]["reason"] == "lr = 0.001 is not in the range 0.002 to 0.006"
    assert [trial.state.name for trial in trials(storage)] == ["FAIL", "COMPLETE", "FAIL"]
    assert counts(storage, "main") == {
        "complete": 1, "pruned": 0, "running": 0, "waiting": 0, "failed": 0, "history": 2,
    }  # fmt: skip
    assert status(storage, "main")["failures"] == []
    assert done.free == 4  # history takes no place in the budget
    registry = LeaseRegistry(storage, "main")
    assert [isinstance(registry.claim(f"w{index}"), Lease) for index in range(5)] == [True] * 4 + [False]

    again = extension.extend(storage, "main", define(budget={"trials": 6, "epochs": 4}), "anna@lab")
    assert (again.counts, again.history, again.open) == (3, [], [3, 4, 5, 6])
    first, second, pruned, *_ = trials(storage)
    assert [one.state.name for one in (first, second, pruned)] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert (first.value, first.distributions) == (20.0, {"lr": FloatDistribution(1e-4, 1e-2, log=True)})
    assert HISTORY not in first.user_attrs
    assert isinstance(registry.claim("w9"), Idle)


def test_the_best_trial_is_never_one_of_history(storage: Storage) -> None:
    train(storage, *THREE)
    extension.extend(storage, "main", define(search={"lr": {**LR, "high": 2e-3}}), "anna@lab")
    assert status(storage, "main")["best"]["number"] == 0
    assert create_or_open(storage, stored_definition(storage, "main")).best_trial.number == 0


def test_more_epochs_continue_trials_whose_schedules_agree(storage: Storage) -> None:
    train(storage, *THREE)
    longer = define(budget={"trials": 5, "epochs": 6})
    done = extension.extend(storage, "main", longer, "anna@lab", lambda number: number == 1)
    # Trial 0 has no checkpoint any more: its curve is known, its value after six epochs is not. Its point comes again.
    assert (done.counts, done.continues, done.partial, done.history) == (1, [1], [0], [])
    assert done.queued == [{"lr": pytest.approx(1e-3)}]
    assert [trial.state.name for trial in trials(storage)] == ["PRUNED", "RUNNING", "PRUNED", "WAITING"]
    assert status(storage, "main")["best"] is None
    trial, lease = begin(storage)
    assert (lease.number, lease.epochs_done, lease.epochs, lease.version) == (1, 4, 6, 2)
    end(storage, trial, lease, 23.0, 6)
    assert status(storage, "main")["best"]["value"] == 23.0
    assert status(storage, "main")["epochs_spent"] == 4 + 6 + 2
    trial, lease = begin(storage)
    assert (lease.number, trial.params, lease.epochs) == (3, {"lr": pytest.approx(1e-3)}, 6)


def test_trials_continue_only_as_far_as_the_budget_of_epochs_reaches(storage: Storage) -> None:
    train(storage, *THREE)  # 4 + 4 + 2 epochs
    longer = define(budget={"total_epochs": 13, "epochs": 6})
    done = extension.extend(storage, "main", longer, "anna@lab", lambda number: True)
    assert (done.continues, done.partial) == ([1], [0])  # the leader first


def test_schedules_that_depend_on_the_epochs_make_history_and_the_leaders_come_again(storage: Storage) -> None:
    train(storage, *THREE)
    cosine = {"type": "categorical", "choices": ["constant", "cosine"]}
    both = define(fixed={"kl_anneal_type": "none"}, search={"lr": LR, "lr_scheduler": cosine})
    extension.extend(storage, "main", both, "anna@lab")
    study = create_or_open(storage, both)
    study.enqueue_trial({"lr": 2e-3, "lr_scheduler": "cosine"})
    trial, lease = begin(storage)
    end(storage, trial, lease, 25.0, 4)
    longer = define(fixed=both.fixed, search=both.plain()["search"], budget={"trials": 9, "epochs": 6})
    done = extension.extend(storage, "main", longer, "anna@lab", lambda number: True)
    assert done.continues == [0, 1] and done.counts == 1
    assert done.history == [{"number": 3, "reason": "lr of epoch 2 depends on the number of epochs", "epoch": 2}]
    assert done.queued == [{"lr": pytest.approx(2e-3), "lr_scheduler": "cosine"}]
    wider = {**longer.plain(), "search": {**both.plain()["search"], "lr": {**LR, "high": 1e-1}}}
    once_more = extension.plan(storage, "main", Definition.parse(wider, "main", "a test"))
    assert [one["number"] for one in once_more.history] == [3]
    assert once_more.queued == []  # a leader is queued only when it becomes history
    assert trials(storage)[3].user_attrs[HISTORY]["value"] == 25.0


def test_a_trial_that_ends_after_the_extension_gets_its_role_then(storage: Storage) -> None:
    train(storage, *THREE)
    trial, lease = begin(storage)
    longer = define(budget={"trials": 5, "epochs": 6})
    assert extension.extend(storage, "main", longer, "anna@lab", lambda number: True).open == [3]
    end(storage, trial, lease, 24.0, 4)
    assert trials(storage)[3].state == TrialState.RUNNING  # it waits for a worker that trains its last two epochs
    registry = LeaseRegistry(storage, "main")
    registry.finish(lease, "complete", "over", 4)  # an acknowledgement was lost, and the call is repeated
    numbers = {claimed.number for name in "abc" if isinstance(claimed := registry.claim(name), Lease)}
    assert numbers == {0, 1, 3}


def test_a_trial_that_was_left_goes_on_under_the_new_version_if_it_means_the_same(storage: Storage) -> None:
    create_or_open(storage, define(enqueue=[{"lr": 1e-3}, {"lr": 9e-3}]))
    registry = LeaseRegistry(storage, "main")
    for name in "ab":
        _, lease = begin(storage, name)
        registry.report(lease, 1, 20.0)
        registry.release(lease)
    narrow = define(budget={"trials": 5, "epochs": 6}, search={"lr": {**LR, "high": 2e-3}})
    done = extension.extend(storage, "main", narrow, "anna@lab")
    assert (done.continues, [one["number"] for one in done.history]) == ([0], [1])
    claimed = registry.claim("c")
    assert isinstance(claimed, Lease)
    assert (claimed.number, claimed.version, claimed.epochs, claimed.epochs_done) == (0, 2, 6, 1)
    following = registry.claim("d")
    assert isinstance(following, Lease) and following.number == 2


def test_a_point_that_waits_outside_the_new_range_is_not_trained(storage: Storage) -> None:
    create_or_open(storage, define(enqueue=[{"lr": 9e-3}, {"lr": 1e-3}]))
    done = extension.extend(storage, "main", define(search={"lr": {**LR, "high": 2e-3}}), "anna@lab")
    assert [one["number"] for one in done.history] == [0]
    assert begin(storage)[0].params == {"lr": pytest.approx(1e-3)}


def test_a_confirmation_of_fewer_epochs_is_not_one_of_the_longer_trials(storage: Storage) -> None:
    train(storage, *THREE)
    register(storage, confirmation.plan(storage, "main", top=1, seeds=1))
    assert [one.name for one in confirmation.confirmations(storage, define())] == ["main.confirm"]
    more = define(budget={"trials": 9, "epochs": 4})
    extension.extend(storage, "main", more, "anna@lab")
    assert [one.name for one in confirmation.confirmations(storage, more)] == ["main.confirm"]
    longer = define(budget={"trials": 9, "epochs": 6})
    extension.extend(storage, "main", longer, "anna@lab", lambda number: True)
    assert confirmation.confirmations(storage, longer) == []
    trial, lease = begin(storage)
    end(storage, trial, lease, 23.0, 6)
    planned = confirmation.plan(storage, "main", top=1, seeds=1)
    assert planned.definition is not None
    assert (planned.definition.name, planned.epochs, planned.registered) == ("main.confirm-2", 6, ())


BOTH = {"lr": LR, "optim": {"type": "categorical", "choices": ["Adam", "SGD"]}}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"study": {"seed": 4}}, r"\[study\] seed changes from 3 to 4"),
        ({"study": {"seed": 3, "window": 2}}, r"\[study\] window changes from 1 to 2"),
        ({"fixed": {**CONSTANT, "F_dim": 64}}, r"\[fixed\] F_dim changes from 128 to 64"),
        ({"fixed": {**CONSTANT, "partial": 0.5}}, r"\[fixed\] partial changes from 1.0 to 0.5"),
        ({"budget": {"trials": 5, "epochs": 3}}, r"\[budget\] epochs changes from 4 to 3"),
        ({"search": {**BOTH, "lr": {**LR, "log": False}}}, r"\[search\] lr changes from a log scale to a linear scale"),
        (
            {"search": {**BOTH, "optim": {"type": "categorical", "choices": ["Adam", "SGD", "AdamW"]}}},
            r"\[search\] optim changes from one of 'Adam', 'SGD' to one of 'Adam', 'SGD', 'AdamW'",
        ),
        ({"search": {"lr": LR}}, r"\[search\] optim changes from one of 'Adam', 'SGD' to a fixed value"),
        ({"warm_start": {"study": "old"}}, r"\[warm_start\] changes from no table to study = 'old', top = 5"),
    ],
)
def test_what_would_make_trials_incomparable_is_refused_by_name(
    template_file: Any, tmp_path: Any, changed: dict[str, Any], named: str
) -> None:
    (tmp_path / "x.db").write_bytes(template_file.read_bytes())
    with closing(open_storage(f"sqlite:///{tmp_path}/x.db")) as storage:
        create_or_open(storage, define(search=BOTH))
        with pytest.raises(SettingsError, match=named) as refused:
            extension.extend(storage, "main", define(**{"search": BOTH, **changed}), "anna@lab")
        assert "new name" in refused.value.todo or "[[enqueue]]" in refused.value.todo
        assert len(status(storage, "main")["versions"]) == 1
