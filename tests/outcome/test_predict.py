from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvaeopt.errors import CheckpointError, DataError
from cvaeopt.outcome import predict as module
from cvaeopt.outcome.predict import Noise, predict
from cvaeopt.outcome.score import recalibrate, score, show
from cvaeopt.pictures.run_pictures import write_gif
from cvaeopt.vae import checkpoint
from cvaeopt.vae.metrics import public_score
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.rollout import to_float
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from tests.support import plain
from tests.support.gifs import gif_frames
from tests.support.made_up import frames, sequence_folder

ZERO = Noise("zero")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours after two epochs."""
    trainer = Trainer(tiny.config(lr_scheduler="constant", lr=3e-3), tiny.dataset())
    for _ in trainer.run(2):
        pass
    path = tmp_path_factory.mktemp("ours") / "best.pt"
    trainer.save(path, {"study": "main", "trial": 17})
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CVAE]:
    """A checkpoint as the lab's trainer saves it, at 32 x 64, and its network."""
    torch.manual_seed(3)
    model = CVAE(8, 4, 4, 8)
    model.eval()
    path = tmp_path_factory.mktemp("lab") / "epoch=7.ckpt"
    state = model.state_dict()
    torch.save({"state_dict": state, "optimizer": state, "lr": 1e-3, "tfr": 0.2, "last_epoch": 7}, path)
    return path, model


