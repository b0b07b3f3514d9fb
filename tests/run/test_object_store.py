from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch

from cvaeopt.errors import CheckpointError, UserError
from cvaeopt.run.object_store import Checkpoints, open_checkpoints
from cvaeopt.run.objective import Objective
from cvaeopt.run.retention import tidy
from cvaeopt.run.study_objects import parse
from cvaeopt.store import identity
from cvaeopt.store.opening import open_storage
from cvaeopt.vae import checkpoint
from testbed.tiny import DATA, definition, new_study
from tests.support.command import Shop
from tests.support.held import Gate
from tests.support.s3 import BUCKET, S3, SECRET
from tests.support.waiting import LONG_S, until

pytestmark = pytest.mark.usefixtures("uncharted_module", "warm")

URL = f"s3://{BUCKET}/lab"
ROOT = Path(__file__).parents[2]
EPOCHS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    made = S3.launch()
    yield made
    made.stop()


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket that this process may use."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.clear()
    return server


@pytest.fixture
def remote(s3: S3) -> Iterator[Checkpoints]:
    made = Checkpoints(URL, s3.own, retry_s=0.05)
    yield made
    made.close(5.0)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: they take longer than everything else here."""
    monkeypatch.setattr("cvaeopt.run.trial_run.trial_artifacts", lambda *_, **__: [])


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/a/b/", ("bucket", "a/b")),
    ],
)
def test_a_url_names_bucket_and_prefix(url: str, parts: tuple[str, str]) -> None:
    assert parse(url) == parts


@pytest.mark.parametrize("url", ["bucket/a", "s3://", "s3:///a", "gs://bucket", f"s3://key:{SECRET}@bucket/a"])
def test_anything_else_is_the_users_error_and_shows_no_secret(url: str) -> None:
    with pytest.raises(UserError, match="Expected: s3://BUCKET") as caught:
        open_checkpoints(url)
    assert SECRET not in str(caught.value)


def test_without_boto3_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"pip install 'cvaeopt\[s3\]'"):
        open_checkpoints(URL)


def test_a_bucket_that_does_not_exist_is_the_users_error(s3: S3) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket cannot be used \(.*NoSuchBucket"):
        open_checkpoints("s3://no-such-bucket").check()
    assert open_checkpoints(URL).check() == ""


def test_a_store_that_is_away_is_no_error_of_the_user(s3: S3) -> None:
    remote = Checkpoints(URL, s3.own)
    with s3.away():
        assert "127.0.0.1" in remote.check()
    assert remote.check() == ""


def test_missing_credentials_are_the_users_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where boto3 looks for files
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Nothing listens here, and nothing is sent: a request is signed before a connection is made.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"s3://studies/lab cannot be used \(Unable to locate credentials\)"):
        open_checkpoints(URL).check()


def test_an_object_is_what_the_file_held_when_it_was_offered(remote: Checkpoints, s3: S3, tmp_path: Path) -> None:
    path = tmp_path / "last.3.pt"
    path.write_bytes(b"first")
    remote.offer("main", 7, 3, path)
    path.unlink()
    assert remote.flush(LONG_S)
    assert s3.keys() == ["lab/main/00007/last.3.pt"]
    (fetched,) = remote.fetch("main", 7, tmp_path)
    assert (fetched.name, fetched.read_bytes()) == ("last.3.remote.pt", b"first")
    assert remote.fetch("main", 7, tmp_path, known="last.3.pt") == []
    assert remote.fetch("main", 8, tmp_path) == []


def test_an_owner_deletes_what_earlier_owners_stored_and_never_a_later_ones(
    remote: Checkpoints, s3: S3, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"x")
    for token in (2, 10, 9):  # 9 was asleep while 10 took over
        remote.offer("main", 0, token, path)
        assert remote.flush(LONG_S)
    assert s3.keys() == ["lab/main/00000/last.10.pt", "lab/main/00000/last.9.pt"]
    assert remote.download("main", 0, tmp_path / "last.pt").read_bytes() == b"x"


def test_a_store_that_goes_away_is_said_once_and_gets_the_newest_when_it_is_back(
    remote: Checkpoints, s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.1.pt"
    with s3.away():
        for epoch in range(4):
            path.write_bytes(f"epoch {epoch}".encode())
            remote.offer("main", 0, 1, path)
            until(lambda epoch=epoch: remote._failures > epoch)  # type: ignore[misc]
        assert not remote.flush(LONG_S)  # at once: the store fails
        assert remote.fetch("main", 0, tmp_path) == []
    until(lambda: not remote._pending and not remote._failing)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text for text in said if "cannot be stored" in text] == said[:1]
    assert "Training goes on" in said[0]
    assert said[-1].endswith("answers again; checkpoints are stored there again.")
    assert SECRET not in " ".join(said)
    assert remote.download("main", 0, tmp_path / "got.pt").read_bytes() == b"epoch 3"


def test_what_is_in_no_store_is_said(remote: Checkpoints, s3: S3, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="main/00004 holds no checkpoint"):
        remote.download("main", 4, tmp_path / "last.pt")
    with s3.away(), pytest.raises(CheckpointError, match="cannot be read"):
        remote.download("main", 4, tmp_path / "last.pt")
    assert not (tmp_path / "last.pt").exists()


def test_a_trial_goes_on_where_another_machine_left_it_bit_for_bit(remote: Checkpoints, tmp_path: Path) -> None:
    study = new_study()
    trial = study.ask()
    first = Objective(definition(), DATA, artifacts=tmp_path / "a", remote=remote).open(trial, token=1)
    for result in first.run():
        first.save()
        if result.epoch == 2:
            break
    first.settle()
    shutil.rmtree(tmp_path / "a")
    second = Objective(definition(), DATA, artifacts=tmp_path / "b", remote=remote).open(trial, token=2)
    assert second.epoch == 2
    for _ in second.run():
        second.save()
    second.settle()
    assert [path.name for path in second.folder.root.glob("last*.pt")] == ["last.2.pt"]
    assert trial.user_attrs["checkpoints"] == f"{URL}/{identity.of(study).objects}/00000"

    whole = Objective(definition(), DATA, artifacts=tmp_path / "c").open(new_study().ask(), token=1)
    list(whole.run())
    assert second.final_value() == whole.final_value()
    mine, theirs = second.trainer.model.state_dict(), whole.trainer.model.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_newest_that_is_whole_and_of_this_run_wins(remote: Checkpoints, s3: S3, tmp_path: Path) -> None:
    study = new_study()
    trial = study.ask()
    run = Objective(definition(), DATA, artifacts=tmp_path / "a", remote=remote).open(trial, token=1)
    next(run.run())
    run.save()
    run.settle()
    # What another study, and a broken upload, have left there under later tokens.
    mine = identity.of(study).objects
    other = Objective(definition(study={"seed": 8}), DATA, artifacts=tmp_path / "x").open(new_study().ask(), token=5)
    list(other.run())
    other.save()
    for token, content in ((5, other._checkpoint.read_bytes()), (6, other._checkpoint.read_bytes()[:999])):
        s3.own.put_object(Bucket=BUCKET, Key=f"lab/{mine}/00000/last.{token}.pt", Body=content)
    again = Objective(definition(), DATA, artifacts=tmp_path / "b", remote=remote).open(trial, token=7)
    assert again.epoch == 1
    assert again.resumed_from is not None and again.resumed_from.name == "last.1.remote.pt"


@pytest.mark.usefixtures("plain")
def test_losing_trials_are_tidied_in_the_store_as_on_the_disk(remote: Checkpoints, s3: S3, tmp_path: Path) -> None:
    study = new_study()
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path, remote=remote), n_trials=3)
    best = max(study.trials, key=lambda trial: trial.values[0]).number
    running = study.ask()
    mine = identity.of(study).objects
    remote.offer(mine, running.number, 1, tmp_path / "tiny" / f"{best:05d}" / "last.pt")
    tidy(study, tmp_path, 1, remote)
    assert remote.flush(LONG_S)
    assert s3.keys() == [f"lab/{mine}/{best:05d}/last.0.pt", f"lab/{mine}/{running.number:05d}/last.1.pt"]


@pytest.mark.usefixtures("plain")
def test_a_store_that_is_away_costs_no_trial(s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remote = Checkpoints(URL, s3.own, retry_s=0.05)
    study = new_study()
    with s3.away():
        study.optimize(Objective(definition(), DATA, artifacts=tmp_path, remote=remote), n_trials=2)
        assert not remote.close(0.1)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert len([record for record in caplog.records if "cannot be stored" in record.getMessage()]) == 1


# ---- two machines that share a database and a bucket, and no folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop.new(tmp_path_factory.mktemp("shop") / "x")
    text = (made.root / "studies" / "tiny.toml").read_text()
    text = text.replace("epochs = 1", f"epochs = {EPOCHS}").replace("trials = 2", "trials = 1")
    text = text.replace("[fixed]", "[fixed]\nframe_H = 8\nframe_W = 16\ntrain_vi_len = 4")
    (made.root / "studies" / "tiny.toml").write_text(text)
    return made


class Machine:
    """Workers with an artifact folder of their own."""

    def __init__(self, shop: Shop, folder: Path, name: str, **environment: str) -> None:
        self.artifacts = folder / name
        self._shop = shop
        self._words = ["worker", "--study", "tiny", "--storage", f"sqlite:///{folder}/x.db"]
        self._words += ["--artifacts", str(self.artifacts), "--threads", "1"]
        self._environment = environment

    def start(self, gate: Gate) -> subprocess.Popen[str]:
        """A worker process that waits at the gate after its first epoch."""
        given = {"DATA": str(self._shop.data), "GPU": "cpu", **self._environment}
        return subprocess.Popen(
            [sys.executable, "-m", "cvaeopt.cli", *self._words],
            cwd=self._shop.root,
            env={**os.environ, **gate.environment, **{f"CVAEOPT_{key}": value for key, value in given.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def work(self) -> str:
        """What a worker says that runs to the study's end, in this process."""
        said = self._shop.run(*self._words, **self._environment)
        assert said.code == 0, said.err
        return said.text


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.read(path)["state_dict"]
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_a_trial_of_a_machine_that_died_goes_on_on_another_from_the_store(s3: S3, shop: Shop, tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    a = Machine(shop, two, "a", CHECKPOINTS=URL)
    first = a.start(Gate.new(tmp_path / "gate"))
    until(s3.keys, first)
    first.send_signal(signal.SIGKILL)
    said = first.communicate()[0]
    assert first.returncode == -signal.SIGKILL, said
    shutil.rmtree(a.artifacts)

    b = Machine(shop, two, "b", CHECKPOINTS=URL)
    said += b.work()
    assert "first epoch" not in said
    assert len((b.artifacts / "tiny" / "00000" / "history.jsonl").read_text().splitlines()) == EPOCHS
    alone = Machine(shop, tmp_path, "alone")
    alone.work()
    curves, objects = [], []
    for one in (two, tmp_path):
        with open_storage(f"sqlite:///{one}/x.db") as storage:
            study = optuna.load_study(study_name="tiny", storage=storage)
            curves.append(study.trials[0].intermediate_values)
            objects.append(identity.of(study).objects)
    assert curves[0] == curves[1]
    mine = weights(b.artifacts / "tiny" / "00000" / "last.pt")
    theirs = weights(alone.artifacts / "tiny" / "00000" / "last.pt")
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert s3.keys() == [f"lab/{objects[0]}/00000/last.2.pt"]
    assert SECRET not in said
    assert "AKIDNOTSHOWN" not in said

    # And a third machine fetches what the second one finished.
    url = f"sqlite:///{two}/x.db"
    third = tmp_path / "third"
    got = shop.run("fetch", "--study", "tiny", "--artifacts", third, STORAGE=url)
    assert (got.code, got.out.strip()) == (0, str(third / "tiny" / "00000" / "last.pt")), got.err
    fetched = weights(third / "tiny" / "00000" / "last.pt")
    assert all(torch.equal(fetched[key], theirs[key]) for key in theirs)
    s3.clear()
    assert shop.run("fetch", "--study", "tiny", "--artifacts", third, STORAGE=url).code == 0  # it is here
    gone = shop.run("fetch", "--study", "tiny", "--artifacts", tmp_path / "fourth", STORAGE=url)
    assert (gone.code, "holds no checkpoint" in gone.text) == (2, True)
    assert not (tmp_path / "fourth").exists()
    wrong = shop.run("fetch", "--study", "tiny", "--trial", "3", STORAGE=url)
    assert (wrong.code, "no trial 3 that is complete. Complete: 0" in wrong.text) == (2, True)
    secretive = shop.run("worker", "--study", "tiny", "--checkpoints", f"s3://key:{SECRET}@bucket", STORAGE=url)
    assert (secretive.code, SECRET in secretive.text) == (2, False)


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_machines_that_share_neither_folder_nor_store_say_that_a_trial_starts_again(shop: Shop, tmp_path: Path) -> None:
    a = Machine(shop, tmp_path, "a")
    gate = Gate.new(tmp_path / "gate")
    first = a.start(gate)
    until(gate.held, first)
    first.send_signal(signal.SIGTERM)  # in order: the release says which epoch was saved
    gate.open()
    assert first.communicate()[0]
    assert first.returncode == 0
    said = Machine(shop, tmp_path, "b").work()
    assert "Trial 0: it starts again from its first epoch. The checkpoint of epoch" in said
    assert "an object store (--checkpoints)" in said
    storage = f"sqlite:///{tmp_path}/x.db"
    missing = shop.run("fetch", "--study", "tiny", "--artifacts", tmp_path / "c", STORAGE=storage)
    assert missing.code == 2
    assert "is not in" in missing.text and "--checkpoints" in missing.text
