"""Studies in the storage: created once, verified, counted; on every SQL back end."""

from __future__ import annotations

import json
import os
import signal

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import select, update

from cvaeopt.errors import StudyError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store import study as module
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.ranking import ranked
from cvaeopt.store.status import counts, status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, open_existing, record_facts
from cvaeopt.store.tables import study_table
from cvaeopt.store.workers import Place
from tests.support.fakes import expire
from tests.support.processes import context

POINTS = [{"lr": 1e-3, "tfr": 0.8}, {"lr": 1e-3, "tfr": 0.0}, {"tfr": 1.0}]


def define(name="main", **changes):
    tables = {
        "study": {"seed": 7},
        "budget": {"trials": 8, "epochs": 10, "total_epochs": 70, "wall_clock_h": 2.0},
        "search": {
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "tfr": {"type": "float", "low": 0.0, "high": 1.0},
        },
        "enqueue": POINTS,
    }
    return Definition.parse(tables | changes, name, f"studies/{name}.toml")


def test_a_warm_start_runs_the_best_points_of_an_earlier_study_that_fit(storage):
    old = create_or_open(storage, define("old", enqueue=[], fixed={"kl_norm": "element"}))
    results = [({"lr": 2e-3, "tfr": 0.9}, 25.0), ({"lr": 3e-3, "tfr": 0.1}, 27.0), ({"lr": 9e-3, "tfr": 0.5}, 29.0)]
    for point, value in [*results, results[1]]:
        old.add_trial(
            optuna.trial.create_trial(
                value=value,
                params=point,
                distributions={
                    "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
                    "tfr": optuna.distributions.FloatDistribution(0, 1),
                },
            )
        )
    search = {
        "lr": {"type": "float", "low": 1e-4, "high": 5e-3, "log": True},
        "tfr": {"type": "float", "low": 0.0, "high": 1.0},
        "kl_norm": {"type": "categorical", "choices": ["batch", "element"]},
    }
    changes = {"search": search, "enqueue": [{"tfr": 0.0}], "warm_start": {"study": "old", "top": 2}}
    new = create_or_open(storage, define("new", **changes))
    # The best trial's lr is out of range here; kl_norm was fixed there; the repeated point counts once.
    assert waiting(new) == [
        {"tfr": 0.0},
        {"tfr": 0.5, "kl_norm": "element"},
        {"lr": 3e-3, "tfr": 0.1, "kl_norm": "element"},
    ]
    create_or_open(storage, define("new", **changes))
    assert len(waiting(new)) == 3
    assert define("new", **changes).digest() != define("new", search=search, enqueue=[{"tfr": 0.0}]).digest()


def test_a_warm_start_from_an_unknown_study_says_which_there_are(storage):
    create_or_open(storage, define("old"))
    with pytest.raises(StudyError, match=r"has no study 'odl'\. Did you mean 'old'"):
        create_or_open(storage, define("new", warm_start={"study": "odl"}))


def grid(name="grid"):
    tables = {
        "budget": {"trials": 4, "epochs": 3},
        "search": {
            "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "none"]},
            "kl_anneal_cycle": {"type": "int", "low": 1, "high": 3, "when": {"kl_anneal_type": ["cyclical"]}},
        },
        "sampler": {"kind": "grid"},
    }
    return Definition.parse(tables, name, "studies/grid.toml")


@pytest.fixture
def storage(storage_url):
    with open_storage(storage_url) as opened:
        yield opened


def waiting(study):
    return [trial.system_attrs["fixed_params"] for trial in study.get_trials(states=(TrialState.WAITING,))]


def rows(storage):
    with storage.transaction() as connection:
        return [dict(row) for row in connection.execute(select(study_table)).mappings()]


def test_a_new_study_holds_its_definition_its_budget_and_its_points(storage):
    definition = define()
    study = create_or_open(storage, definition)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.metric_names == ["val_psnr"]
    assert waiting(study) == POINTS
    (row,) = rows(storage)
    assert (row["name"], row["digest"], row["seed"]) == ("main", definition.digest(), 7)
    assert (row["trials"], row["epochs"], row["total_epochs"], row["wall_clock_s"]) == (8, 10, 70, 7200.0)
    assert json.loads(row["facts"]) == {}


def test_opening_again_changes_nothing(storage):
    first = create_or_open(storage, define())
    before = rows(storage)
    second = create_or_open(storage, define(study={"seed": 7, "description": "other words"}))
    assert second._study_id == first._study_id
    assert len(second.get_trials()) == 3
    assert rows(storage) == before


