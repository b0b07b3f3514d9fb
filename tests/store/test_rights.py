"""Rights that the database takes away while a worker runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from cvaeopt.errors import StorageRefused
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from testbed.postgres import Postgres
from tests.support.fakes import FakeRun, Fakes, leases, make_study
from tests.support.waiting import until

pytestmark = pytest.mark.postgres
DATABASE, ROLE = "rights", "lab_member"


@pytest.fixture
def admin(postgres: Postgres, template_database: str) -> Iterator[Callable[[str], None]]:
    """Says something to the database as its owner; the role `ROLE` may do everything with its rows."""
    postgres.new_database(DATABASE, template_database)

    def say(statement: str) -> None:
        with psycopg.connect(postgres.url(DATABASE), autocommit=True) as connection:
            connection.execute(statement.encode())

    say(f"CREATE ROLE {ROLE} LOGIN")
    say(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}")
    say(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
    yield say
    say(f"DROP OWNED BY {ROLE}")
    say(f"DROP ROLE {ROLE}")
    postgres.drop_database(DATABASE)


@pytest.fixture
def storage(postgres: Postgres, admin: Callable[[str], None]) -> Iterator[Storage]:
    with closing(open_storage(postgres.url(DATABASE).replace("postgres@", f"{ROLE}@"))) as opened:
        yield opened


TAKEN = {
    "reports": f"REVOKE INSERT, UPDATE ON trial_intermediate_values FROM {ROLE}",
    "beats": f"REVOKE UPDATE ON cvaeopt_worker FROM {ROLE}",
    "reading": f"REVOKE SELECT ON trials FROM {ROLE}",
    "everything": f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {ROLE}",
}


@pytest.mark.parametrize("right", TAKEN)
def test_a_worker_that_loses_a_right_says_so_and_leaves_its_trial_to_others(
    right: str, storage: Storage, admin: Callable[[str], None], postgres: Postgres, tmp_path: Path
) -> None:
    def revoke(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            admin(TAKEN[right])
            if right == "beats":
                shared = running.reporter._shared
                running.reporter.show("running", "a beat that is refused")
                until(lambda: shared.trial is not None and shared.trial.failure is not None)

    def worker(store: Storage, fakes: Fakes) -> Worker:
        opened = make_study(store, trials=1)
        return Worker(opened, store, fakes, artifacts=tmp_path, timing=Timing(poll_s=0.05, ttl_s=1.0))

    running = worker(storage, Fakes(tmp_path, before_epoch=revoke))
    with pytest.raises(StorageRefused, match=r"refused: permission denied for table \w+\. Check .*rights") as caught:
        running.run()
    assert caught.value.exit_code == 2
    with closing(open_storage(postgres.url(DATABASE))) as owner:
        (lease,) = leases(owner)
        assert (lease.state, lease.attempt) == ("open", 1)
        if right != "everything":  # it may no longer write the lease
            assert lease.owner is None
        goes_on = Fakes(tmp_path)
        assert worker(owner, goes_on).run().kind == "finished"
        assert goes_on.runs[-1].trained[0] > 1  # from its checkpoint


@pytest.mark.parametrize("call", ["read", "transaction"])
def test_every_call_says_what_was_refused(call: str, storage: Storage, admin: Callable[[str], None]) -> None:
    make_study(storage)
    admin(TAKEN["everything"])
    with pytest.raises(StorageRefused, match="permission denied for table"):
        if call == "read":
            storage.get_all_studies()
        else:
            leases(storage)


def test_opening_without_rights_is_refused_at_once(
    storage: Storage, admin: Callable[[str], None], postgres: Postgres
) -> None:
    admin(TAKEN["everything"])
    with pytest.raises(StorageRefused, match="permission denied for table"):
        open_storage(postgres.url(DATABASE).replace("postgres@", f"{ROLE}@"), start_limit_s=1e9)
