"""Deployment files: valid by their schemas, true to our exit codes, run as far as no engine is needed."""

from __future__ import annotations

import configparser
import contextlib
import fnmatch
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cvaeopt import errors
from cvaeopt.demo_data import writer
from cvaeopt.run.signals import STOP_SIGNALS
from cvaeopt.store.opening import open_storage
from testbed.postgres import Postgres
from tests.support.fakes import leases
from tests.support.waiting import LONG_S, until

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCHEMAS = Path(__file__).parent / "data"
SUPERVISED = DEPLOY / "container" / "supervised.sh"
SLURM = DEPLOY / "slurm" / "worker.sbatch"

FINISHED = 0
WRONG_INPUT = errors.UserError.exit_code
AWAY = errors.StorageUnreachable.exit_code
DEVICE = errors.TryAgain.exit_code
AT_ONCE = errors.Interrupted.exit_code
AGAIN = {AWAY, DEVICE}
"""Codes after which another start may go better."""

PASSWORD = "p@ss:w/?#% 'd$"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---- Docker Compose


def interpolated(text: str, variables: dict[str, str]) -> str:
    """The text with its variables, as Compose fills them; KeyError with the message of a required one."""

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        value = variables.get(match["name"], "")
        if match["kind"] == ":-":
            return value or match["word"]
        if match["kind"] == ":?" and not value:
            raise KeyError(match["word"])
        return value

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<kind>:-|:\?)(?P<word>[^}]*))?\}", fill, text)


def filled(value: Any, variables: dict[str, str]) -> Any:
    """Compose interpolates the values of the parsed file, so that no variable can change its structure."""
    if isinstance(value, dict):
        return {key: filled(entry, variables) for key, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, variables) for entry in value]
    return interpolated(value, variables) if isinstance(value, str) else value


COMPOSE_FILE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def compose(**variables: str) -> dict[str, Any]:
    """docker-compose.yml with the variables of .env."""
    given = {"POSTGRES_PASSWORD_FILE": "./secrets/postgres_password", "CVAEOPT_DATA": "/frames", **variables}
    made: dict[str, Any] = filled(COMPOSE_FILE, given)
    return made


def schema_errors(schema: str, document: Any) -> list[str]:
    loaded = json.loads((SCHEMAS / schema).read_text())
    validator = jsonschema.validators.validator_for(loaded)(loaded)
    return [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(document)]


def test_the_compose_file_is_valid_before_and_after_interpolation() -> None:
    assert schema_errors("compose-spec.json", COMPOSE_FILE) == []
    assert schema_errors("compose-spec.json", compose()) == []
    wrong = compose()
    wrong["services"]["worker"]["restrat"] = "always"
    assert schema_errors("compose-spec.json", wrong) != []


def test_password_and_data_have_no_default_and_say_where_to_set_them() -> None:
    for name in ("POSTGRES_PASSWORD_FILE", "CVAEOPT_DATA"):
        with pytest.raises(KeyError, match=rf"set {name} in the file \.env"):
            compose(**{name: ""})