def test_enqueued_points_run_first_and_once(storage):
    definition = define()
    study = create_or_open(storage, definition)
    configs = [suggest(definition, study.ask()) for _ in range(4)]
    assert [config.tfr for config in configs[:3]] == [0.8, 0.0, 1.0]
    assert configs[0].lr == configs[1].lr == 1e-3
    assert create_or_open(storage, definition).get_trials(states=(TrialState.WAITING,)) == []


def test_another_definition_under_the_same_name_is_refused_with_both_digests(storage):
    create_or_open(storage, define())
    other = define(study={"seed": 8})
    with pytest.raises(StudyError) as caught:
        create_or_open(storage, other)
    message = str(caught.value)
    assert f"(stored {define().digest()}, file {other.digest()})" in message
    assert "Restore main.toml or create the study under a new name." in message
    assert len(rows(storage)) == 1


def test_a_study_is_opened_by_name_with_the_definition_it_was_made_from(storage):
    definition = define(service={"keep_best": 2})
    create_or_open(storage, definition)
    study, stored = open_existing(storage, "main")
    assert study.study_name == "main"
    assert stored.digest() == definition.digest()
    assert stored.service.keep_best == 5  # [service] belongs to the place, not to the study
    assert list(stored.search) == ["lr", "tfr"]


def test_an_unknown_study_is_answered_with_the_nearest(storage):
    with pytest.raises(StudyError, match="It has no study yet"):
        open_existing(storage, "main")
    create_or_open(storage, define())
    create_or_open(storage, grid())
    for ask in (open_existing, status, counts):
        with pytest.raises(StudyError, match=r"has no study 'mian'\. Did you mean 'main'\?"):
            ask(storage, "mian")
    with pytest.raises(StudyError, match="There are: grid, main"):
        open_existing(storage, "'; drop table studies; --")
    assert len(rows(storage)) == 2


def test_a_study_of_another_program_is_left_alone(storage):
    theirs = optuna.create_study(study_name="main", storage=storage)
    theirs.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(StudyError, match="that another program made"):
        create_or_open(storage, define())
    assert len(theirs.get_trials()) == 1
    assert rows(storage) == []


def test_a_study_deleted_in_the_dashboard_is_made_anew(storage):
    create_or_open(storage, define())
    LeaseRegistry(storage, "main").claim("worker")
    optuna.delete_study(study_name="main", storage=storage)
    with pytest.raises(StudyError, match="has no study 'main'"):
        open_existing(storage, "main")
    again = create_or_open(storage, define(study={"seed": 8}))
    assert waiting(again) == POINTS
    assert [(row["study_id"], row["seed"]) for row in rows(storage)] == [(again._study_id, 8)]
    assert open_existing(storage, "main")[1].seed == 8
    leases = [LeaseRegistry(storage, "main").claim(f"worker {number}") for number in range(7)]
    assert [lease.slot for lease in leases] == list(range(7))  # the old study's leases are gone


def test_a_creator_that_fails_half_way_leaves_nothing_and_the_next_one_completes(storage, monkeypatch):
    made = Storage._get_prepared_new_trial

    def fail_at_the_second(self, study_id, template, session):
        if template.system_attrs[module.ENQUEUED] == 1:
            raise KeyboardInterrupt
        return made(self, study_id, template, session)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Storage, "_get_prepared_new_trial", fail_at_the_second)
        create_or_open(storage, define())
    assert rows(storage) == []
    assert waiting(create_or_open(storage, define())) == POINTS


def test_a_grid_s_points_all_wait_and_are_each_taken_once(storage):
    definition = grid()
    studies = [create_or_open(storage, definition) for _ in range(3)]
    configs = [suggest(definition, studies[number % 3].ask()) for number in range(4)]
    assert [(config.kl_anneal_type, config.kl_anneal_cycle) for config in configs] == [
        ("cyclical", 1),
        ("cyclical", 2),
        ("cyclical", 3),
        ("none", 10),
    ]
    with pytest.raises(StudyError, match="every point of its grid was taken"):
        suggest(definition, studies[0].ask())


def _create(url, start, suicide):
    start.wait()
    with open_storage(url) as storage:
        if suicide:  # killed with the row and some of the points written, but not committed
            made = Storage._get_prepared_new_trial

            def killed(self, study_id, template, session):
                if template.system_attrs[module.ENQUEUED] == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return made(self, study_id, template, session)

            Storage._get_prepared_new_trial = killed
        create_or_open(storage, define())


