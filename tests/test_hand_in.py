"""`cvaeopt hand-in`: the folder that is graded, and the check of a submission."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cvaeopt.outcome import hand_in, recipe
from cvaeopt.outcome.hand_in_text import Facts
from cvaeopt.vae.checkpoint import load_model
from cvaeopt.vae.sequences import test_sequences as sequences
from tests.support.command import Shop
from tests.support.lab import VAE_Model
from tests.support.tex import faults

RECIPE = "[settings]\nF_dim = 8\nL_dim = 4\nN_dim = 4\nD_out_dim = 8\ntrain_vi_len = 4\noutput = 'sigmoid'\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A folder with a small data set, a trained checkpoint, its hand-in, and a submission of the true frames."""
    shop = Shop.new(tmp_path_factory.mktemp("hand") / "here")
    (sequence,) = sequences(shop.data)
    assert sequence.truth is not None
    rows = np.concatenate([np.arange(4)[:, None], sequence.truth.reshape(4, -1)], 1)
    header = ",".join(["id", *map(str, range(6144))])
    lines = [header, *(",".join(map(str, row)) for row in rows.tolist())]
    (shop.root / "right.csv").write_text("\n".join(lines) + "\n")
    lines[3] = lines[3].replace(",", ",999,", 1).rpartition(",")[0]
    (shop.root / "wrong.csv").write_text("\n".join(lines) + "\n")
    (shop.root / "short.toml").write_text(RECIPE)
    said = shop.run("train", "short.toml", "--epochs", "1", "--out", "run")
    assert said.code == 0, said.err
    said = shop.run("hand-in", "--checkpoint", "run/best.pt", "--out", "hand-in", "--json")
    assert said.code == 0, said.err
    (shop.root / "said.json").write_text(said.out)
    return shop


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn, which saves seconds."""
    monkeypatch.setattr(hand_in, "_charts", lambda *given: {})


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_holds_all_that_is_graded(shop: Shop) -> None:
    folder = shop.root / "hand-in"
    found = digests(folder)
    assert {"submission.csv", "pred_seq0.gif", "checkpoint.ckpt", "recipe.toml", "environment.json"} <= found.keys()
    assert {"report.md", "report.tex", "facts.json", "README.md", "hand-in.json"} <= found.keys()
    assert {"figures/psnr_per_frame.pdf", "figures/training.pdf", "figures/worst_frames.pdf"} <= found.keys()
    assert set(json.loads((shop.root / "said.json").read_text())["files"]) == found.keys()
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: value for name, value in found.items() if name not in ("SHA256SUMS", "hand-in.json")}
    assert shop.run("hand-in", "--check", folder / "submission.csv").code == 0
    assert recipe.read(folder / "recipe.toml").settings == load_model(shop.root / "run" / "best.pt").config


def test_the_checkpoint_is_what_the_labs_program_loads(shop: Shop) -> None:
    stored = torch.load(shop.root / "hand-in" / "checkpoint.ckpt", weights_only=True)
    assert stored.keys() == {"state_dict", "optimizer", "lr", "tfr", "last_epoch"}
    VAE_Model(8, 4, 4, 8).load_state_dict(stored["state_dict"], strict=True)
    ours = load_model(shop.root / "run" / "best.pt").model.state_dict()
    assert all(torch.equal(stored["state_dict"][name], value) for name, value in ours.items())
    assert stored["last_epoch"] == 1
    readme = (shop.root / "hand-in" / "README.md").read_text()
    assert "applies no sigmoid" in readme
    assert "--F_dim 8" in readme


def test_nothing_handed_in_names_the_user_or_a_folder(shop: Shop) -> None:
    folders = {str(place).encode() for place in (shop.root, shop.data, Path.home(), Path.cwd())} - {b"/"}
    for path in (shop.root / "hand-in").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [name for name in folders if name in content], path.name
            if path.suffix in (".md", ".tex", ".json", ".toml"):
                assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content.decode()), path.name


def test_every_number_of_the_report_comes_from_the_facts(shop: Shop) -> None:
    folder = shop.root / "hand-in"
    facts = Facts(json.loads((folder / "facts.json").read_text()))
    traced = 0
    for line in (folder / "report.md").read_text().splitlines()[1:]:
        text, _, comment = line.partition("<!-- facts.json: ")
        if not comment:
            assert line.startswith("|") or not re.search(r"\d", text), line
        for path, value in re.findall(r"(\S+) = (.*?)(?=; \S+ = | -->)", comment):
            assert facts.at(path) == json.loads(value), path
            traced += 1
    assert traced > 20
    for name in re.findall(r"\(figures/(.*?)\)", (folder / "report.md").read_text()):
        assert (folder / "figures" / name).exists()


def test_the_latex_is_sound_and_its_figures_exist(shop: Shop) -> None:
    folder = shop.root / "hand-in"
    text = (folder / "report.tex").read_text()
    assert faults(text) == []
    shown = re.findall(r"\\includegraphics.*?\{(figures/.*?\.pdf)\}", text)
    assert len(shown) >= 4
    assert all((folder / name).read_bytes().startswith(b"%PDF") for name in shown)
    headings = re.findall(r"section\{(.*?)\}", text)
    assert "Plot teacher forcing ratio" in headings
    assert text.count(r"\byauthor{") >= 8


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-base)")
def test_the_latex_compiles_without_a_line_outside_its_margins(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    shutil.copytree(shop.root / "hand-in", folder)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    ended = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = ended.stdout.decode(errors="replace")
    assert ended.returncode == 0, said[-2000:]
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "Overfull" not in said


@pytest.mark.usefixtures("without_charts")
def test_without_a_test_set_and_with_a_lab_checkpoint_it_says_what_is_missing(shop: Shop, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(shop.data, bare, ignore=shutil.ignore_patterns("test"))
    command = ("hand-in", "--checkpoint", "hand-in/checkpoint.ckpt", "--out", "bare", "--data", bare)
    for more in ([], ["--dry-run"]):  # what is not complete must not look complete
        said = shop.run(*command, *more)
        assert (said.code, (shop.root / "bare").exists()) == (2, False)
        assert "has no test sequences" in said.text
        assert "--without-submission" in said.text
    said = shop.run(*command, "--without-submission")
    assert said.code == 0, said.err
    found = digests(shop.root / "bare")
    assert not {"submission.csv", "pred_seq0.gif", "recipe.toml"} & found.keys()
    for text in ("the data folder has no test sequences", "does not hold the settings", "no study was named"):
        assert text in said.text
        assert text in (shop.root / "bare" / "README.md").read_text()


@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "report.md").write_text("my own words"),
        lambda folder: (folder / "notes.txt").write_text("mine"),
        lambda folder: (folder / "README.md").unlink(),
        lambda folder: (folder / "hand-in.json").unlink(),
        lambda folder: (folder / "hand-in.json").write_text("[]"),
    ],
)
def test_a_folder_that_somebody_changed_is_never_replaced(
    shop: Shop, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(shop.root / "hand-in", out)
    change(out)
    before = digests(out)
    said = shop.run("hand-in", "--checkpoint", "run/best.pt", "--out", out)
    assert (said.code, digests(out)) == (2, before)
    assert "Name another folder" in said.text


@pytest.mark.usefixtures("without_charts")
def test_its_own_folder_is_replaced_and_a_failure_leaves_it_as_it_was(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(shop.root / "hand-in", out)
    before = digests(out)

    def broken(*given: object) -> None:
        raise OSError(28, "No space left on device")

    def stopped(*given: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    for fault, place, left, code, text in (
        (broken, out, before, 2, "disk is full"),
        (stopped, tmp_path / "new", {}, 130, "Stopped; nothing was written."),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(hand_in, "_write_report", fault)
            said = shop.run("hand-in", "--checkpoint", "run/best.pt", "--out", place)
        assert (said.code, text in said.err, digests(place)) == (code, True, left), said.err
        for step in ("rolling out the validation video", "predicting test sequences"):
            assert f"{step}: 1 of 1" in said.err
    said = shop.run("hand-in", "--checkpoint", "run/best.pt", "--out", out, "--noise", "zero")
    assert said.code == 0, said.err
    assert digests(out)["submission.csv"] != before["submission.csv"]
    assert not (out / "figures").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dry_run_writes_nothing(shop: Shop) -> None:
    before = shop.files()
    said = shop.run("hand-in", "--checkpoint", "run/best.pt", "--out", "none", "--dry-run")
    assert said.code == 0
    assert "Would write none with 1 test sequence." in said.text
    assert shop.files() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No --checkpoint was given. Expected: --checkpoint FILE --out DIR, or --check FILE."),
        (["--checkpoint", "run/best.pt"], "No --out was given"),
        (["--checkpoint", "none.pt", "--out", "x"], "none.pt does not exist"),
        (["--checkpoint", "run/best.pt", "--out", "run"], "run exists, and hand-in did not write it"),
        (["--checkpoint", "run/best.pt", "--out", "short.toml"], "short.toml exists, and hand-in did not write it"),
        (["--checkpoint", "run/best.pt", "--out", "x", "--check", "right.csv"], "Leave --checkpoint and --out out"),
        (["--check", "none.csv"], "none.csv cannot be read"),
        (["--check", "right.csv", "--data", "nowhere"], "nowhere is no folder"),
    ],
)
def test_wrong_arguments_are_the_users_error(shop: Shop, arguments: list[str], message: str) -> None:
    said = shop.run("hand-in", *arguments)
    assert said.code == 2
    assert message in said.text


# ---- the check


def test_a_right_submission_passes_and_a_wrong_one_ends_with_exit_code_2(shop: Shop) -> None:
    said = shop.run("hand-in", "--check", "right.csv")
    assert (said.code, said.err) == (0, "")
    assert "right.csv: 4 rows of 1 sequence, compared with the given frames. It has the format." in said.text
    said = shop.run("hand-in", "--check", "wrong.csv")
    assert said.code == 2
    assert "row 2 (line 4), column 0: '999'. Expected: an integer 0-255." in said.text


def test_the_check_as_json_names_row_and_column(shop: Shop) -> None:
    said = shop.run("hand-in", "--check", "wrong.csv", "--json")
    assert said.code == 2
    found = json.loads(said.out)
    assert (found["ok"], found["fault_count"]) == (False, 1)
    assert [(fault["row"], fault["line"], fault["column"]) for fault in found["faults"]] == [(2, 4, "0")]


def test_without_data_the_labs_number_of_rows_is_expected(shop: Shop) -> None:
    said = shop.run("hand-in", "--check", "right.csv", DATA="")
    assert said.code == 2
    assert "has 4 rows. Expected: 5 sequences of 630 or 6 sequences of 630." in said.text
