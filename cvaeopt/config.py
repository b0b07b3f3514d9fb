"""The settings of one training run, under the lab's names. They are checked once, here, and never changed later.

The defaults are those of the lab's template, with two exceptions. The template's `val_statistics` makes the validation
curve noisy. The template's `label_bn` computes the BatchNorm statistics frame by frame instead of over a clip.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cvaeopt import spelling
from cvaeopt.errors import SettingsError
from cvaeopt.files import digest

KlAnnealType = Literal["cyclical", "monotonic", "none"]
KlFormula = Literal["fu", "seed000", "seed001", "seed003", "seed004"]
TfrFormula = Literal["linear", "seed000", "seed001", "seed003"]

# Options of the lab's trainer that are not settings here, each with advice for the user.
_LAB_OPTIONS = {
    "val_vi_len": "Validation always predicts the whole validation video: remove it",
    "test_vi_len": "Every test sequence is predicted as a whole: remove it",
    "fast_train": "Set partial to the fraction of the training video that is used",
    "fast_partial": "Set partial to the fraction of the training video that is used",
    "fast_train_epoch": "partial counts for all epochs: remove it",
    "per_save": "Every epoch's checkpoint is saved: remove it",
    "store_visualization": "Pictures of every trial are stored: remove it",
    "num_workers": "The frames are decoded once and need no loader processes: remove it",
    "ckpt_path": "Name the checkpoint on the command line: cvaeopt retrain RECIPE --from CHECKPOINT",
    "save_root": "Name the folder with --artifacts",
    "DR": "Name the data folder with --data",
    "device": "Name the GPU with --gpu",
    "gpu": "Name the GPU with --gpu",
    "test": "Use cvaeopt predict CHECKPOINT",
    "learning_rate": "The learning rate is lr",
    "epochs": "The epochs of a run are num_epoch",
    "optimizer": "The optimiser is optim",
}


ADDED = ("clip_order", "posterior", "detach", "forced_loss")
"""Settings that the first recipes and databases do not have. At its default, such a setting is no part of a digest."""


class Config(spelling.Table):
    """The settings of one training run.

    Every field is a TOML key of a study's `[fixed]` and `[search]` tables, the name of an Optuna parameter
    and a key of a recipe's `[settings]`.
    """

    # The network. It has 1,585,620 parameters at the default widths.
    F_dim: int = Field(128, ge=8, multiple_of=8, description="channels of the frame features")
    L_dim: int = Field(32, ge=2, multiple_of=2, description="channels of the label (pose) features")
    N_dim: int = Field(12, ge=4, multiple_of=4, description="channels of the latent map z")
    D_out_dim: int = Field(192, ge=8, multiple_of=8, description="channels between fusion and generator")
    frame_H: int = Field(32, ge=8, description="frame height, pixels")
    frame_W: int = Field(64, ge=8, description="frame width, pixels")
    output: Literal["linear", "sigmoid", "clamp"] = Field(
        "linear",
        description="what makes a frame of the generator's output; clamp limits it to [0, 1] outside training only",
    )

    # The data
    train_vi_len: int = Field(16, ge=2, description="frames of a training clip")
    partial: float = Field(1.0, gt=0, le=1, description="temporal prefix of the training video that is used, fraction")
    shuffle: bool = Field(False, description="draw the clips in a new order every epoch")
    batch_size: int = Field(2, ge=1, description="clips of one optimiser step")
    clip_order: Literal["window", "strided"] = Field(
        "window",
        description="frames of a clip: neighbours, or every batch_size-th of the batch, as report 004's view",
    )

    # The optimiser
    num_epoch: int = Field(70, ge=1, description="epochs of the run; the schedules are functions of it")
    optim: Literal["Adam", "AdamW", "SGD", "Adamax"] = Field("Adam", description="optimiser")
    lr: float = Field(1e-3, gt=0, description="learning rate at the start")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the optimiser")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (SGD only)")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    skip_steps: int = Field(
        0, ge=0, description="steps of an epoch that are left out when their gradient is not finite; one more diverges"
    )
    lr_scheduler: Literal["MultiStepLR", "ExponentialLR", "cosine", "constant"] = Field(
        "MultiStepLR", description="how lr falls over the run"
    )
    milestones: tuple[int, ...] = Field(
        (2, 5), strict=False, description="epochs at which MultiStepLR multiplies lr by gamma"
    )
    gamma: float = Field(
        0.1, gt=0, le=1, description="factor of MultiStepLR (a milestone) and ExponentialLR (an epoch)"
    )
    lr_min: float = Field(0.0, ge=0, description="where the cosine schedule would end, at epoch num_epoch")

    # Teacher forcing
    tfr: float = Field(1.0, ge=0, le=1, description="teacher forcing ratio at the start")
    tfr_sde: int = Field(10, ge=0, description="epoch at which the ratio starts to decay")
    tfr_d_step: float = Field(0.1, ge=0, le=1, description="how much the ratio falls in an epoch")
    tfr_formula: TfrFormula = Field("linear", description="whose decay: linear (= seed000, seed001) or seed003")
    tfr_coin: Literal["epoch", "step"] = Field("epoch", description="one forcing coin an epoch, or one a step")

    forced_loss: Literal["prediction", "truth"] = Field(
        "prediction",
        description="what a forced step compares with the true frame: its prediction, or the true frame itself, so "
        "that the step trains the KL term alone (report 003)",
    )
    detach: bool = Field(True, description="keep gradients from going through the predictions of earlier frames")

    # KL
    posterior: Literal["current", "previous"] = Field(
        "current", description="frame that the posterior of z sees in training: the predicted one, or the one before it"
    )
    kl_anneal_type: KlAnnealType = Field("cyclical", description="shape of the KL weight")
    kl_anneal_cycle: int = Field(
        10,
        ge=1,
        description="number of cycles over the run (fu, seed001, seed003) or epochs of one (seed000, seed004)",
    )
    kl_anneal_ratio: float = Field(
        1.0,
        gt=0,
        description="fraction of a cycle spent climbing (fu, seed001, seed003 cyclical) or slope (others)",
    )
    kl_formula: KlFormula = Field("fu", description="whose KL weight; fu (Fu et al. 2019) is the canonical meaning")
    kl_norm: Literal["batch", "element"] = Field(
        "batch",
        description="KL summed over the latents and divided by the batch (the lab's), or its mean per latent",
    )

    # Settings that change the result, not only the speed
    label_bn: Literal["clip", "frame"] = Field(
        "clip",
        description="training statistics of the label encoder's BatchNorm: over the whole clip, or frame by frame, "
        "as the lab's",
    )
    ema: float = Field(0.0, ge=0, lt=1, description="decay a step of averaged weights used for validation; 0 is off")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="arithmetic of the convolutions; tf32 on CUDA only, bf16 slow on CPUs"
    )
    val_statistics: Literal["recalibrated", "running", "own"] = Field(
        "recalibrated",
        description="BatchNorm statistics in validation: recomputed over the training labels, the last steps' running "
        "averages, or each frame's own (the template's)",
    )
    val_noise: Literal["prior", "zero", "scaled"] = Field("prior", description="z in validation: N(0, I), 0, or scaled")
    val_noise_scale: float = Field(0.5, ge=0, description="standard deviation of z when val_noise is scaled")
    val_noise_seed: int = Field(0, ge=0, description="seed of z in validation, equal for all trials of a study")
    seed: int = Field(0, ge=0, description="seed of weights, clip order, forcing coins and training noise")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.kl_formula in ("fu", "seed001") and self.kl_anneal_ratio > 1:
            raise ValueError(f"kl_anneal_ratio is a fraction for kl_formula '{self.kl_formula}': at most 1")
        if any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError("milestones must rise")
        if self.lr_min > self.lr:
            raise ValueError("lr_min is above lr")
        return self

    @classmethod
    def parse(cls, settings: dict[str, Any], where: str) -> Self:
        """The settings, checked. SettingsError gives their place (`where`), the wrong key and the expected value."""
        check_names(settings, list(cls.model_fields), where)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise settings_error(error, where) from None

    def plain(self) -> dict[str, Any]:
        """All settings as JSON values, in the order of the fields. A tuple becomes a list."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Twelve hex digits that identify these settings. Equal settings have equal digits."""
        return settings_digest(self.plain())