def rows_of(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as stream:
        lines = list(csv.reader(stream))
    return lines[0], np.array(lines[1:], dtype=int)


def test_the_submission_has_the_labs_format(ours: Path, tmp_path: Path):
    root = sequence_folder(tmp_path / "data", sequences=3, labels=5, first_number=1)
    result = predict(ours, root, tmp_path / "out")
    header, rows = rows_of(result.submission)
    assert header == ["id", *(str(pixel) for pixel in range(3 * 8 * 16))]
    assert rows.shape == (15, 1 + 3 * 8 * 16)
    assert rows[:, 0].tolist() == list(range(15))
    assert rows[:, 1:].min() >= 0
    assert rows[:, 1:].max() <= 255
    for index in range(3):  # the first row of a sequence is the given frame, in C, H, W order
        assert np.array_equal(rows[index * 5, 1:], frames(1, seed=index + 1)[0].ravel())
    assert result.submission.read_bytes().endswith(b"\n")
    assert b"\r" not in result.submission.read_bytes()


def test_gifs_show_the_same_frames_as_the_submission(ours: Path, tmp_path: Path):
    root = sequence_folder(tmp_path / "data", sequences=2, labels=6)
    predict(ours, root, tmp_path / "out")
    _, rows = rows_of(tmp_path / "out" / "submission.csv")
    for index in range(2):
        shown, durations, loop = gif_frames(tmp_path / "out" / f"pred_seq{index}.gif")
        assert (sum(durations), loop) == (6 * 20, 0)
        if len(shown) == 6:  # equal neighbours are stored as one longer frame
            wanted = rows[index * 6 : index * 6 + 6, 1:].reshape(6, 3, 8, 16)
            assert np.abs(shown.astype(int) - wanted).max() <= 2


def test_values_outside_the_range_are_clipped_and_never_wrap(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def beyond(loaded, first, labels, z):
        made = torch.zeros(len(labels), *first.shape)
        made[:, 0], made[:, 1], made[:, 2] = -0.4, 1.7, 127.4 / 255
        return made

    monkeypatch.setattr(module, "roll_frames", beyond)
    root = sequence_folder(tmp_path / "data", sequences=1, labels=4)
    predict(ours, root, tmp_path / "out")
    _, rows = rows_of(tmp_path / "out" / "submission.csv")
    pixels = rows[1:, 1:].reshape(3, 3, 8, 16)
    shown, _, _ = gif_frames(tmp_path / "out" / "pred_seq0.gif")
    for channel, value in enumerate((0, 255, 127)):
        assert np.all(pixels[:, channel] == value)
        assert np.all(shown[-1, channel] == value)


def test_a_lab_checkpoint_predicts_what_the_plain_loop_does(lab: tuple[Path, CVAE], tmp_path: Path):
    path, model = lab
    root = tmp_path / "data"
    sequence_folder(root, sequences=1, labels=9)
    for name in ("test_img", "test_label"):  # written small, read at 32 x 64
        assert (root / "test" / name / "0").is_dir()
    predict(path, root, tmp_path / "out", z=ZERO)
    _, rows = rows_of(tmp_path / "out" / "submission.csv")
    assert rows.shape == (9, 1 + 6144)
    from cvaeopt.vae.sequences import test_sequences as sequences

    sequence = next(sequences(root, 32, 64))
    labels = to_float(torch.tensor(sequence.labels[1:]))
    first = to_float(torch.tensor(sequence.first[None]))
    wanted = plain.roll_out(model, first, labels, torch.zeros(8, 4, 32, 64), "linear")
    pixels = (wanted.clamp(0, 1) * 255).round().int().numpy().reshape(8, -1)
    assert np.array_equal(rows[0, 1:], sequence.first.ravel())
    difference = np.abs(rows[1:, 1:] - pixels)
    assert difference.max() <= 1  # float32 sums in another order, at the edge of a rounding
    assert (difference == 0).mean() > 0.999


def test_a_checkpoint_of_the_labs_own_code_predicts_the_bytes_of_the_labs_own_loop(tmp_path: Path):
    """Neither network, checkpoint, loop nor CSV of the expected side is ours."""
    from tests.support.lab import VAE_Model

    torch.manual_seed(11)
    theirs = VAE_Model(16, 4, 8, 16)
    labels, starts = [], []
    root = sequence_folder(tmp_path / "data", sequences=2, labels=4)
    for number in range(2):
        read = [Image.open(root / f"test/test_label/{number}/{index}.png") for index in range(4)]
        start = Image.open(root / f"test/test_img/{number}/0.png")
        wide = [np.array(image.convert("RGB").resize((64, 32), Image.BILINEAR)) for image in (*read, start)]
        pixels = torch.tensor(np.stack(wide)).permute(0, 3, 1, 2)
        labels.append(pixels[1:4] / 255)
        starts.append(pixels[4:])
    theirs.train()
    with torch.no_grad():  # statistics that are neither 0 nor 1
        theirs.label_transformation(torch.cat(labels))
    theirs.save(tmp_path / "epoch=7.ckpt")
    predict(tmp_path / "epoch=7.ckpt", root, tmp_path / "out", z=ZERO)

    _, ours = rows_of(tmp_path / "out" / "submission.csv")
    lines, number, edges = ["id," + ",".join(str(pixel) for pixel in range(6144))], 0, 0
    for index, (start, given) in enumerate(zip(starts, labels, strict=True)):
        exact = theirs.test_loop(start / 255, given, 8).clamp(0, 1).double().numpy() * 255
        rounded = np.rint(exact).astype(np.uint8)
        mine = ours[number + 1 : number + 4, 1:].reshape(3, 3, 32, 64).astype(np.uint8)
        # Sums in another order may fall on the other side of a rounding edge, and nowhere else.
        on_edge = np.abs(exact - np.floor(exact) - 0.5) < 2e-3
        assert np.array_equal(mine[~on_edge], rounded[~on_edge])
        edges += int((mine != rounded).sum())
        frames_of = np.concatenate([start.numpy(), np.where(on_edge, mine, rounded)])
        for frame in frames_of:
            lines.append(",".join(str(value) for value in [number, *frame.ravel().tolist()]))
            number += 1
        write_gif(tmp_path / "plain.gif", iter(frames_of))
        assert (tmp_path / "plain.gif").read_bytes() == (tmp_path / "out" / f"pred_seq{index}.gif").read_bytes()
    assert (tmp_path / "out" / "submission.csv").read_text() == "\n".join(lines) + "\n"
    assert np.ptp(ours[:, 1:]) > 50  # a picture, not one grey
    assert edges <= 3


def test_noise_follows_its_kind_and_seed(ours: Path, tmp_path: Path):
    root = sequence_folder(tmp_path / "data", sequences=1, labels=4)

    def made(z: Noise, average: int = 1) -> np.ndarray:
        return rows_of(predict(ours, root, tmp_path / "out", z=z, average=average).submission)[1]

    assert np.array_equal(made(Noise("prior", seed=1)), made(Noise("prior", seed=1)))
    assert not np.array_equal(made(Noise("prior", seed=1)), made(Noise("prior", seed=2)))
    assert np.array_equal(made(Noise("scaled", scale=0.0)), made(ZERO))
    assert np.array_equal(made(ZERO, average=3), made(ZERO))
    assert not np.array_equal(made(Noise("prior", seed=1), average=2), made(Noise("prior", seed=1)))


def test_a_prediction_carries_its_provenance(ours: Path, tmp_path: Path):
    root = sequence_folder(tmp_path / "data", sequences=2, labels=4, truth=True)
    calls: list[tuple[int, int]] = []
    result = predict(ours, root, tmp_path / "out", progress=lambda what, done, total: calls.append((done, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]
    said = show(tmp_path / "out")
    assert said == show(result.submission) == json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert said["checkpoint"]["provenance"] == {"study": "main", "trial": 17}
    assert said["rows"] == 8
    _, rows = rows_of(result.submission)
    first = rows[:4, 1:].reshape(4, 3, 8, 16).astype(np.uint8)
    assert said["sequences"][0]["public_db"] == pytest.approx(public_score(first, frames(4, seed=0)))
    assert said["public_db"] == pytest.approx(result.public_db)


def test_a_folder_without_test_sequences_is_refused_and_nothing_is_left(ours: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="has no test sequences"):
        predict(ours, tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_sequence_leaves_no_submission(ours: Path, tmp_path: Path):
    root = sequence_folder(tmp_path / "data", sequences=2, labels=4)
    (root / "test/test_label/1/2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2\.png"):
        predict(ours, root, tmp_path / "out")
    assert not (tmp_path / "out" / "submission.csv").exists()


def test_a_score_is_what_training_saw(tmp_path: Path):
    trainer = Trainer(tiny.config(), tiny.dataset())
    (result,) = trainer.run(1)
    trainer.save(tmp_path / "last.pt")
    sheet = score(tmp_path / "last.pt", tiny.dataset())
    assert sheet.mean == pytest.approx(result.val_psnr, abs=1e-4)
    assert sheet.late == pytest.approx(result.val_psnr_late, abs=1e-4)
    assert len(sheet.psnr_frames) == len(tiny.dataset().val) - 1
    assert json.loads(json.dumps(sheet.plain()))["epoch"] == 1
    best = max(sheet.baselines.copy_first, sheet.baselines.train_mean)
    assert sheet.gain == pytest.approx(sheet.mean - best)


def test_data_of_another_size_is_refused(tmp_path: Path):
    trainer = Trainer(tiny.config(), tiny.dataset())
    trainer.save(tmp_path / "a.pt")
    small = tiny.dataset()
    wide = type(small)(
        small.root,
        type(small.train)(small.train.frames[..., :8], small.train.labels[..., :8]),
        type(small.val)(small.val.frames[..., :8], small.val.labels[..., :8]),
        small.digest,
    )
    with pytest.raises(DataError, match="8 x 8"):
        score(tmp_path / "a.pt", wide)


@pytest.mark.parametrize("kind", ["lab", "ours"])
def test_recalibration_keeps_the_format_and_changes_statistics_only(kind: str, tmp_path: Path):
    trainer = Trainer(tiny.config(), tiny.dataset())
    for _ in trainer.run(1):
        pass
    path, out = tmp_path / "a.pt", tmp_path / "b.pt"
    if kind == "ours":
        trainer.save(path)
    else:
        state = trainer.model.state_dict()
        torch.save({"state_dict": state, "optimizer": state, "lr": 1e-3, "tfr": 0.0, "last_epoch": 1}, path)
    result = recalibrate(path, tiny.dataset(), out)
    before, after = checkpoint.read(path), checkpoint.read(out)
    assert before.keys() == after.keys()
    statistics = ("running_mean", "running_var")
    for key, value in before["state_dict"].items():
        if not key.endswith(statistics):
            assert torch.equal(value, after["state_dict"][key])
    norm = next(key for key in before["state_dict"] if key.endswith("running_mean"))
    changed = not torch.equal(before["state_dict"][norm], after["state_dict"][norm])
    assert changed == (kind == "lab")  # ours is written recalibrated
    assert result.after == pytest.approx(score(out, tiny.dataset()).mean, abs=1e-4)
    assert result.before == pytest.approx(score(path, tiny.dataset()).mean, abs=1e-4)
    if kind == "ours":
        one, other = (Trainer(tiny.config(), tiny.dataset()) for _ in range(2))
        one.restore(path)
        other.restore(out)
        assert all(torch.equal(a, b) for a, b in zip(one.model.buffers(), other.model.buffers(), strict=True))


def test_recalibration_never_overwrites_its_input(ours: Path):
    with pytest.raises(CheckpointError, match="is the checkpoint itself"):
        recalibrate(ours, tiny.dataset(), ours)


def test_show_tells_where_a_checkpoint_comes_from(ours: Path, lab: tuple[Path, CVAE], tmp_path: Path):
    said = show(ours)
    assert (said["format"], said["epoch"], said["provenance"]["trial"]) == ("cvaeopt", 2, 17)
    assert said["data_digest"] == tiny.dataset().digest
    assert show(lab[0])["format"] == "lab"
    with pytest.raises(CheckpointError, match="has none of"):
        show(tmp_path)