def test_the_example_of_env_names_every_variable_with_its_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = dict(re.findall(r"\$\{(\w+)(?::-([^}]*))?", text))
    lines = (ROOT / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", lines, re.MULTILINE)) == used
    # An empty name of an endpoint is not the same as none: these are set by whoever needs them.
    passed_on = {key for key, value in COMPOSE_FILE["services"]["worker"]["environment"].items() if value is None}
    assert set(re.findall(r"^#(\w+)=$", lines, re.MULTILINE)) == passed_on


def test_no_url_holds_the_password_and_only_the_dashboard_is_published_on_loopback() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert (
            "CVAEOPT_STORAGE" not in service["environment"]
            or ":" not in (service["environment"]["CVAEOPT_STORAGE"].partition("://")[2])
        )
        assert service.get("ports", []) == (["127.0.0.1:8080:8080"] if name == "dashboard" else [])


def test_secrets_are_files_and_only_those_who_need_one_have_it() -> None:
    made = compose(AWS_CREDENTIALS_FILE="/home/lab/.aws/credentials")
    assert made["secrets"] == {
        "postgres_password": {"file": "./secrets/postgres_password"},
        "aws_credentials": {"file": "/home/lab/.aws/credentials"},
    }
    for name, service in made["services"].items():
        trusted = name in ("worker", "worker-cpu", "cvaeopt")
        assert service["secrets"] == ["postgres_password", *(["aws_credentials"] if trusted else [])]
        environment = service["environment"]
        assert environment["POSTGRES_PASSWORD_FILE" if name == "db" else "PGPASSWORD_FILE"] == (
            "/run/secrets/postgres_password"
        )
        # No secret stands in an environment, whatever it is called: each is the path of a file, or no secret.
        for key in environment:
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIALS", key) or key.endswith("_FILE"), key
    without = ROOT / compose()["secrets"]["aws_credentials"]["file"]
    assert all(line.startswith("#") for line in without.read_text().splitlines())


def test_containers_are_pinned_unprivileged_and_cannot_write_the_data() -> None:
    made = compose()
    for name, service in made["services"].items():
        built = "build" in service
        assert re.fullmatch(r"\w+:\d+\.\d+\S*?" + ("" if built else r"@sha256:[0-9a-f]{64}"), service["image"]), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("user") == ("postgres" if name == "db" else None)  # the image's own user else, see below
        for volume in service["volumes"]:
            if volume["target"] == "/data":
                assert volume["read_only"] is True
                assert volume["bind"]["create_host_path"] is False
    assert set(made["volumes"]) == {"database", "artifacts"}


def test_workers_get_gpus_time_to_finish_an_epoch_and_a_common_volume() -> None:
    services = compose()["services"]
    for name in ("worker", "worker-cpu"):
        assert services[name]["restart"] == "on-failure"
        assert services[name]["entrypoint"][0] == "cvaeopt-supervised"
        minutes = int(re.fullmatch(r"(\d+)m", services[name]["stop_grace_period"])[1])  # type: ignore[index]
        assert minutes >= 10
        assert {"type": "volume", "source": "artifacts", "target": "/srv/cvaeopt/storage"} in services[name]["volumes"]
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in services["worker-cpu"]
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert compose(CVAEOPT_GPUS="2,3")["services"]["worker"]["environment"]["CVAEOPT_GPUS"] == "2,3"


def test_workers_and_tools_hear_of_the_object_store_and_the_dashboard_has_no_credentials(tmp_path: Path) -> None:
    services = compose(CVAEOPT_CHECKPOINTS="s3://bucket/lab", CVAEOPT_TRIALS_PER_GPU="3")["services"]
    credentials = {"AWS_SHARED_CREDENTIALS_FILE"}
    for name, service in services.items():
        trusted = name in ("worker", "worker-cpu", "cvaeopt")
        assert (credentials <= set(service["environment"])) == trusted, name
        assert bool(credentials & set(service["environment"])) == trusted, name
        assert service["environment"].get("CVAEOPT_CHECKPOINTS") == ("s3://bucket/lab" if trusted else None)
    # The program reads what is passed on, and takes an empty value for none.
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "main.toml").write_text(
        "[budget]\ntrials = 1\nepochs = 1\n[search]\ntfr = { type = 'float', low = 0.0, high = 1.0 }\n"
    )
    for settled, shown in (
        (services, ["trials_per_gpu = 3", "checkpoints = s3://bucket/lab"]),
        (compose()["services"], ["trials_per_gpu = 1", "checkpoints = in no object store"]),
    ):
        environment = {key: value for key, value in settled["worker-cpu"]["environment"].items() if value is not None}
        command = [sys.executable, "-m", "cvaeopt.cli", *settled["worker-cpu"]["command"], "--dry-run"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")}
        ran = subprocess.run(
            command,
            env={**clean, "PYTHONPATH": str(ROOT), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert [line for line in shown if line in ran.stdout.splitlines()] == shown, ran.stdout


def test_services_wait_for_a_healthy_database_and_nothing_keeps_them_from_being_scaled() -> None:
    for name, service in COMPOSE_FILE["services"].items():
        assert not {"privileged", "container_name", "network_mode", "pid"} & set(service), name
        if name == "db":
            assert "pg_isready" in service["healthcheck"]["test"]
            assert service["healthcheck"]["retries"] >= 5
        else:
            assert service["depends_on"] == {"db": {"condition": "service_healthy"}}, name
    stated = COMPOSE_FILE["secrets"]["postgres_password"]["file"]
    assert stated.startswith("${POSTGRES_PASSWORD_FILE:?"), "a default would be everybody's password"


def test_the_image_is_pinned_runs_as_a_numbered_user_and_copies_what_is_there() -> None:
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    (base,) = (rest[0] for kind, *rest in words if kind == "FROM")
    assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert [rest for kind, *rest in words if kind == "USER"] == [["$USER_ID"]]
    assert ["ARG", "USER_ID=1000"] in words
    installs = [line for line in lines if "pip install" in line]
    hashed, pinned, ours = installs
    assert "--require-hashes" in hashed and "--requirement requirements.txt" in hashed
    assert "--constraint constraints.txt" in pinned and pinned.split()[-1] == "torch"
    assert "--no-deps" in ours and "--no-build-isolation" in ours  # nothing is fetched for it, not even to build it

    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in (source for kind, *rest in words if kind == "COPY" for source in rest[:-1]):
        assert list(ROOT.glob(source)), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source
    assert os.access(SUPERVISED, os.X_OK)


def test_the_image_installs_the_constraints_with_their_hashes() -> None:
    specification = importlib.util.spec_from_file_location("lock", DEPLOY / "container" / "lock.py")
    assert specification is not None and specification.loader is not None
    lock = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(lock)
    text = lock.TARGET.read_text().replace("\\\n", "")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert [name for name, *_ in lines] == lock.installed()
    for name, *sums in lines:
        assert sums and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in sums), name
    names = {name.partition("==")[0] for name, *_ in lines}
    assert {"optuna", "optuna-dashboard", "psycopg-binary", "boto3", "setuptools", "sympy"} <= names
    assert not names & {"torch", "pytest", "hypothesis", "Werkzeug"}


@dataclass
class Composed:
    """Services run from docker-compose.yml without docker: same commands, local paths and ports."""

    folder: Path
    services: dict[str, Any]
    port: int
    outside: dict[str, str]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def local(self, text: str) -> str:
        """What a path or a port of the container is here."""
        for inside, here in (
            ("/srv/cvaeopt/storage", str(self.folder / "storage")),
            ("/run/secrets", str(self.folder / "secrets")),
            ("0.0.0.0", "127.0.0.1"),
            ("8080", str(self.port)),
        ):
            text = text.replace(inside, here)
        return str(self.folder / "data") if text == "/data" else text

    def start(self, name: str, words: list[str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """The service's entry point and command, or a command in its place."""
        service = self.services[name]
        entry = service.get("entrypoint", [] if name == "db" else ["cvaeopt"])
        command = [self.local(word) for word in (words or [*entry, *service["command"]])]
        given = {key: value for key, value in service["environment"].items() if value is not None}
        environment = {key: self.local(value) for key, value in given.items()}
        process = subprocess.Popen(
            command,
            env=self.outside | environment,
            cwd=options.pop("cwd", self.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self.running.append(process)
        return process

    def healthy(self, name: str) -> bool:
        """What the service's health check says."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        process = self.start(name, test)
        process.communicate(timeout=LONG_S)
        return process.returncode == 0


@pytest.fixture
def composed(postgres: Postgres, tmp_path: Path, warm_python: str) -> Iterator[Composed]:
    """The services of docker-compose.yml for the study `tiny`, with a server that asks for a password like its `db`."""
    writer.write(tmp_path / "data", clips=1, val_frames=4, sequences=0, sequence_frames=2)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "tiny.toml").write_text(
        "[budget]\ntrials = 2\nepochs = 1\n"
        "[fixed]\nF_dim = 8\nL_dim = 4\nN_dim = 4\nD_out_dim = 8\nframe_H = 8\nframe_W = 16\ntrain_vi_len = 4\n"
        "[search]\nlr = { type = 'float', low = 1e-4, high = 1e-3, log = true }\n"
    )
    bin_path = tmp_path / "bin"
    executable(bin_path / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    executable(bin_path / "cvaeopt", f'#!/bin/sh\nexec {warm_python} -m cvaeopt.cli "$@"\n')
    (bin_path / "cvaeopt-supervised").symlink_to(SUPERVISED)

    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "postgres_password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    shutil.copy(ROOT / compose()["secrets"]["aws_credentials"]["file"], tmp_path / "secrets" / "aws_credentials")
    services = compose(CVAEOPT_STUDY="tiny", CVAEOPT_GPUS="cpu", CVAEOPT_THREADS="1")["services"]
    path = [str(bin_path), str(postgres.server.bin_path), os.environ["PATH"]]
    outside = {
        "PATH": os.pathsep.join(path),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PGHOSTADDR": "127.0.0.1",  # in place of the name `db`
        "PGPORT": str(ports[1]),
    }
    made = Composed(tmp_path, services, ports[0], outside)
    with _database(made, postgres) as started:
        yield made
        for process in made.running:
            if process.poll() is None and process is not started:
                process.kill()
                process.communicate()


@contextlib.contextmanager
def _database(made: Composed, postgres: Postgres) -> Iterator[subprocess.Popen[str]]:
    """The service `db`: what the image's entry point does with its environment, then its command."""
    environment = made.services["db"]["environment"]
    home = Path(tempfile.mkdtemp(prefix="cvaeopt-pg-"))  # not under pytest's folder: another user may not enter that
    # As the image's entry point reads it: `$(< FILE)` drops line ends.
    secret = Path(made.local(environment["POSTGRES_PASSWORD_FILE"])).read_text(encoding="utf-8").rstrip("\n")
    (home / "password").write_text(secret)
    as_user = {"user": postgres.server.system_user} if os.geteuid() == 0 else {}
    if as_user:
        for path in (home, home / "password"):
            shutil.chown(path, as_user["user"])
    made.outside["PGDATA"] = str(home / "data")
    subprocess.run(
        [
            "initdb",
            f"--username={environment['POSTGRES_USER']}",
            f"--pwfile={home / 'password'}",
            *environment["POSTGRES_INITDB_ARGS"].split(),
            "--no-sync",
            "--set=fsync=off",
            f"--set=unix_socket_directories={home}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env=made.outside,
        cwd="/",
        **as_user,
    )
    process = made.start("db", cwd="/", **as_user)
    try:
        until(lambda: made.healthy("db"))
        subprocess.run(
            ["createdb", f"--host={home}", f"--username={environment['POSTGRES_USER']}", environment["POSTGRES_DB"]],
            check=True,
            env={key: value for key, value in made.outside.items() if key != "PGHOSTADDR"},
        )
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONG_S)
        shutil.rmtree(home)


@pytest.mark.slow
@pytest.mark.postgres
def test_every_service_runs_with_its_exact_command(composed: Composed) -> None:
    run = {"db"}  # by the fixture

    def start(name: str) -> subprocess.Popen[str]:
        run.add(name)
        return composed.start(name)

    # The dashboard first: it must not need a worker to have made the tables.
    dashboard = start("dashboard")
    until(lambda: composed.healthy("dashboard"), dashboard)
    workers = [start("worker"), start("worker-cpu")]
    for worker in workers:
        output, _ = worker.communicate(timeout=LONG_S)
        assert worker.returncode == 0, output
    with urllib.request.urlopen(f"http://127.0.0.1:{composed.port}/api/studies") as answer:
        assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["tiny"]
    status = start("cvaeopt")
    shown, _ = status.communicate(timeout=LONG_S)
    assert status.returncode == 0, shown
    assert re.search(r"2 complete|complete\W+2", shown), shown
    assert PASSWORD not in shown
    dashboard.terminate()
    dashboard.communicate(timeout=LONG_S)
    assert run == set(composed.services)

    # The password counts: a wrong one is wrong input.
    (composed.folder / "secrets" / "postgres_password").write_text("another")
    refused = start("cvaeopt")
    output, _ = refused.communicate(timeout=LONG_S)
    assert (refused.returncode, "password authentication failed" in output) == (WRONG_INPUT, True), output


# ---- the container's entry point


def supervised(tmp_path: Path, command: str, *, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", str(SUPERVISED), "sh", "-c", command],
        env={**os.environ, "CVAEOPT_CACHE": str(tmp_path), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, problems = process.communicate(timeout=LONG_S)
    return process.returncode, output, problems


@pytest.mark.parametrize("code", [FINISHED, WRONG_INPUT, AWAY, DEVICE, AT_ONCE, 1])
def test_docker_starts_again_only_what_may_go_better(code: int, tmp_path: Path) -> None:
    returned, _, problems = ended(supervised(tmp_path, f"exit {code}"))
    assert returned == (code if code in AGAIN else 0)
    assert ("Not started again" in problems) == (code in (1, WRONG_INPUT))


def test_docker_starts_again_what_was_killed(tmp_path: Path) -> None:
    assert ended(supervised(tmp_path, "kill -9 $$"))[0] == 128 + signal.SIGKILL


@pytest.mark.parametrize("code", [FINISHED, WRONG_INPUT, AWAY, DEVICE, AT_ONCE, 1])
def test_kubernetes_hears_our_codes(code: int, tmp_path: Path) -> None:
    process = supervised(tmp_path, f"exit {code}", environment={"CVAEOPT_SUPERVISOR": "kubernetes"})
    assert ended(process)[0] == code


ASKED = 'trap "echo asked; exit 0" TERM; echo ready; while :; do sleep 0.05; done'


@pytest.mark.parametrize(("supervisor", "code"), [("compose", 0), ("kubernetes", 128 + signal.SIGTERM)])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_worker_in_a_container_hears_that_it_shall_stop(
    supervisor: str, code: int, number: int, tmp_path: Path
) -> None:
    process = supervised(tmp_path, ASKED, environment={"CVAEOPT_SUPERVISOR": supervisor})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert ended(process)[:2] == (code, "asked\n")


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_grace_time_that_is_shorter_than_an_epoch_costs_that_epoch_and_nothing_else(tmp_path: Path) -> None:
    """What Docker, Kubernetes and systemd do: SIGTERM to the first process, and in the end SIGKILL to all."""
    url = f"sqlite:///{tmp_path}/cvaeopt.db"

    def start(name: str, epochs: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tests.support.fakes", url, tmp_path / "artifacts", epochs, tmp_path / name]
        return subprocess.Popen(
            ["sh", str(SUPERVISED), *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    first = start("first", 1)
    until((tmp_path / "first.held").exists, first)
    first.terminate()
    until((tmp_path / "first.asked").exists, first)
    assert first.poll() is None, "it finishes its epoch, as far as it knows"
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=LONG_S)
    code, output, problems = ended(start("second", -1))
    assert (code, output) == (0, "finished\n"), problems
    trained = [(tmp_path / name).read_text().splitlines() for name in ("first", "second")]
    assert trained[0] == ["0 1"]
    # Each epoch once; the trial that was cut off may have to wait until its worker is known to be dead.
    assert sorted(trained[0] + trained[1]) == [f"{trial} {epoch}" for trial in range(3) for epoch in range(1, 5)]


def test_each_worker_of_a_machine_takes_a_gpu_of_its_own(tmp_path: Path) -> None:
    gpus = {"CVAEOPT_GPUS": "3,5,5"}
    hold = 'echo "$CVAEOPT_GPU"; read wait'
    workers = []
    for expected in ("3", "5", "5"):
        workers.append(
            subprocess.Popen(
                ["sh", str(SUPERVISED), "sh", "-c", f"echo $CVAEOPT_GPU; exec sleep {LONG_S}"],
                env={**os.environ, "CVAEOPT_CACHE": str(tmp_path), **gpus},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert workers[-1].stdout is not None
        assert workers[-1].stdout.readline().strip() == expected
    code, output, problems = ended(supervised(tmp_path, hold, environment=gpus))
    assert (code, output) == (0, "")
    assert "all of CVAEOPT_GPUS=3,5,5 have a worker" in problems
    # A worker that ends, however it ends, gives its GPU to the next one.
    workers[0].terminate()
    workers[0].communicate(timeout=LONG_S)
    assert ended(supervised(tmp_path, "echo $CVAEOPT_GPU", environment=gpus))[1] == "3\n"
    for worker in workers[1:]:
        worker.terminate()
        worker.communicate(timeout=LONG_S)


def test_without_a_list_the_gpu_is_left_as_it_is(tmp_path: Path) -> None:
    environment = {"CVAEOPT_GPUS": "", "CVAEOPT_GPU": "cpu"}
    assert ended(supervised(tmp_path, "echo $CVAEOPT_GPU", environment=environment))[1] == "cpu\n"


# ---- Slurm


@dataclass
class Node:
    """A node with fakes of `scontrol` and of the worker: whatever `command` is."""

    folder: Path

    def start(self, command: str, **environment: str) -> subprocess.Popen[str]:
        log = self.folder / "scontrol"
        executable(self.folder / "bin" / "scontrol", f'#!/bin/sh\necho "$*" >>{log}\n')
        worker = executable(self.folder / "bin" / "worker", f'#!/bin/sh\necho "$*" >>{self.folder}/called\n{command}\n')
        return subprocess.Popen(
            ["bash", str(SLURM)],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "CVAEOPT": str(worker),
                "SLURM_JOB_ID": "77",
                "SLURM_ARRAY_JOB_ID": "70",
                "SLURM_ARRAY_TASK_ID": "3",
                "CVAEOPT_GPU": "0",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def requeued(self) -> list[str]:
        log = self.folder / "scontrol"
        return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_near_the_time_limit_a_slurm_task_saves_releases_and_queues_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cvaeopt.db"
    log = tmp_path / "epochs"
    log.touch()
    node = Node(tmp_path)
    command = f"exec {sys.executable} -m tests.support.fakes {url} {tmp_path}/artifacts"
    first = node.start(f"{command} 2 {log}")
    until(Path(f"{log}.held").exists, first)
    first.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@600 sends
    until(Path(f"{log}.asked").exists, first)
    Path(f"{log}.go").touch()
    code, output, problems = ended(first)
    assert (code, node.requeued) == (0, ["requeue 70_3"]), problems
    assert output == "stopped\n"
    with open_storage(url) as storage:
        (lease,) = [lease for lease in leases(storage) if lease.state == "open"]
    assert (lease.owner, lease.epochs_done) == (None, lease.checkpoint_epoch)

    second = node.start(f"{command} -1 {log}", SLURM_RESTART_COUNT="1")
    code, output, problems = ended(second)
    assert (code, output, node.requeued) == (0, "finished\n", ["requeue 70_3"]), problems
    assert log.read_text().splitlines() == [f"{trial} {epoch}" for trial in range(3) for epoch in range(1, 5)]
    assert (tmp_path / "called").read_text() == "worker --study main --gpu 0\n" * 2


@pytest.mark.parametrize("code", [FINISHED, WRONG_INPUT, AWAY, DEVICE, AT_ONCE, 1, 137])
def test_a_slurm_task_queues_again_only_what_may_go_better(code: int, tmp_path: Path) -> None:
    node = Node(tmp_path)
    returned, _, _ = ended(node.start(f"exit {code}"))
    assert (returned, node.requeued) == ((0, ["requeue 70_3"]) if code in AGAIN else (code, []))


def test_a_slurm_task_does_not_queue_again_for_ever(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert ended(node.start(f"exit {AWAY}", SLURM_RESTART_COUNT="20"))[0] == AWAY
    assert node.requeued == []


def test_a_cancelled_slurm_task_stays_cancelled(tmp_path: Path) -> None:
    node = Node(tmp_path)
    process = node.start(ASKED)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert ended(process)[:2] == (0, "asked\n")
    assert node.requeued == []


def test_the_slurm_script_asks_for_a_gpu_a_signal_and_to_be_requeued() -> None:
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SLURM.read_text(), re.MULTILINE)
    asked = dict(options)
    assert asked["gres"] == "gpu:1"
    assert asked["requeue"] == ""
    assert re.fullmatch(r"B:USR1@\d+", asked["signal"])
    # Options count only before the first command.
    body = SLURM.read_text().splitlines()
    first = next(index for index, line in enumerate(body) if line and not line.startswith("#"))
    assert max(index for index, line in enumerate(body) if line.startswith("#SBATCH")) < first


# ---- Kubernetes

JOB = yaml.safe_load((DEPLOY / "kubernetes" / "job.yaml").read_text())


def test_the_kubernetes_job_is_valid() -> None:
    assert schema_errors("kubernetes-job.json", JOB) == []
    wrong = yaml.safe_load((DEPLOY / "kubernetes" / "job.yaml").read_text())
    wrong["spec"]["podFailurePolicy"]["rules"][0]["onExitCode"] = {}
    assert schema_errors("kubernetes-job.json", wrong) != []


def test_kubernetes_does_with_every_exit_code_what_the_table_says() -> None:
    def action(code: int) -> str:
        for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count"  # towards backoffLimit, as without a policy

    asked_to_stop = 128 + signal.SIGTERM
    assert {code: action(code) for code in (WRONG_INPUT, AWAY, DEVICE, asked_to_stop, 137, 1)} == {
        WRONG_INPUT: "FailJob",
        AWAY: "Ignore",
        DEVICE: "Count",
        asked_to_stop: "Ignore",
        137: "Count",
        1: "Count",
    }
    pod = JOB["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # or the policy is refused
    assert {
        rule["onExitCodes"]["containerName"]
        for rule in JOB["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    } == {container["name"]}
    assert "completions" not in JOB["spec"]
    assert JOB["spec"]["parallelism"] > 1


def test_the_pod_is_unprivileged_and_has_time_to_finish_an_epoch() -> None:
    pod = JOB["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] >= 600
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["data"]["readOnly"] is True
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["PGPASSWORD"] is None  # from the secret
    assert values["CVAEOPT_SUPERVISOR"] == "kubernetes"
    assert container["command"] == compose()["services"]["worker"]["entrypoint"]


# ---- systemd

UNIT = DEPLOY / "systemd" / "cvaeopt-worker@.service"


def test_systemd_starts_again_only_what_may_go_better() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert {int(code) for code in service["RestartForceExitStatus"].split()} == AGAIN
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == {WRONG_INPUT, AT_ONCE}
    assert (service["Restart"], service["KillSignal"], service["KillMode"]) == ("on-failure", "SIGTERM", "mixed")
    assert int(re.fullmatch(r"(\d+)min", service["TimeoutStopSec"])[1]) >= 10  # type: ignore[index]
    assert service["ExecStart"].endswith("cvaeopt worker --study ${CVAEOPT_STUDY} --gpu %i")
    assert service["User"] == "cvaeopt"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # What it names must exist where it is verified: program, folder and user of this machine.
    text = UNIT.read_text()
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE)
    text = text.replace("WorkingDirectory=/srv/cvaeopt", f"WorkingDirectory={tmp_path}").replace(
        "User=cvaeopt", "User=root"
    )
    (tmp_path / UNIT.name).write_text(text)

    def verify() -> subprocess.CompletedProcess[str]:
        instance = tmp_path / UNIT.name.replace("@", "@0")
        return subprocess.run(["systemd-analyze", "verify", str(instance)], capture_output=True, text=True)

    verified = verify()
    assert (verified.returncode, UNIT.name in verified.stderr) == (0, False), verified.stderr
    (tmp_path / UNIT.name).write_text(text.replace("TimeoutStopSec=", "TimeoutStopSek="))
    assert "TimeoutStopSek" in verify().stderr


# ---- pages


def blocks(page: Path) -> list[str]:
    """The shell commands of a page."""
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


PAGES = sorted([*DEPLOY.rglob("*.md"), ROOT / "storage" / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_living_links_and_commands_that_a_shell_can_read(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
    for block in blocks(page):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("script", [SUPERVISED, SLURM], ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    shell = Path(script.read_text().splitlines()[0].removeprefix("#!")).name
    subprocess.run([shell, "-n", str(script)], check=True)


def test_the_ssh_page_starts_workers_that_outlive_the_connection(tmp_path: Path) -> None:
    executable(
        tmp_path / "bin" / "ssh",
        f'#!/bin/sh\nfor last; do :; done\ncd {tmp_path}/home && sh -c "$last"\n',
    )
    worker = tmp_path / "home" / "cvaeopt" / ".venv" / "bin" / "cvaeopt"
    held = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    executable(worker, f'#!/bin/sh\necho "$CVAEOPT_STORAGE $CVAEOPT_DATA: $*"; {held}; echo ended\n')
    storage = tmp_path / "home" / "cvaeopt" / "storage"
    storage.mkdir()
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    many, tunnel = blocks(DEPLOY / "ssh" / "README.md")
    subprocess.run(["bash", "-euc", many], env=environment, check=True)
    (tmp_path / "go").touch()  # the connections are over
    for gpu, times in (("0", 2), ("1", 1)):
        line = f"postgresql://cvaeopt@dbhost/cvaeopt /data/frames: worker --study main --gpu {gpu}"
        log = storage / f"worker-{gpu}.log"
        until(lambda log=log, times=times: log.exists() and log.read_text().count("ended") == times)  # type: ignore[misc]
        assert log.read_text().splitlines().count(line) == times
    shown = subprocess.run(["bash", "-euc", tunnel], env=environment, check=True, capture_output=True, text=True).stdout
    assert "postgresql://cvaeopt@localhost/cvaeopt /data/frames: worker --study main --gpu 0" in shown


def test_the_table_of_exit_codes_is_the_programs() -> None:
    table = dict(re.findall(r"^\| (\d+)[^|]*\|[^|]*\| (yes|no)", (DEPLOY / "README.md").read_text(), re.MULTILINE))
    assert {int(code): answer for code, answer in table.items()} == {
        FINISHED: "no",
        WRONG_INPUT: "no",
        AWAY: "yes",
        DEVICE: "yes",
        AT_ONCE: "no",
        128: "yes",
    }


# ---- the workflow of forks


def test_the_workflow_is_valid_limited_and_runs_the_commands_of_the_readme() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads `on` so
    assert schema_errors("github-workflow.json", workflow) == []
    jobs = workflow["jobs"]
    assert all(job["timeout-minutes"] <= 15 for job in jobs.values())
    assert workflow["permissions"] == {"contents": "read"}

    versions = jobs["test"]["strategy"]["matrix"]["python"]
    (supported,) = re.findall(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert versions == ["3.11", "3.12", "3.13"]
    assert supported == ">=3.11,<3.14"

    def commands(job: str) -> str:
        return "\n".join(step["run"] for step in jobs[job]["steps"] if "run" in step)

    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"^make (\w+)", commands("test"), re.MULTILINE)
    assert called == ["check", "test"]
    assert set(called) <= set(targets)
    assert "make test" in (ROOT / "README.md").read_text()
    assert "cvaeopt smoke" in commands("wheel")
    assert "[dev]" not in commands("wheel")
    assert "docker compose config --quiet" in commands("compose")
    for job in jobs:
        subprocess.run(["bash", "-n"], input=commands(job), text=True, check=True)
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
    for step in (step for job in jobs.values() for step in job["steps"] if "setup-python" in step.get("uses", "")):
        assert step["with"]["cache"] == "pip"