@pytest.mark.slow
def test_many_creators_some_of_them_killed_make_one_study_with_each_point_once(storage_url):
    start = context.Event()
    workers = [
        context.Process(target=_create, args=(storage_url, start, number < 2), daemon=True) for number in range(5)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[2:]] == [0, 0, 0]
    with open_storage(storage_url) as storage:
        study, _ = open_existing(storage, "main")
        assert waiting(study) == POINTS
        assert [trial.number for trial in study.get_trials()] == [0, 1, 2]
        assert len(rows(storage)) == 1


def test_status_is_what_the_command_line_promises(storage):
    definition = define(
        budget={"trials": 8, "epochs": 10, "total_epochs": 70, "wall_clock_h": 2.0, "patience_trials": 40}
    )
    study = create_or_open(storage, definition)
    values = [21.0, 24.123456, 30.0, None, None, None]
    for number, value in enumerate(values):
        trial = study.ask()
        suggest(definition, trial)
        for epoch in range(1, 4 + number):
            trial.report(20.0 + epoch, epoch)
        if number == 2:  # the highest value, but its settings cannot be trained again
            trial.set_constraint("out_of_memory", 1.0)
        if number == 3:
            trial.set_user_attr("reason", "train_loss became nan in epoch 7.")
            trial.set_user_attr("failed", "diverged")
        if value is not None:
            study.tell(trial, value)
        elif number in (3, 4):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, state=TrialState.FAIL)
    study.ask()
    study.enqueue_trial({"tfr": 0.3})
    with storage.transaction() as connection:
        facts = {"baselines": {"copy_first": 24.1037, "train_mean": 21.9}, "data_digest": "x"}
        connection.execute(update(study_table).values(facts=json.dumps(facts), stopped_reason="asked to stop"))
    found = status(storage, "main")
    assert json.loads(json.dumps(found)) == found
    assert found == {
        "study": "main",
        "storage": storage.url,
        "direction": "maximize",
        "metric": "val_psnr",
        "budget": {
            "trials": 8,
            "epochs": 10,
            "total_epochs": 70,
            "wall_clock_h": 2.0,
            "target_db": None,
            "patience_trials": 40,
        },
        "trials": {"complete": 3, "pruned": 1, "running": 1, "waiting": 1, "failed": 2},
        "open_trials": [],
        "epochs_spent": 3 + 4 + 5 + 6 + 7 + 8,
        "best": {"number": 1, "value": 24.1235, "params": {"lr": 1e-3, "tfr": 0.0}},
        "versions": [
            {
                "version": 1,
                "digest": definition.digest(),
                "before": None,
                "by": None,
                "at": rows(storage)[0]["created_at"],
                "changes": [],
            }
        ],
        "baselines": {"copy_first": 24.1, "train_mean": 21.9},
        "last": {"number": 5, "state": "failed", "value": None, "reason": ""},
        "failures": [
            {"number": 3, "reason": "train_loss became nan in epoch 7."},
            {"number": 5, "reason": "unknown"},
        ],
        "stopped": "asked to stop",
        "over": True,
        "stopped_by_hand": [],
        "workers": [],
    }
    assert counts(storage, "main") == found["trials"]
    assert ranked(study.trials)[0].number == 1


def test_the_first_worker_measures_the_baselines_and_other_data_are_refused(storage):
    create_or_open(storage, define())
    facts = record_facts(storage, "main", "abc", lambda: {"copy_first": 24.0})
    assert facts == {"data_digest": "abc", "baselines": {"copy_first": 24.0}}

    def never():
        raise AssertionError("measured twice")

    assert record_facts(storage, "main", "abc", never) == facts
    with pytest.raises(StudyError, match=r"other data \(stored abc, here xyz\)"):
        record_facts(storage, "main", "xyz", never)
    assert status(storage, "main")["baselines"] == {"copy_first": 24.0}


def test_of_two_workers_that_measure_at_once_the_first_to_finish_counts(storage):
    create_or_open(storage, define())

    def overtaken():
        record_facts(storage, "main", "abc", lambda: {"copy_first": 24.0})
        return {"copy_first": 25.0}

    assert record_facts(storage, "main", "abc", overtaken)["baselines"] == {"copy_first": 24.0}


