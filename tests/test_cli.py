"""Every command as users type it: what it says, what it leaves, how it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from cvaeopt import cli
from cvaeopt.commands import opening
from cvaeopt.errors import StudyError
from cvaeopt.outcome import retrain, score
from cvaeopt.search.definition import load_definition
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from cvaeopt.store.workers import Place
from cvaeopt.text import Advice
from cvaeopt.vae.trainer import Trainer
from tests.support.command import STUDY, Said, Shop
from tests.support.waiting import LONG_S, until

pytestmark = pytest.mark.usefixtures("uncharted_module")

COMMANDS = [
    command.name or str(command.callback.__name__) for command in cli.app.registered_commands if command.callback
]
SECRET = "ge%40heim"
CLOSED = f"postgresql://lab:{SECRET}@127.0.0.1:1/cvaeopt"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A folder in which the study `tiny` was run, exported and retrained."""
    shop = Shop.new(tmp_path_factory.mktemp("done"))
    threads = torch.get_num_threads()
    said = shop.run("worker", "--study", "tiny", "--gpu", "cpu", "--threads", "1")
    assert said.code == 0, said.err
    assert said.out == ""
    assert "finished: all 2 trials are taken; 2 trials ended here" in said.err
    said = shop.run("export-best", "--study", "tiny")
    assert said.code == 0, said.err
    said = shop.run("retrain", "studies/best/tiny.toml", "--epochs", "2", "--gpu", "cpu")
    assert said.code == 0, said.err
    assert len([line for line in said.err.splitlines() if re.search(r"epoch \d/2: ", line)]) == 2
    yield shop
    torch.set_num_threads(threads)


@pytest.fixture
def shop(tmp_path: Path, done: Shop) -> Shop:
    """An empty folder with the study `tiny` and the data of `done`."""
    return Shop.new(tmp_path, done.data)


# ---- help


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_all_commands_of_the_contract_are_there() -> None:
    promised = "worker dashboard export-best retrain demo-data check-data status stop predict score recalibrate show"
    assert {*promised.split(), "confirm", "report", "smoke"} <= set(COMMANDS)


def test_a_device_is_chosen_before_torch_is_loaded(done: Shop) -> None:
    code = """
import sys
from cvaeopt import cli
from cvaeopt.commands import opening
from cvaeopt.errors import DeviceError
from cvaeopt.vae import device

def use(gpu, threads):
    assert "torch" not in sys.modules
    assert gpu == "3"
    raise DeviceError("asked in time")

device.use = use
for line in sys.argv[1:]:
    sys.argv = ["cvaeopt", *line.split(), "--gpu", "3"]
    try:
        cli.main()
    except SystemExit as ended:
        assert ended.code == 2, line
"""
    best = done.root / "storage/retrain/tiny-2/best.pt"
    lines = [f"{name} {best} --data {done.data}" for name in ("score", "recalibrate", "predict --out o")]
    lines += [f"retrain {done.root}/studies/best/tiny.toml --data {done.data}"]
    lines += [f"train --data {done.data}"]
    lines += [f"worker --study {done.root}/studies/tiny.toml --data {done.data}"]
    stored = f"--storage sqlite:///{done.root}/storage/cvaeopt.db"
    lines += [f"confirm --study {done.root}/studies/tiny.toml {stored} --data {done.data}"]
    ended = python(code, *lines)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("asked in time") == len(lines)


def test_the_version_is_said() -> None:
    assert re.fullmatch(r"cvaeopt \S+\n", python("from cvaeopt.cli import main; main()", "--version").stdout)


# ---- where options come from