def settings_digest(values: dict[str, Any]) -> str:
    """Twelve hex digits for the settings `values`, which may be a part of all settings."""
    defaults = {name: Config.model_fields[name].default for name in ADDED}
    return digest({name: value for name, value in values.items() if name not in ADDED or value != defaults[name]})


def check_names(given: dict[str, Any], known: list[str], where: str, kind: str = "setting") -> None:
    """Raise SettingsError, with a suggestion, if `given` has a key that is not in `known`."""
    for name in given:
        if name not in known:
            near = spelling.nearest(name, known)
            hint = f"Did you mean '{near}'?" if near else f"Known: {', '.join(known)}."
            if kind == "setting" and name in _LAB_OPTIONS:
                hint = f"{_LAB_OPTIONS[name]}."
            raise SettingsError(f"{where} has no {kind} '{name}'.", todo=hint)


def settings_error(error: ValidationError, where: str, inside: int = 0) -> SettingsError:
    """A SettingsError for the first problem in `error`.

    inside   the number of leading keys in the problem's location that the message leaves out
    """
    return problem_error(error.errors()[0], where, inside)


def problem_error(first: ErrorDetails, where: str, inside: int = 0) -> SettingsError:
    """A SettingsError for one problem of a ValidationError; see `settings_error`."""
    name = ".".join(str(part) for part in first["loc"][inside:])
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return SettingsError(f"{where}: {message}.", todo="Change the value.")
    near = None
    if first["type"] == "literal_error":
        near = spelling.nearest(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    return SettingsError(
        f"{where}: {name} = {first['input']!r}.",
        f"Expected: {message[:1].lower()}{message[1:]}.",
        f"Did you mean '{near}'?" if near else "",
    )