def test_a_trial_without_a_worker_is_waiting(storage):
    create_or_open(storage, define())
    registry = LeaseRegistry(storage, "main", ttl_s=3600)
    held, silent, left = (registry.claim(worker) for worker in "abc")

    def shown():
        trials = status(storage, "main")["trials"]
        assert counts(storage, "main") == trials
        return trials["running"], trials["waiting"]

    assert shown() == (3, 0)
    registry.release(left)
    expire(storage, silent.slot)
    assert shown() == (1, 2)
    registry.release(held)
    assert shown() == (0, 3)
    assert registry.claim("d").number == held.number
    assert shown() == (1, 2)


@pytest.mark.parametrize(
    ("budget", "stopped"),
    [
        ({"trials": 1, "epochs": 3}, None),
        ({"trials": 2, "epochs": 3}, "asked to stop"),
        ({"total_epochs": 5, "epochs": 3}, None),
        ({"total_epochs": 6, "epochs": 3}, "asked to stop"),
    ],
)
def test_a_study_that_met_its_budget_was_not_stopped(storage, budget, stopped):
    study = create_or_open(storage, define(budget=budget, enqueue=[]))
    registry = LeaseRegistry(storage, "main")
    lease = registry.claim("a")
    for epoch in range(1, 4):
        registry.report(lease, epoch, 20.0)
    with storage.transaction() as connection:
        connection.execute(update(study_table).values(stopped_reason="asked to stop"))
    assert status(storage, "main")["stopped"] == "asked to stop"
    study.tell(lease.number, 20.0)
    registry.finish(lease, "complete", "", 3)
    assert status(storage, "main")["stopped"] == stopped


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": {"trials": 9, "epochs": 10}}, "budget.trials: stored 8, file 9"),
        ({"enqueue": POINTS[:2]}, "enqueue.2.tfr: stored 1.0, file nothing."),
        ({"study": {"seed": 8, "description": "x"}}, "study.seed: stored 7, file 8."),
    ],
)
def test_another_definition_is_refused_with_what_differs(storage, changes, said):
    create_or_open(storage, define())
    with pytest.raises(StudyError) as caught:
        create_or_open(storage, define(**changes))
    assert said in str(caught.value)
    assert "description" not in str(caught.value)


def test_of_many_differences_three_are_named_and_a_new_order_is_one(storage):
    first = define()
    create_or_open(storage, first)
    with pytest.raises(StudyError, match=r"; and \d more\."):
        create_or_open(storage, define(study={"seed": 8}, budget={"trials": 1, "epochs": 1}, enqueue=[]))
    reverse = dict(reversed(first.plain()["search"].items()))
    with pytest.raises(StudyError, match="in another order"):
        create_or_open(storage, define(search=reverse))


def test_a_new_study_has_no_best(storage):
    study = create_or_open(storage, define())
    assert ranked(study.trials) == []
    found = status(storage, "main")
    assert found["best"] is None
    assert found["trials"] == {"complete": 0, "pruned": 0, "running": 0, "waiting": 3, "failed": 0}
    assert (found["epochs_spent"], found["failures"], found["baselines"]) == (0, [], {})


def test_the_earliest_of_equal_trials_is_the_best_and_infinity_is_none(storage):
    study = create_or_open(storage, define())
    for value in (1.0, 2.0, 2.0, float("inf")):
        study.tell(study.ask(), value)
    assert ranked(study.trials)[0].number == 1
    assert status(storage, "main")["best"]["number"] == 1


def test_status_lists_the_workers_of_its_study(storage):
    create_or_open(storage, define())
    create_or_open(storage, grid())
    for name in ("main", "grid"):
        LeaseRegistry(storage, name).register(f"{name}-worker", Place.here(), "cpu")
    (worker,) = status(storage, "main")["workers"]
    assert list(worker) == ["id", "host", "device", "state", "trial", "epoch", "beat_age_s", "takeover_s"]
    assert (worker["id"], worker["device"], worker["trial"]) == ("main-worker", "cpu", None)
    assert 0 <= worker["beat_age_s"] < 30


def test_status_needs_no_more_queries_for_more_trials(storage):
    from sqlalchemy import event

    study = create_or_open(storage, define())
    queries = []
    event.listen(storage.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))

    def asked():
        queries.clear()
        status(storage, "main")
        return len(queries)

    study.tell(study.ask(), 1.0)
    few = asked()
    for value in range(20):
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, float(value))
    assert asked() == few
    assert few < 30