OPTIONS = {
    "storage": ("sqlite:///flag.db", "sqlite:///environment.db", "sqlite:///toml.db", "sqlite:///storage/cvaeopt.db"),
    "data": ("flag", "environment", "toml", "none given"),
    "artifacts": ("flag", "environment", "toml", "storage/artifacts"),
    "gpu": ("1", "2", "3", "the first, else cpu"),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("level", range(4), ids=["flag", "environment", "study", "default"])
def test_a_flag_comes_before_the_environment_before_the_study_before_the_default(
    shop: Shop, option: str, level: int
) -> None:
    values = OPTIONS[option]
    if level <= 2:
        stated = f"{option} = {values[2] if option == 'gpu' else json.dumps(values[2])}\n"
        (shop.root / "studies" / "tiny.toml").write_text(STUDY + stated)
    environment = {option.upper(): values[1] if level <= 1 else ""}
    flags = [f"--{option}", values[0]] if level == 0 else []
    said = shop.run("worker", "--study", "tiny", "--dry-run", *flags, **{"DATA": "", "GPU": "", **environment})
    assert said.code == 0, said.err
    assert f"\n{option} = {values[level]}\n" in said.out


def test_dry_runs_show_everything_and_do_nothing(done: Shop, shop: Shop) -> None:
    before = shop.files()
    said = shop.run("worker", "--study", "tiny", "--dry-run", STORAGE=CLOSED)
    assert said.code == 0
    for line in ("F_dim = 8", "frame_W = 64", "trials = 2", "num_epoch = 1", "kind = tpe", "keep_best = 1"):
        assert f"\n{line}\n" in said.out
    assert "postgresql://lab:***@127.0.0.1:1/cvaeopt" in said.out
    recipe = done.root / "studies/best/tiny.toml"
    said = shop.run("retrain", recipe, "--epochs", "500", "--set", "lr=0.5", "--dry-run")
    assert said.code == 0
    for line in ("lr = 0.5", "num_epoch = 500", "study = tiny"):
        assert f"\n{line}\n" in said.out
    said = shop.run("retrain", recipe, "--epochs", "100", "--set", "milestones=[20,50]", "--dry-run")
    carried, chosen = (said.out.partition(f"[{name}")[2].partition("\n\n")[0] for name in ("carried over", "set]"))
    assert "milestones = [2, 5] -> [200, 500]" in carried  # the recipe is of one epoch
    assert "milestones = [20, 50]" in chosen and "milestones = [20, 50]" in said.out.partition("[settings]")[2]
    said = shop.run("retrain", recipe, "--epochs", "9", "--set", "num_epoch=8", "--dry-run")
    one_message(said, 2, "num_epoch = 8 is set beside --epochs 9", "Expected", "Leave num_epoch out")
    said = shop.run("predict", done.root / "storage/retrain/tiny-2/best.pt", "--out", "o", "--noise=zero", "--dry-run")
    assert said.code == 0
    assert "Would predict 1 sequence of" in said.out and "kind = zero" in said.out
    assert shop.files() == before


# ---- the whole way


def test_status_is_machine_readable_as_promised(done: Shop) -> None:
    said = done.run("status", "--study", "tiny", "--json")
    facts = json.loads(said.out)
    assert said.err == ""
    assert (facts["study"], facts["direction"], facts["metric"]) == ("tiny", "maximize", "val_psnr")
    assert facts["storage"] == "sqlite:///storage/cvaeopt.db"
    assert facts["budget"]["trials"] == 2 and facts["budget"]["epochs"] == 1
    assert facts["trials"] == {"complete": 2, "pruned": 0, "running": 0, "waiting": 0, "failed": 0}
    assert set(facts["best"]) == {"number", "value", "params"}
    assert set(facts["best"]["params"]) == {"lr"}
    assert {"copy_first", "train_mean"} <= set(facts["baselines"])
    (worker,) = facts["workers"]
    assert list(worker) == ["id", "host", "device", "state", "trial", "epoch", "beat_age_s", "takeover_s"]
    assert (worker["device"], worker["state"]) == ("cpu", "stopped")


def test_status_in_words_has_the_best_the_baselines_and_the_worker(done: Shop) -> None:
    said = done.run("status", "--study", "studies/tiny.toml")
    assert said.code == 0
    for word in ("2 complete", "copy first", "2 trials of 1 epoch; 2 epochs spent", "stopped", "last beat"):
        assert word in said.out


def test_a_study_can_be_watched_from_any_folder(done: Shop, tmp_path: Path) -> None:
    url = f"sqlite:///{done.root}/storage/cvaeopt.db"
    said = Shop(tmp_path, done.data).run("status", "--study", "tiny", "--storage", url, "--json")
    assert json.loads(said.out)["study"] == "tiny"


def test_a_trial_knows_where_it_came_from(done: Shop) -> None:
    folder = done.root / "storage/artifacts/tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "study.json"]
    rows = [json.loads(line) for line in (folder / "00000/history.jsonl").read_text().splitlines()]
    keys = "epoch, lr, tfr, teacher_forced, beta, train_loss, train_mse, train_kl, val_psnr, val_psnr_late, "
    keys += "val_mse, seconds"
    assert [", ".join(row) for row in rows] == [keys]
    assert len(list(folder.glob("*/last.pt"))) == 1  # keep_best


def test_the_recipe_has_every_setting_and_its_provenance(done: Shop) -> None:
    recipe = tomllib.loads((done.root / "studies/best/tiny.toml").read_text())
    assert recipe["provenance"]["study"] == "tiny"
    assert recipe["settings"]["F_dim"] == 8
    said = done.run("show", "studies/best/tiny.toml")
    assert json.loads(said.out)["trial"] == recipe["provenance"]["trial"]


def test_leaders_are_confirmed_by_the_workers_of_the_study(done: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path, done.data)
    shutil.copytree(done.root / "storage", shop.root / "storage")
    line = ["confirm", "--study", "tiny", "--top", "2", "--seeds", "1"]
    before = shop.files()
    said = shop.run(*line, "--dry-run", GPU="")
    assert said.code == 0 and "Would register 2 runs of 1 epoch as tiny.confirm" in said.out
    assert json.loads(shop.run(*line, "--dry-run", "--json", GPU="").out)["new_runs"] == 2
    assert shop.files() == before
    said = shop.run(*line, GPU="")
    assert said.code == 0, said.err
    assert "0 of 2 runs ended. A worker takes the others: cvaeopt worker --study tiny" in said.out
    shown = shop.run("status", "--study", "tiny").text
    assert "the highest of the search; counts until every fresh run has ended" in shown
    assert json.loads(shop.run("status", "--study", "tiny", "--json").out)["confirmation"]["best"] is None
    assert "confirmation has 0 of 2 runs" in shop.run("export-best", "--study", "tiny").err
    assert json.loads(shop.run("status", "--study", "tiny.confirm", "--json").out)["trials"]["waiting"] == 2
    said = shop.run("worker", "--study", "tiny")
    assert said.code == 0, said.err
    assert said.err.index("takes trials of study tiny\n") < said.err.index("takes trials of study tiny.confirm")
    assert "2 trials ended here" in said.err
    said = shop.run(*line, "--json", GPU="")
    found = json.loads(said.out)
    assert (found["new"], found["confirmation"]["runs"], found["confirmation"]["ended"]) == (None, 2, 2)
    facts = json.loads(shop.run("status", "--study", "tiny", "--json").out)
    assert facts["trials"]["complete"] == 2 and facts["confirmation"]["studies"] == ["tiny.confirm"]
    first = facts["confirmation"]["leaders"][0]
    assert facts["confirmation"]["best"] == {"number": first["trials"][0], "value": first["mean"]}
    # More seeds, trained by the command itself.
    said = shop.run("confirm", "--study", "tiny", "--top", "1", "--seeds", "2", "--gpu", "cpu", "-q")
    assert said.code == 0, said.err
    assert "All 3 runs ended; next: cvaeopt export-best --study tiny" in said.out
    said = shop.run("export-best", "--study", "tiny")
    recipe = tomllib.loads((shop.root / "studies/best/tiny.toml").read_text())["provenance"]
    assert recipe["confirmed"] and recipe["confirmed_by"] == ["tiny.confirm", "tiny.confirm-2"]
    assert "fresh run" in said.out and "95 % interval" in said.out
    shown = shop.run("status", "--study", "tiny").text
    assert "the highest of the search; what counts is the confirmed mean" in shown
    value = f"trial {recipe['trial']}, {recipe['value']:.2f} dB"
    assert f"confirmed 3 of 3 fresh runs of 2 leaders ended: {value}; see tiny.confirm, tiny.confirm-2" in shown
    said = shop.run("report", "--study", "tiny.confirm", "--out", "page")
    assert said.code == 0, said.err
    said = shop.run("fetch", "--study", "tiny.confirm")
    assert said.code == 0 and said.out.endswith("/last.pt\n"), said.err


def commands(text: str) -> list[list[str]]:
    """The commands that a text advises, split into words."""
    return [shlex.split(line.rstrip(".")) for line in re.findall(r"cvaeopt ([a-z-]+ --study [^\n(]*)", text)]


@pytest.mark.parametrize("given", ["by its path", "from another folder", "by its name"])
def test_every_advised_command_works_as_it_is_printed(done: Shop, tmp_path: Path, given: str) -> None:
    shutil.copytree(done.root / "storage", tmp_path / "storage")
    (tmp_path / "else where").mkdir()
    shutil.copy(done.root / "studies/tiny.toml", tmp_path / "else where")
    url = f"sqlite:///{tmp_path}/storage/cvaeopt.db"
    shop = Shop.new(tmp_path / "work", done.data) if given == "from another folder" else Shop(tmp_path, done.data)
    if given == "by its name":
        (tmp_path / "studies").mkdir()
        shutil.copy(done.root / "studies/tiny.toml", tmp_path / "studies")
    study = {
        "by its path": ["--study", "else where/tiny.toml"],
        "from another folder": ["--study", "tiny", "--storage", url],
        "by its name": ["--study", "tiny"],
    }[given]
    exported = shop.run("export-best", *study)
    assert exported.code == 0, exported.err
    advised = commands(exported.err)
    assert [words[0] for words in advised] == ["confirm", "fetch"]
    assert [words[1 : len(study) + 1] for words in advised] == [study] * 2
    confirmed = shop.run(*advised[0], GPU="")
    assert confirmed.code == 0, confirmed.err
    ((*worker, gpu, _),) = commands(confirmed.out)
    assert (worker[0], gpu) == ("worker", "--gpu")
    assert shop.run(*worker, "--dry-run").code == 0
    unfinished = commands(shop.run("export-best", *study).err)
    assert [words[0] for words in unfinished] == ["worker", "fetch"]
    refused = shop.run("confirm", study[0], study[1].replace("tiny", "tiny.confirm"), *study[2:])
    one_message(refused, 2, "is a confirmation itself")
    ((*words, _, _, _, _),) = commands(refused.err)
    assert shop.run(*words, "--dry-run").code == 0
    artifacts = {"ARTIFACTS": str(tmp_path / "storage/artifacts")}
    assert shop.run(*advised[1], **artifacts).code == 0


def test_an_advised_command_never_has_stars_to_be_copied_in_place_of_a_password(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advise(store: object, name: str) -> dict[str, Any]:
        raise StudyError("x", todo=Advice("Try", "confirm", "--study", name, "--top", "2"))

    monkeypatch.setattr(opening, "_open", lambda *_, **__: None)
    monkeypatch.setattr("cvaeopt.outcome.leaders.confirmation", advise)
    said = shop.run("status", "--study", "tiny", "--storage", CLOSED)
    one_message(said, 2, "cvaeopt confirm --study tiny --storage URL --top 2")
    assert (
        "--storage sqlite:///x.db --top 2" in shop.run("status", "--study", "tiny", "--storage", "sqlite:///x.db").err
    )


def test_a_name_that_the_environment_cannot_spell_is_the_users_to_mend(done: Shop, shop: Shop) -> None:
    path = shop.root / "donn\udcff.db"  # a byte that is no UTF-8
    shutil.copy(done.root / "storage/cvaeopt.db", path)
    said = shop.run("status", "--study", "tiny", "--storage", f"sqlite:///{path}")
    one_message(said, 2, "cannot spell", "LC_ALL=C.UTF-8")


def test_a_folder_is_advised_in_the_shells_own_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvaeopt.demo_data.writer.write", lambda *_, **__: None)
    said = Shop(tmp_path, tmp_path).run("demo-data", "the lab's data")
    assert shlex.split(said.err.partition("with: ")[2]) == ["cvaeopt", "check-data", "the lab's data"]


def test_more_leaders_than_there_are_is_one_clear_message_everywhere(done: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path, done.data)
    shutil.copytree(done.root / "storage", shop.root / "storage")
    line = ["confirm", "--study", "tiny", "--top", "7", "--seeds", "1"]
    for more in (["--dry-run"], ["--dry-run", "--json"], [], ["--json"], ["-q"]):
        said = shop.run(*line, *more, GPU="")
        assert said.code == 0, said.err
        assert said.err.count("--top 7: the search has 2 leaders") == 1, more
        assert said.err.count("Warning") == 1


def test_a_confirmation_that_cannot_start_registers_nothing(done: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path, done.data)
    shutil.copytree(done.root / "storage", shop.root / "storage")
    line = ["confirm", "--study", "tiny", "--top", "2", "--seeds", "1"]
    said = shop.run(*line, "--gpu", "cpu", "--checkpoints", "nonsense://x")
    assert said.code == 2 and "nonsense" in said.err
    assert shop.run("confirm", "--study", "tiny", "--seeds", "101").code == 2
    file = shop.root / "studies/tiny.toml"
    written = file.read_text()
    file.write_text(written.replace("seed = ", "seed = 1", 1))
    said = shop.run(*line, GPU="")
    assert said.code == 2 and "was created from another definition" in said.err
    file.write_text(written)
    assert json.loads(shop.run(*line, "--dry-run", "--json", GPU="").out)["new_runs"] == 2


def test_a_device_that_is_exported_for_workers_does_not_make_a_plan_train(done: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path, done.data)
    shutil.copytree(done.root / "storage", shop.root / "storage")
    said = shop.run("confirm", "--study", "tiny", "--top", "1", "--seeds", "1", GPU="cpu", DATA="nowhere")
    assert said.code == 0, said.err
    assert "0 of 1 run ended. A worker takes the others" in said.out
    facts = json.loads(shop.run("status", "--study", "tiny.confirm", "--json").out)
    assert (facts["trials"]["waiting"], facts["workers"]) == (1, [])


def test_a_stop_reaches_the_workers_that_went_on_to_a_confirmation(done: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path, done.data)
    shutil.copytree(done.root / "storage", shop.root / "storage")
    assert shop.run("confirm", "--study", "tiny", "--top", "1", "--seeds", "1", GPU="").code == 0
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as store:
        LeaseRegistry(store, "tiny.confirm").register("elsewhere-1", Place("elsewhere", 1, ""), "cpu")
    assert json.loads(shop.run("stop", "--study", "tiny", "--json").out)["asked"] == ["elsewhere-1"]
    said = shop.run("stop", "--study", "tiny", "--worker", "elsewhere-1", "--json")
    assert json.loads(said.out)["asked"] == ["elsewhere-1"]
    one_message(shop.run("stop", "--study", "tiny", "--worker", "x"), 2, "No worker 'x' runs")


def test_a_finished_retrain_trains_nothing_and_scores_again(done: Shop) -> None:
    last = done.root / "storage/retrain/tiny-2/last.pt"
    before = last.read_bytes()
    said = done.run("retrain", "studies/best/tiny.toml", "--epochs", "2", "--json")
    assert said.code == 0, said.err
    assert "storage/retrain/tiny-2 already has all 2 epochs; nothing to train" in said.err
    assert json.loads(said.out)["epoch"] in (1, 2)
    assert last.read_bytes() == before


def test_a_checkpoint_predicts_scores_and_is_recalibrated(done: Shop) -> None:
    best = "storage/retrain/tiny-2/best.pt"
    said = done.run("predict", best, "--out", "predicted", "--json", "--quiet")
    assert said.code == 0, said.err
    assert said.err == ""
    assert json.loads(said.out)["rows"] == 4
    assert (done.root / "predicted/pred_seq0.gif").exists()
    assert len((done.root / "predicted/submission.csv").read_text().splitlines()) == 5
    said = done.run("show", "predicted")
    assert json.loads(said.out)["checkpoint"]["name"] == "best.pt"
    said = done.run("score", best, "--json", "--public")
    sheet = json.loads(said.out)
    assert sheet["val_psnr"] == json.loads((done.root / "storage/retrain/tiny-2/score.json").read_text())["val_psnr"]
    assert set(sheet["public"]) == {"0"}
    said = done.run("score", best, "--out", "scored")
    assert "the better of copying the first frame and showing the mean frame" in said.out
    assert (done.root / "scored/score.json").exists()
    said = done.run("recalibrate", best)
    assert re.search(r"best\.recalibrated\.pt: [\d.]+ dB before, [\d.]+ dB after", said.out)


def test_a_report_is_one_page(done: Shop) -> None:
    said = done.run("report", "--study", "tiny", "--out", "page")
    assert said.code == 0, said.err
    assert said.out == "page/report.html\n"
    assert "tiny" in (done.root / "page/report.html").read_text()


def test_a_second_worker_of_a_finished_study_ends_at_once(done: Shop) -> None:
    said = done.run("worker", "--study", "tiny", "-q")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_stopping_a_study_without_workers_is_no_error(done: Shop) -> None:
    said = done.run("stop", "--study", "tiny")
    assert (said.code, said.out) == (0, "No worker runs for this study.\n")
    assert json.loads(done.run("stop", "--study", "tiny", "--json").out) == {"study": "tiny", "asked": []}


def test_the_workers_of_all_studies_are_listed(done: Shop) -> None:
    said = done.run("workers")
    assert said.code == 0 and "tiny" in said.out and "stopped" in said.out
    listed = json.loads(done.run("workers", "--json").out)
    assert {one["study"] for one in listed["workers"]} == {"tiny"}


def test_a_checkpoint_that_was_lost_here_is_not_looked_for_elsewhere(done: Shop, tmp_path: Path) -> None:
    """A full disk costs a checkpoint, and so does a better trial; the trial ran on this very machine."""
    shutil.copytree(done.root / "storage/artifacts", tmp_path / "artifacts")
    for path in (tmp_path / "artifacts/tiny").glob("*/last.pt"):
        path.unlink()
    said = done.run("fetch", "--study", "tiny", ARTIFACTS=str(tmp_path / "artifacts"))
    one_message(said, 2, "was finished on this machine and left no checkpoint", "keep_best", "cvaeopt train")
    assert "Copy" not in said.err
    said = done.run("fetch", "--study", "tiny", ARTIFACTS=str(tmp_path / "elsewhere"))
    one_message(said, 2, f"is not in {tmp_path}/elsewhere/tiny", "finished on this machine", "--artifacts")
    assert "Copy" not in said.err
    with mock.patch.object(socket, "gethostname", lambda: "another"):
        said = done.run("fetch", "--study", "tiny", ARTIFACTS=str(tmp_path / "artifacts"))
    one_message(said, 2, "Copy ", f"from {socket.gethostname()}")


def test_data_are_drawn_and_checked(tmp_path: Path, done: Shop) -> None:
    said = done.run("check-data", done.data)
    assert said.code == 0
    assert "The folder can be used." in said.out and "nearest pose" in said.out
    report = json.loads(done.run("check-data", done.data, "--json").out)
    assert report["ok"] and report["counts"]["val/val_img"] == 6
    broken = tmp_path / "broken"
    shutil.copytree(done.data, broken, ignore=shutil.ignore_patterns(".cvaeopt-cache"))
    (broken / "train/train_label/3.png").unlink()
    said = done.run("check-data", broken)
    assert said.code == 2
    assert "3.png" in said.out and "Traceback" not in said.err


# ---- bad input: one message, exit code 2 or 3, and nothing left behind


def one_message(said: Said, code: int, *parts: str) -> None:
    assert said.code == code, said
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), said.err
    for part in parts:
        assert part in said.err
    assert "geheim" not in said.text and SECRET not in said.text


def without_labels(shop: Shop) -> list[str]:
    shutil.copytree(shop.data, shop.root / "bare", ignore=shutil.ignore_patterns(".cvaeopt-cache", "train_label"))
    return ["worker", "--study", "tiny", "--data", "bare"]


def misspelt(shop: Shop) -> list[str]:
    text = STUDY.replace("tfr_sde", "tfr_sd")
    (shop.root / "studies/tiny.toml").write_text(text)
    return ["worker", "--study", "tiny"]


def other_definition(shop: Shop) -> list[str]:
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as store:
        create_or_open(store, load_definition(str(shop.root / "studies/tiny.toml")))
    (shop.root / "studies/tiny.toml").write_text(STUDY.replace("1e-4", "1e-5"))
    return ["worker", "--study", "tiny"]


def other_definition_elsewhere(shop: Shop) -> list[str]:
    line = other_definition(shop)
    (shop.root / "studies").rename(shop.root / "elsewhere")
    return [line[0], "--study", "elsewhere/tiny.toml"]


def nothing_complete(shop: Shop) -> list[str]:
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as store:
        create_or_open(store, load_definition(str(shop.root / "studies/tiny.toml")))
    return ["export-best", "--study", "tiny"]


def other_shape(shop: Shop) -> list[str]:
    weights = {
        "frame_transformation.6.weight": torch.zeros(8, 3, 3, 3),
        "label_transformation.6.weight": torch.zeros(1),
    }
    torch.save({"state_dict": weights}, shop.root / "other.pt")
    return ["predict", "other.pt", "--out", "predicted"]


def no_checkpoint(shop: Shop) -> list[str]:
    (shop.root / "other.pt").write_text("not a checkpoint")
    return ["score", "other.pt"]


def file_as_folder(shop: Shop) -> list[str]:
    (shop.root / "file").write_text("")
    return ["report", "--study", "tiny", "--out", "file/page"]


BAD: dict[str, tuple[list[str] | Callable[[Shop], list[str]], int, list[str]]] = {
    "study": (["worker", "--study", "tinny"], 2, ["studies/tinny.toml", "Did you mean 'tiny'?"]),
    "hostile study": (["worker", "--study", "../../x"], 2, ["'../../x' is no study name"]),
    "hostile study, status": (["status", "--study", "../../x"], 2, ["'../../x' is no study name"]),
    "SQL as study": (["stop", "--study", "'; drop table"], 2, ["is no study name", "Expected"]),
    "no database yet": (["status", "--study", "tiny"], 2, ["There is no database", "Start a worker"]),
    "misspelt key": (misspelt, 2, ["studies/tiny.toml: [fixed] has no setting 'tfr_sd'", "Did you mean 'tfr_sde'?"]),
    "missing labels": (without_labels, 2, ["bare", "train_label", "Expected"]),
    "missing data": (["worker", "--study", "tiny", "--data", "nowhere"], 2, ["nowhere", "Expected"]),
    "bad URL": (
        ["worker", "--study", "tiny", "--storage", f"postgres:/lab:{SECRET}@db/x"],
        2,
        ["is not a database URL"],
    ),
    "other database": (["status", "--study", "tiny", "--storage", f"oracle://u:{SECRET}@db/x"], 2, ["not supported"]),
    "SQLite in memory": (["worker", "--study", "tiny", "--storage", "sqlite://"], 2, ["memory of one process"]),
    "GPU that does not exist": (["worker", "--study", "tiny", "--gpu", "77"], 2, ["no GPU 77", "Use --gpu cpu"]),
    "GPU that is no number": (["worker", "--study", "tiny", "--gpu", "x"], 2, ["--gpu 'x'", "Expected: an index"]),
    "other definition": (other_definition, 2, ["created from another definition (stored ", "new name"]),
    "other definition, by path": (other_definition_elsewhere, 2, ["(stored ", " Restore tiny.toml or create"]),
    "nothing to confirm": (
        lambda shop: ["confirm", *nothing_complete(shop)[1:]],
        2,
        ["has no complete trial", "Let a worker finish one"],
    ),
    "unreachable, confirm": (["confirm", "--study", "tiny", "--storage", CLOSED], 3, ["did not answer"]),
    "nothing complete": (nothing_complete, 2, ["has no complete trial", "Let a worker finish one"]),
    "checkpoint of another shape": (other_shape, 2, ["other.pt"]),
    "no checkpoint": (no_checkpoint, 2, ["other.pt is not a readable checkpoint", "Expected"]),
    "missing checkpoint": (["recalibrate", "x.pt"], 2, ["x.pt does not exist"]),
    "missing recipe": (["retrain", "studies/best/x.toml"], 2, ["There is no recipe", "export-best"]),
    "study as recipe": (["retrain", "studies/tiny.toml"], 2, ["is the definition of a study"]),
    "nothing to show": (["show", "."], 2, ["Expected"]),
    "unreachable": (["status", "--study", "tiny", "--storage", CLOSED], 3, ["did not answer", "Bring it back"]),
    "unreachable, worker": (["worker", "--study", "tiny", "--storage", CLOSED], 3, ["lab:***@127.0.0.1"]),
    "unreachable, stop": (["stop", "--study", "tiny", "--storage", CLOSED], 3, ["did not answer"]),
    "unreachable, export": (["export-best", "--study", "tiny", "--storage", CLOSED], 3, ["did not answer"]),
    "unreachable, report": (["report", "--study", "tiny", "--out", "o", "--storage", CLOSED], 3, ["did not answer"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_leaves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    arguments, code, parts = BAD[case]
    monkeypatch.setattr(opening, "READ_LIMIT_S", 0.2)
    monkeypatch.setattr(opening, "START_LIMIT_S", 0.2)
    line = arguments(shop) if callable(arguments) else arguments
    before = shop.files()
    one_message(shop.run(*line), code, *parts)
    assert shop.files() == before


def test_a_folder_that_cannot_be_written_is_named(done: Shop) -> None:
    (done.root / "file").write_text("")
    before = done.files()
    best = "storage/retrain/tiny-2/best.pt"
    for line in (
        ["report", "--study", "tiny", "--out", "file/page"],
        ["predict", best, "--out", "file/predicted", "-q"],
        ["score", best, "--out", "file/scored", "-q"],
        ["recalibrate", best, "--out", "file/new.pt", "-q"],
        ["export-best", "--study", "tiny", "--out", "file/best.toml"],
        ["retrain", "studies/best/tiny.toml", "--out", "file/run", "-q"],
        ["demo-data", "file/data", "-q"],
    ):
        one_message(done.run(*line), 2, "file", "Expected")
    assert done.files() == before


@pytest.mark.parametrize(
    "line", ["worker --study tiny", "dashboard", "fetch --study tiny", "report --study tiny --out x"]
)
def test_a_file_in_place_of_the_artifact_folder_is_named_as_it_was_given(done: Shop, line: str) -> None:
    (done.root / "taken").write_text("")
    before = done.files()
    for given, said in (
        ("taken", "Error: taken is a file."),
        ("taken/x", "Error: taken (in the path taken/x) is a file."),
    ):
        one_message(done.run(*line.split(), ARTIFACTS=given), 2, said, "Expected: the folder", "--artifacts")
    assert done.files() == before


@pytest.mark.parametrize(
    "line",
    [
        "worker --study tiny",
        "score {best}",
        "predict {best} --out o",
        "recalibrate {best}",
        "retrain {recipe}",
        "retrain {recipe} --dry-run",
    ],
)
def test_a_command_without_data_says_how_to_get_some(done: Shop, shop: Shop, line: str) -> None:
    recipe, best = done.root / "studies/best/tiny.toml", done.root / "storage/retrain/tiny-2/best.pt"
    said = shop.run(*line.format(recipe=recipe, best=best).split(), DATA="")
    one_message(said, 2, "No data folder was given.", "--data DIR, CVAEOPT_DATA", "cvaeopt demo-data")


@pytest.mark.parametrize("line", ["score", "predict --out o", "recalibrate", "retrain {recipe} --from"])
@pytest.mark.parametrize("data", ["", "nowhere"])
def test_a_checkpoint_that_is_not_there_is_said_before_data_are_asked_for(
    done: Shop, shop: Shop, line: str, data: str
) -> None:
    words = line.format(recipe=done.root / "studies/best/tiny.toml").split()
    one_message(shop.run(*words, "nosuch.pt", DATA=data), 2, "nosuch.pt does not exist.", "Expected: a checkpoint")


def test_a_run_of_other_settings_is_not_continued(done: Shop) -> None:
    before = done.files()
    said = done.run("retrain", "studies/best/tiny.toml", "--epochs", "2", "--set", "lr=0.5", "-q")
    one_message(said, 2, "storage/retrain/tiny-2 holds a run of other settings", "lr", "Name another folder")
    said = done.run("retrain", "studies/best/tiny.toml", "--set", "lr", "-q")
    one_message(said, 2, "--set lr", "NAME=VALUE")
    said = done.run("retrain", "studies/best/tiny.toml", "--set", "lrr=1", "-q")
    one_message(said, 2, "Did you mean 'lr'?")
    assert done.files() == before


def test_other_data_are_refused(done: Shop, tmp_path: Path) -> None:
    other = Shop.new(tmp_path)
    shutil.copyfile(other.data / "val/val_img/1.png", other.data / "val/val_img/2.png")
    said = done.run("worker", "--study", "tiny", "--data", other.data, "-q")
    one_message(said, 2, "was measured on other data")


@pytest.mark.parametrize(
    "line", [["--bad"], ["worker"], ["stattus", "--study", "x"], ["retrain", "x", "--epochs", "0"]]
)
def test_what_cannot_be_parsed_is_answered_with_the_usage(shop: Shop, line: list[str]) -> None:
    said = shop.run(*line)
    assert said.code == 2
    assert said.out == "" and "Usage: cvaeopt" in said.err and "Error: " in said.err
    assert ("There are: tiny." in said.err) == (line == ["worker"])


def test_a_password_is_not_even_in_a_traceback(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "READ_LIMIT_S", 0.1)
    for url in (CLOSED, f"oracle://u:{SECRET}@db/x", f"postgresql://u:{SECRET}@db:port/x", f"{CLOSED}?sslmode=wrong"):
        said = shop.run("status", "--study", "tiny", "-v", STORAGE=url)
        assert said.code in (2, 3)
        assert "Traceback" in said.err
        assert SECRET not in said.text and "ge@heim" not in said.text


def test_a_worker_says_that_it_waits_for_the_database(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "START_LIMIT_S", 2.3)
    said = shop.run("worker", "--study", "tiny", STORAGE=CLOSED)
    assert said.code == 3
    assert "postgresql://lab:***@127.0.0.1:1/cvaeopt has not answered yet; waiting up to 2 s" in said.err


@pytest.mark.parametrize("url", ["postgresql://lab@127.0.0.1:1/cvaeopt", "sqlite:///new/x.db"])
def test_only_a_server_that_did_not_answer_is_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(opening, "_SAY_AFTER_S", 0.0)
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSWORD_FILE", "missing")
    said = shop.run("status", "--study", "tiny", STORAGE=url)
    one_message(said, 2, "PGPASSWORD_FILE: missing" if url.startswith("post") else f"{shop.root}/new/x.db yet")


def test_a_port_in_use_is_named(shop: Shop) -> None:
    before = shop.files()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = shop.run("dashboard", "--port", port)
    one_message(said, 2, f"cannot listen on 127.0.0.1:{port}", "--port")
    assert shop.files() == before


# ---- what nobody expected


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (ZeroDivisionError("division by zero"), 1, ["ZeroDivisionError: division by zero", "looks like a bug", "-v"]),
        (KeyError(), 1, ["KeyError."]),
        (
            OSError(errno.ENOSPC, "No space left on device", "/big/file"),
            2,
            ["The disk is full (/big/file)", "Make room"],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/mnt/x"), 2, ["/mnt/x: Permission denied", "Expected"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/proc/.x.toml.ab_c1.part"), 2, ["Error: /proc/x.toml: No"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, ["Out of memory", "batch_size"]),
        (RuntimeError("CUDA error: device-side assert triggered"), 75, ["The device failed"]),
    ],
)
def test_an_unexpected_error_is_one_message_too(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, parts: list[str]
) -> None:
    def fail(path: Path) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(score, "show", fail)
    one_message(shop.run("show", "x"), code, *parts)
    said = shop.run("show", "x", "-v")
    assert said.code == code
    assert "in fail\n    raise error" in said.err
    assert said.err.splitlines()[-1].startswith("Error: ")


def test_an_interrupted_retrain_says_how_it_goes_on(done: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: retrain.Retraining) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(retrain.Retraining, "run", interrupted)
    one_message(
        done.run("retrain", "studies/best/tiny.toml", "--out", "interrupted", "-q"), 130, "The same command continues"
    )


@pytest.mark.parametrize("target", ["predict", "retrain", "export-best", "report"])
def test_a_full_disk_names_the_path_and_leaves_no_empty_folder(
    done: Shop, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    best, recipe = "storage/retrain/tiny-2/best.pt", "studies/best/tiny.toml"
    lines = {
        "predict": ["predict", best, "--out", "full/deep", "-q"],
        "retrain": ["retrain", recipe, "--out", "full/deep", "-q"],
        "export-best": ["export-best", "--study", "tiny", "--out", "full/deep/best.toml"],
        "report": ["report", "--study", "tiny", "--out", "full/deep"],
    }
    before = done.files()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    one_message(done.run(*lines[target]), 2, "The disk is full (full/deep", "Make room")
    assert done.files() == before
    assert not (done.root / "full").exists()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR1])  # tests/run/test_signals.py has all of them
def test_a_first_signal_lets_retrain_finish_its_epoch_and_a_second_one_does_not(
    done: Shop, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
) -> None:
    line = ["retrain", "studies/best/tiny.toml", "--epochs", "3", "--out", f"stopped-{kind}"]
    save, times = Trainer.save, 1

    def interrupted(self: Trainer, *given: Any) -> None:
        save(self, *given)
        if given[0].name == "last.pt" and self.epoch < 3:
            for _ in range(times):
                signal.raise_signal(kind)

    monkeypatch.setattr(Trainer, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's `&` leaves it
    try:
        said = done.run(*line)
        stopped = f"Stopped after epoch 1 of 3; the same command continues stopped-{kind}.\n"
        assert (said.code, said.out) == (0, stopped), said.err
        times = 2
        said = done.run(*line, "-q")
        one_message(said, 130, "Stopped in epoch 3 of 3.", "The same command continues")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    said = done.run(*line)
    assert said.code == 0 and "Continuing stopped-" in said.err and "validation PSNR" in said.out


def test_a_dashboard_needs_the_file_of_its_study_only_where_the_storage_lacks_it(
    done: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvaeopt.run import dashboard

    served: list[str] = []

    class Unheard(contextlib.AbstractContextManager[Any]):
        def __init__(self, *_: object) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def set_app(self, app: object) -> None: ...
        def serve_forever(self) -> None: ...

    def served_from(store: Any, *_: object, **__: object) -> None:
        served.append(store.url)

    monkeypatch.setattr(dashboard, "Server", Unheard)
    monkeypatch.setattr(dashboard, "application", served_from)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    url = f"sqlite:///{done.root}/storage/cvaeopt.db"
    (tmp_path / "empty").mkdir()
    empty = Shop(tmp_path / "empty", done.data)
    for study in ("tiny", "elsewhere/tiny.toml"):
        said = empty.run("dashboard", "--study", study, STORAGE=url)
        assert said.code == 0, said.err
        assert "the page is empty" not in said.err
    assert served == [url, url]
    assert "the page is empty until a worker starts" in Shop.new(tmp_path / "new", done.data).run("dashboard").err
    one_message(empty.run("dashboard", "--study", "tinny", STORAGE=url), 2, "has no study 'tinny'", "'tiny'")
    before = empty.files()
    one_message(empty.run("dashboard", "--study", "tiny"), 2, "There is no database")
    assert empty.files() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dashboard_that_is_told_to_end_has_not_failed(done: Shop, number: signal.Signals) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "cvaeopt.cli", "dashboard", "--study", "tiny", "--port", str(port), "-q"]
    line += ["--read-only", "--allow-host", "lab.example"]
    process = subprocess.Popen(line, cwd=done.root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120

    def asked(method: str, host: str) -> int:
        while True:
            assert time.monotonic() < deadline and process.poll() is None
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.suppress(ConnectionRefusedError), contextlib.closing(connection):
                connection.request(method, "/api/studies", headers={"Host": host})
                return connection.getresponse().status
            time.sleep(0.1)

    said = [asked("GET", "lab.example"), asked("GET", "evil.example"), asked("POST", "lab.example")]
    with socket.create_connection(("127.0.0.1", port)):  # an idle connection delays the end as little as requests
        process.send_signal(number)
        assert process.wait(60) == 0
    assert said == [200, 403, 403]
    assert process.communicate() == ("", "")


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cvaeopt.cli", "demo-data", "data"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    until(lambda: list(tmp_path.rglob("*.png")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_watching_in_a_real_terminal_ends_with_ctrl_c_and_exit_code_0(done: Shop) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    line = [sys.executable, "-m", "cvaeopt.cli", "status", "--study", "tiny", "--watch"]
    process = subprocess.Popen(line, cwd=done.root, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, deadline, asked = b"", time.monotonic() + LONG_S, False
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        if b"last beat" in seen and not asked:
            asked = True
            process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(LONG_S) == 0, seen.decode()
    before, left, after = seen.decode().partition("\x1b[?1049l")
    assert left, seen
    assert "Ctrl-C ends this view" in before
    assert "2 complete" in after and "Traceback" not in after
