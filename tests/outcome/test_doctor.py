"""Faults of a trainer in the shape of the lab's template: each one is found, and a trainer without faults has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cvaeopt.errors import UserError
from cvaeopt.outcome.doctor import COSTS, diagnose
from cvaeopt.outcome.trainer_checks import CHECKS, examine, raised
from cvaeopt.outcome.trainer_probe import opened
from tests.support.command import Shop

SUPPORT = Path(__file__).parents[1] / "support"
NETWORKS = (SUPPORT / "trainer_modules.py").read_text()


def written(folder: Path, *faults: str, modules: str | None = NETWORKS) -> Path:
    """Trainer.py with these faults, and modules.py beside it."""
    code = (SUPPORT / "trainer.py").read_text().replace("FAULTS: set[str] = set()", f"FAULTS = {set(faults)!r}")
    (folder / "Trainer.py").write_text(code)
    if modules is not None:
        (folder / "modules.py").write_text(modules)
    return folder / "Trainer.py"


def checked(trainer: Path) -> dict[str, dict[str, Any]]:
    """The rows with a finding or without a check, by name."""
    kept: list[list[dict[str, Any]]] = []
    with opened(trainer) as driven:
        examine(driven, lambda rows: kept.append(list(rows)))
    assert [len(rows) for rows in kept] == list(range(len(CHECKS) + 1))  # what is known when a check never ends
    return {row["check"]: row for row in kept[-1] if row["found"] or row["unchecked"]}


def test_a_trainer_without_faults_has_no_finding(tmp_path: Path) -> None:
    assert checked(written(tmp_path)) == {}
    assert CHECKS.keys() == COSTS.keys()


FAULTS = {
    "scored": ("truth scored", "in a forced step the true frame is scored against itself", "mse = self.mse_criterion"),
    "posterior input": ("posterior input", "the posterior sees the frame before", "self.Gaussian_Predictor(self"),
    "leak": ("posterior leak", "in validation z is the posterior's of true frame 1", "return self.Generator"),
    "template eval": ("BatchNorm mode", "in validation BatchNorm is in training mode", "def eval"),
    "stays in eval": ("BatchNorm mode", "BatchNorm stays in evaluation mode", "def training_one_step"),
    "given frame": ("PSNR of the given frame", "PSNR is computed for the given frame", "psnr += float"),
    "divides": ("PSNR of the given frame", "629 PSNR values is divided by 630", "def val_one_step"),
    "detach": ("detach", "is fed back without detach", "frame, pose = self.frame_transformation"),
    "cycle length": ("KL cycle", "kl_anneal_cycle is the length of a cycle", "class kl_annealing"),
    "starts late": ("KL cycle", "beta never exceeds 0.122: it is divided by the period twice", "class kl_annealing"),
    "odd beta": ("KL cycle", "beta follows no known formula: it is between 0.5 and 0.5", "class kl_annealing"),
    "frozen": ("frozen learning rate", "is 1e-05 from epoch 5 on, after 0.001", "MultiStepLR"),
    "label": ("label order", "in training frame 1 is predicted from label 0", "return self.Generator"),
    "view": ("label order", "time and batch are mixed", "return self.Generator"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_the_only_finding_and_has_its_line(tmp_path: Path, fault: str) -> None:
    check, says, code = FAULTS[fault]
    trainer = written(tmp_path, fault)
    found = checked(trainer)
    assert found.keys() == {check}
    assert says in found[check]["found"]
    assert code in trainer.read_text().splitlines()[found[check]["line"] - 1]


@pytest.mark.parametrize(
    ("spread", "says"), [("logvar", "logvar"), ("torch.exp(logvar)", "exp(logvar)"), ("0", "no noise")]
)
def test_z_has_the_wrong_spread(tmp_path: Path, spread: str, says: str) -> None:
    found = checked(written(tmp_path, modules=NETWORKS.replace("torch.exp(logvar / 2)", spread)))
    assert found["reparameterization"]["found"] == f"the standard deviation of z is {says}, not exp(logvar / 2)"


SEEDS = {
    "000": (("template eval", "cycle length", "frozen"), {"BatchNorm mode", "KL cycle", "frozen learning rate"}),
    "001": (("template eval", "frozen"), {"BatchNorm mode", "frozen learning rate"}),
    "003": (
        ("template eval", "scored", "posterior input", "detach", "starts late", "frozen"),
        {"BatchNorm mode", "truth scored", "posterior input", "detach", "KL cycle", "frozen learning rate"},
    ),
    "004": (("view", "detach", "cycle length"), {"label order", "detach", "KL cycle"}),
}
"""Report -> the faults of its printed code (trainers in our words that behave as it does), and what must be found."""


@pytest.mark.parametrize("seed", SEEDS)
def test_trainers_that_behave_as_the_reports_code_have_its_findings(tmp_path: Path, seed: str) -> None:
    faults, expected = SEEDS[seed]
    found = checked(written(tmp_path, *faults))
    assert {name for name, row in found.items() if row["found"]} == expected
    assert not any(row["unchecked"] for row in found.values())


def test_another_spelling_of_the_annealing_is_no_fault(tmp_path: Path) -> None:
    trainer = written(tmp_path)
    # As in report 000: only "none" begins with 1, and an unknown word leaves the weight at 0.
    code = trainer.read_text().replace('== "None":', '== "none":')
    trainer.write_text(
        code.replace(
            "        place = math",
            '        if self.args.kl_anneal_type != "Cyclical":\n            return 0.0\n        place = math',
        )
    )
    assert "KL cycle" not in checked(trainer)
    trainer.write_text(trainer.read_text().replace('== "none":', '== "never":'))
    assert "begins with 0 and ends with 0" in checked(trainer)["KL cycle"]["found"]


def test_what_cannot_be_driven_is_not_passed_over(tmp_path: Path) -> None:
    without = checked(written(tmp_path, modules=None))
    assert "is modules.py beside the file?" in without["reparameterization"]["unchecked"] and len(without) == 1
    trainer = written(tmp_path)
    code = trainer.read_text()
    trainer.write_text(code.replace("self.mse_criterion(out, img[:, i])", "((out - img[:, i]) ** 2).mean()"))
    assert checked(trainer)["truth scored"]["unchecked"] == "it computes its squared error without torch's mse_loss"
    trainer.write_text(trainer.read_text().replace("self.optim.step()", "self.nothing.step()"))
    assert "its code raised AttributeError" in checked(trainer)["detach"]["unchecked"]


def test_a_mean_that_nobody_sees_is_not_called_right(tmp_path: Path) -> None:
    trainer = written(tmp_path)
    code, end = trainer.read_text(), "        return total, psnr /"
    keeps = "        self.psnr = torch.tensor(psnr / self.val_vi_len)\n        return total\n"
    trainer.write_text(code.replace(end, keeps + end))
    assert "629 PSNR values is divided by 630" in checked(trainer)["PSNR of the given frame"]["found"]
    trainer.write_text(code.replace(end, keeps.replace("self.psnr", "psnr") + end))
    assert "neither returns the mean" in checked(trainer)["PSNR of the given frame"]["unchecked"]


def test_code_that_ends_in_a_step_costs_the_checks_of_that_step_alone(tmp_path: Path) -> None:
    trainer = written(tmp_path, "frozen")
    code = trainer.read_text()
    trainer.write_text(
        code.replace("        last, total, psnr =", "        raise SystemExit\n        last, total, psnr =", 1)
    )
    found = checked(trainer)
    assert found["frozen learning rate"]["found"] and "SystemExit" in found["posterior leak"]["unchecked"]


def test_a_process_that_ends_in_the_validation_leaves_the_checks_before_it(tmp_path: Path) -> None:
    trainer = written(tmp_path, "scored")
    code = trainer.read_text().replace(
        "        last, total, psnr =", "        os._exit(3)\n        last, total, psnr =", 1
    )
    trainer.write_text(code.replace("import math\n", "import math\nimport os\n", 1))
    found = {row.check: row for row in diagnose(trainer).rows}
    assert found.keys() == CHECKS.keys()
    assert found["truth scored"].found and not found["posterior input"].unchecked
    assert found["posterior leak"].unchecked == "its code ended the process with code 3"
    assert found["label order"].unchecked == "an earlier check did not end"


@pytest.mark.usefixtures("warm")
def test_the_command_says_that_it_runs_the_code_and_names_lines_and_costs(tmp_path: Path) -> None:
    shop = Shop(tmp_path, tmp_path)
    trainer = written(tmp_path, "scored")
    said = shop.run("doctor", "Trainer.py", "--dry-run")
    assert said.code == 0 and "Would run the code of Trainer.py" in said.out
    said = shop.run("doctor", "Trainer.py")
    assert said.code == 2 and said.err.startswith("Warning: This runs the code of Trainer.py")
    line = next(n for n, code in enumerate(trainer.read_text().splitlines(), 1) if "mse = self.mse" in code)
    assert f"Trainer.py:{line}: in a forced step the true frame is scored against itself" in said.text
    assert COSTS["truth scored"][:40] in said.text and "1 finding, 9 checks without one" in said.text
    assert "Stand-ins were used for: dataloader" in said.text
    trainer.write_text("import nothing\nraise ValueError('at once')\n")
    said = shop.run("doctor", "Trainer.py", "--json")
    assert said.code == 2 and "ValueError: at once (Trainer.py, line 2: raise ValueError('at once'))" in said.text
    (tmp_path / "notes.md").write_text("no code")
    for name, says in (("none.py", "There is no file"), (".", "is a folder"), ("notes.md", "is no .py file")):
        for more in ([], ["--dry-run"]):
            said = shop.run("doctor", name, *more)
            assert said.code == 2 and says in said.text
            assert "runs the code" not in said.text


@pytest.mark.parametrize("beside", [False, True])
def test_a_syntax_error_is_shown_with_the_users_line_alone(tmp_path: Path, beside: bool) -> None:
    trainer = written(tmp_path)
    wrong = tmp_path / ("modules.py" if beside else "Trainer.py")
    wrong.write_text(wrong.read_text() + "\nif True print(1)\n")
    line = len(wrong.read_text().splitlines())
    with pytest.raises(SyntaxError) as caught, opened(trainer):
        pass
    assert (
        raised(caught.value, tmp_path)
        == f"SyntaxError: {caught.value.msg} ({wrong.name}, line {line}: if True print(1))"
    )


def test_an_error_of_the_code_has_its_last_line_in_the_users_files(tmp_path: Path) -> None:
    trainer = written(tmp_path)
    trainer.write_text(trainer.read_text().replace("self.optim.step()", "torch.ones(2) @ torch.ones(3)"))
    why = checked(trainer)["detach"]["unchecked"]
    line = next(n for n, code in enumerate(trainer.read_text().splitlines(), 1) if "@ torch.ones(3)" in code)
    assert f"(Trainer.py, line {line}: torch.ones(2) @ torch.ones(3))" in why


def test_functions_without_a_class_are_named_and_the_reason_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "Trainer.py").write_text("def train_step(model, img):\n    return 0\n")
    said = Shop(tmp_path, tmp_path).run("doctor", "Trainer.py")
    assert said.code == 2
    assert said.text.count("could be checked") == 1
    for text in ("Nothing could be checked: ", "the functions train_step", "val_one_step(img, label)", "Generator"):
        assert text in said.text


def test_code_that_never_ends_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "Trainer.py").write_text("while True:\n    pass\n")
    with pytest.raises(UserError, match="ran longer than 1 s"):
        diagnose(tmp_path / "Trainer.py", timeout_s=1)


def test_json_has_every_check(tmp_path: Path) -> None:
    (tmp_path / "Trainer.py").write_text("x = 1\n")
    said = Shop(tmp_path, tmp_path).run("doctor", "Trainer.py", "--json")
    rows = json.loads(said.out)["checks"]
    assert {row["check"] for row in rows} == set(CHECKS) and {row["state"] for row in rows} == {"unchecked"}
    assert said.code == 2
