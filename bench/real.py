"""Which way of searching finds better settings of the REAL network, and do short trainings rank settings as long ones.

    python -m bench.real --data DIR                           # both parts; some hours of one core
    python -m bench.real --data DIR --parts methods --repeats 0 2 4 --until-s 3600      # any part of it
    python -m bench.real --data DIR --quick                   # about two minutes; nothing is kept
    python -m bench.real --report                             # the tables of what has been run

The searches are those of `studies/main.toml` and `studies/wide.toml`, read from the files and carried over to short
trainings of a small network by the project's own rule (`cvaeopt.outcome.transfer`, proportional): ranges, enqueued
points and pruner that are counted in epochs become the same share of a shorter run. `scaled` says what else changes.

methods   every method gets the same epochs, its recommendation is trained again from the same five fresh seeds. What
          a method reports less what those trainings reach is its optimism.
budgets   random settings of main's space, each trained for several numbers of epochs, every training from a seed of
          its own: how well a short one foretells the rank in a long one, and what choosing by it costs.

One line of bench/results/real.jsonl a study or setting. Lines that are there, or in real.jsonl.gz, into which
`--report` packs them, are not run again, and a line that was cut short counts as missing; processes with different
`--repeats`, `--spaces` or `--parts` may write the same file.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from bench import machine, real_figures
from bench.search import confirmation, confirmed, rows_of
from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.files import digest, write_bytes
from cvaeopt.outcome.transfer import transfer
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.search.space import Values, key_of, params_to_config, settled, suggest
from cvaeopt.store.confirmation import fresh_seed
from cvaeopt.store.leases import CONSTRAINTS
from cvaeopt.suggest.estimate import Estimate, estimate
from cvaeopt.suggest.sampler import pruner_for, sampler_for
from cvaeopt.vae.dataset import Dataset, Split

STUDIES = Path(__file__).parent.parent / "studies"
SPACES = ("main", "wide")
PARTS = ("methods", "budgets")
KEPT = "real.jsonl"
CLIP_OF_THE_STUDIES = 16  # frames; their train_vi_len is the template's

Train = Callable[[Config], Iterator[float]]
"""Trains these settings: validation PSNR after each epoch, dB. Raises Diverged."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How small the real network, its data and its studies are.

    epochs        of one trial
    trials        full trials that a method's epochs would pay for
    seeds         fresh seeds of a recommendation
    clips, length clips of the training video that are used, evenly spread over it, and frames of each
    val           first and one past the last frame of the validation video that is used
    lengths       epochs of the part `budgets`, the last one being what the others should foretell
    again         the one of them that is trained from a second seed
    """

    epochs: int = 12
    trials: int = 16
    seeds: int = 5
    clips: int = 16
    length: int = 3
    val: tuple[int, int] = (40, 57)
    height: int = 8
    width: int = 16
    widths: tuple[tuple[str, int], ...] = (("F_dim", 32), ("L_dim", 8), ("N_dim", 4), ("D_out_dim", 32))
    lengths: tuple[int, ...] = (3, 6, 12, 48)
    again: int = 12

    @property
    def budget(self) -> int:
        """Epochs of a study."""
        return self.epochs * self.trials


SIZES = {"methods": Size(), "budgets": Size(clips=8, length=4)}
QUICK = Size(epochs=3, trials=4, seeds=2, clips=8, val=(40, 49), lengths=(2, 3, 6), again=3)


# ---- the studies, carried over


def scaled(shipped: Definition, size: Size, epochs: int, seed: int, train_frames: int) -> Definition:
    """The shipped study for trials of `epochs` epochs of the small network.

    train_frames   of the whole training video: with it the shipped study would have so many steps

    Beyond the proportional transfer: a KL cycle lasts two epochs at least (`seed001` makes shorter ones a weight of 0);
    a value is the mean of two epochs at least; `ema` remembers the same share of a run's steps; the first trials of the
    sampler become two thirds of all at most, and those that the pruner waits for the same share of all, but its default
    at least.
    """
    stretch = epochs / shipped.epochs
    tables = shipped.plain()
    tables["study"] |= {"seed": seed, "window": max(2, round(shipped.window * stretch))}
    tables["budget"] = {"epochs": epochs, "total_epochs": size.trials * epochs}
    context = settled(shipped.search, shipped.fixed)
    for name, table in tables["search"].items():
        if table["type"] != "categorical":
            beside = {**context, **{other: values[0] for other, values in shipped.search[name].when.items()}}
            for end in ("low", "high"):
                table[end] = _carried({**beside, name: table[end]}, shipped.epochs, epochs)[name]
    fixed = _carried(context, shipped.epochs, epochs)
    tables["fixed"] = {name: fixed[name] for name in shipped.fixed}
    if "ema" in shipped.fixed:
        steps = epochs * size.clips / (shipped.epochs * (train_frames // CLIP_OF_THE_STUDIES))
        tables["fixed"]["ema"] = max(0.0, 1 - (1 - shipped.fixed["ema"]) / steps)
    tables["fixed"] |= dict(size.widths) | {
        "frame_H": size.height,
        "frame_W": size.width,
        "train_vi_len": size.length,
    }
    tables["enqueue"] = [_point(point, context, tables["search"], shipped.epochs, epochs) for point in shipped.enqueue]
    if "n_startup_trials" in tables["sampler"]:
        first = tables["sampler"]["n_startup_trials"]
        tables["sampler"]["n_startup_trials"] = min(first, max(2, size.trials * 2 // 3))
    if "n_startup_trials" in tables["pruner"]:
        first, usual = (
            tables["pruner"]["n_startup_trials"],
            type(shipped.pruner).model_fields["n_startup_trials"].default,
        )
        share = size.trials / (shipped.budget.trials or size.trials)
        tables["pruner"]["n_startup_trials"] = min(first, max(usual, round(first * share)))
    for name in ("warmup_epochs", "interval_epochs"):
        if name in tables["pruner"]:
            tables["pruner"][name] = max(1, round(tables["pruner"][name] * stretch))
    return Definition.parse(tables, shipped.name, f"{shipped.name}, {epochs} epochs")


def _carried(values: Values, before: int, after: int) -> Values:
    """The settings of a run of `before` epochs in one of `after` epochs."""
    config = Config.parse({**values, "num_epoch": before}, f"{before} epochs")
    return shortened(config, after).plain()


def shortened(config: Config, epochs: int) -> Config:
    """The settings carried over proportionally, with KL cycles of two epochs at least."""
    carried = transfer(config, epochs, "proportional")
    if carried.kl_anneal_type == "cyclical" and carried.kl_formula in ("fu", "seed001", "seed003"):
        cycles = min(carried.kl_anneal_cycle, max(1, epochs // 2))
        carried = carried.model_copy(update={"kl_anneal_cycle": cycles})
    return carried


def _point(point: Values, context: Values, search: dict[str, Any], before: int, after: int) -> Values:
    carried = _carried({**context, **point}, before, after)
    found = {}
    for name in point:
        value, table = carried[name], search[name]
        found[name] = value if table["type"] == "categorical" else min(max(value, table["low"]), table["high"])
    return found


def small(data: Dataset, size: Size) -> Dataset:
    """The part of the data that is used."""
    last = len(data.train) // size.length - 1
    blocks = np.linspace(0, last, size.clips).round().astype(int)
    rows = (blocks[:, None] * size.length + np.arange(size.length)).ravel()
    frames = slice(*size.val)
    return dataclasses.replace(
        data,
        train=Split(np.array(data.train.frames[rows]), np.array(data.train.labels[rows])),
        val=Split(np.array(data.val.frames[frames]), np.array(data.val.labels[frames])),
        digest=digest({"of": data.digest, "rows": rows.tolist(), "val": list(size.val)}),
    )


def baselines(data: Dataset) -> dict[str, float]:
    """Mean over validation frames of the PSNR of the mean training frame and of the first frame, dB."""
    import torch

    from cvaeopt.vae.metrics import psnr_per_frame

    truth = torch.tensor(data.val.frames[1:]) / 255

    def psnr(frame: np.ndarray) -> float:
        guess = torch.tensor(frame, dtype=torch.float32).expand_as(truth) / 255
        return round(float(psnr_per_frame(guess, truth).mean()), 2)

    return {"mean_frame": psnr(data.train.frames.mean(0)), "copy_first": psnr(data.val.frames[0])}


def trained(data: Dataset, config: Config) -> Iterator[float]:
    """`Train` on the data, one core."""
    from cvaeopt.vae.trainer import Trainer

    return (result.val_psnr for result in Trainer(config, data, "cpu").run())


class Memo:
    """A `Train` that trains no settings twice: the first trials of several methods are the same ones.

    A training that was left goes on where it was left when somebody wants more of it.
    """

    def __init__(self, train: Train) -> None:
        self._train = train
        self._known: dict[str, tuple[list[float], Iterator[float]]] = {}
        self._diverged: dict[str, Diverged] = {}

    def __call__(self, config: Config) -> Iterator[float]:
        name = config.digest()
        if name not in self._known:
            self._known[name] = [], self._train(config)
        values, rest = self._known[name]
        epoch = 0
        while epoch < config.num_epoch:
            if epoch == len(values):
                if name in self._diverged:
                    raise self._diverged[name]
                try:
                    values.append(next(rest))
                except Diverged as error:
                    self._diverged[name] = error
                    raise
            yield values[epoch]
            epoch += 1


# ---- the methods


@dataclass(frozen=True)
class Method:
    """One way of searching.

    sampler   makes the sampler of a study
    pruner    makes its pruner
    points    the study's enqueued points are run first
    own       as this service does it: a value is the mean of the window, a diverged trial teaches the sampler, the
              leaders are trained again from fresh seeds. Otherwise as with plain Optuna: the last epoch, a failed
              trial, the best trial.
    seeds     `each` or `common`, as [study] seeds; None: as the study's file says
    """

    sampler: Callable[[Definition], BaseSampler]
    pruner: Callable[[Definition], BasePruner] = lambda definition: NopPruner()
    points: bool = False
    own: bool = False
    seeds: str | None = "each"


METHODS: dict[str, Method] = {
    "ours": Method(sampler_for, pruner_for, points=True, own=True, seeds=None),
    "tpe": Method(lambda definition: TPESampler(seed=definition.seed)),
    "optuna": Method(lambda definition: TPESampler(seed=definition.seed), lambda definition: MedianPruner()),
    "ours, no points": Method(sampler_for, pruner_for, own=True, seeds=None),
    "ours, seeds each": Method(sampler_for, pruner_for, points=True, own=True),
    "random": Method(lambda definition: RandomSampler(seed=definition.seed)),
    "random, one seed": Method(lambda definition: RandomSampler(seed=definition.seed), seeds="common"),
}


@dataclass
class Ran:
    """One trial of a study, or one training of a confirmation.

    state   complete, pruned, diverged, or cut: the epochs were spent
    """

    number: int
    params: Values
    state: str = "complete"
    curve: list[float] = dataclasses.field(default_factory=list)

    def worth(self, window: int, seed_noise_db: float = 0.0) -> Estimate:
        """Value and error of a complete one."""
        return estimate(self.curve, window, seed_noise_db)

    def plain(self) -> Row:
        """As JSON values, dB to three digits."""
        return {**dataclasses.asdict(self), "curve": [round(value, 3) for value in self.curve]}


def searched(definition: Definition, method: Method, train: Train, budget: int) -> list[Ran]:
    """The trials of a study that spends exactly `budget` epochs; the last one may be cut short.

    An epoch in which a training diverges counts as spent.
    """
    study = optuna.create_study(
        direction="maximize", sampler=method.sampler(definition), pruner=method.pruner(definition)
    )
    for point in definition.points() if method.points else []:
        study.enqueue_trial(point)
    ran: list[Ran] = []
    spent = 0
    while spent < budget:
        trial = study.ask()
        config = suggest(definition, trial)
        one = Ran(trial.number, dict(trial.params))
        try:
            for value in train(config):
                one.curve.append(value)
                spent += 1
                epoch = len(one.curve)
                trial.report(value, epoch)
                if epoch < config.num_epoch and trial.should_prune():
                    one.state = "pruned"
                    break
                if epoch < config.num_epoch and spent == budget:
                    one.state = "cut"
                    break
        except Diverged:
            spent += 1
            one.state = "diverged"
        _tell(study, trial, one, method, definition.window)
        ran.append(one)
    return ran


def _tell(study: optuna.Study, trial: Trial, one: Ran, method: Method, window: int) -> None:
    if method.own:
        for name in CONSTRAINTS:
            trial.set_constraint(name, float(one.state == "diverged" and name == "diverged"))
    if one.state == "complete":
        study.tell(trial, one.worth(window if method.own else 1).value)
    elif one.state == "pruned" or (one.state == "diverged" and method.own):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)


def again(definition: Definition, params: Values, seed: int, train: Train) -> Ran:
    """One more full training of these settings."""
    one = Ran(seed, params)
    config = params_to_config(definition, params, 0).model_copy(update={"seed": seed})
    try:
        one.curve.extend(train(config))
    except Diverged:
        one.state = "diverged"
    return one


def one_study(definition: Definition, method: Method, train: Train, budget: int) -> Row:
    """A study from its first trial to what is recommended, as part of a line of the results."""
    definition = definition.model_copy(update={"seeds": method.seeds or definition.seeds})
    leaders, seeds = confirmation(budget, definition.epochs) if method.own else (0, 0)
    ran = searched(definition, method, train, budget - leaders * seeds * definition.epochs)
    window = definition.window if method.own else 1
    complete = sorted(
        (one for one in ran if one.state == "complete"), key=lambda one: (-one.worth(window).value, one.number)
    )
    found: Row = {"trials": [one.plain() for one in ran], "confirmed": [], "chosen": None}
    spent = sum(len(one.curve) + (one.state == "diverged") for one in ran)
    if complete and method.own:
        fresh = [
            [again(definition, one.params, fresh_seed(definition.seed, index), train) for index in range(seeds)]
            for one in complete[:leaders]
        ]
        every = [one for several in fresh for one in several]
        found["confirmed"] = [one.plain() for one in every]
        spent += sum(len(one.curve) + (one.state == "diverged") for one in every)
        steady = [index for index, several in enumerate(fresh) if all(one.state == "complete" for one in several)]
        if steady:
            worths = [[one.worth(window, definition.seed_noise_db) for one in fresh[index]] for index in steady]
            rank, reported, error = confirmed(
                [complete[index].worth(window).value for index in steady],
                np.array([[worth.value for worth in several] for several in worths]),
                statistics.fmean((worth.error or 0.0) ** 2 for several in worths for worth in several),
            )
            chosen = complete[steady[rank]]
        else:  # all of them diverge with other seeds: the search's own value is all there is
            chosen, reported, error = complete[0], complete[0].worth(window).value, None
        found |= {"chosen": chosen.number, "reported": reported, "error": error}
    elif complete:
        found |= {"chosen": complete[0].number, "reported": complete[0].worth(window).value, "error": None}
    if found["chosen"] is not None:
        found["params"] = next(one.params for one in ran if one.number == found["chosen"])
        found["key"] = key_of(definition, found["params"])
        found["point"] = found["key"] in {key_of(definition, point) for point in definition.points()}
    return {**found, "spent": spent}


# ---- the campaign


@dataclass(frozen=True)
class Campaign:
    """What is run, on what, and where it is kept."""

    size: Size
    train: Train
    train_frames: int
    data_digest: str
    path: Path

    def definition(self, space: str, repeat: int, epochs: int | None = None) -> Definition:
        """The study of a repeat."""
        shipped = load_definition(space, STUDIES)
        return scaled(shipped, self.size, epochs or self.size.epochs, repeat, self.train_frames)

    @cached_property
    def _first(self) -> dict[str, Definition]:
        return {space: self.definition(space, 0) for space in SPACES}

    @cached_property
    def digests(self) -> dict[str, str]:
        """What has to be equal, in each space, for two lines to be comparable."""
        found = {}
        for space, definition in self._first.items():
            tables = definition.plain()
            asked = {name: tables[name] for name in ("search", "fixed")} | {"window": definition.window}
            found[space] = digest({"asked": asked, "size": dataclasses.asdict(self.size), "data": self.data_digest})
        return found

    @cached_property
    def studies(self) -> dict[str, str]:
        """The shipped studies with their samplers, pruners and points, which our own methods are."""
        return {space: definition.digest() for space, definition in self._first.items()}

    def known(self) -> list[Row]:
        """The lines that belong to this campaign."""
        return real_figures.of_campaign(rows_of(self.path), self.digests, self.studies)

    def methods(self, wanted: Iterable[tuple[int, str, str]], ends: float = math.inf) -> int:
        """Run the (repeat, space, method) that are missing, none after the moment `ends`; how many were run."""
        count = 0
        memo, of = Memo(self.train), None
        for repeat, space, name in wanted:
            if (repeat, space) != of:
                memo, of = Memo(self.train), (repeat, space)
            known = [row for row in self.known() if row["part"] == "methods" and row["space"] == space]
            if any((row["repeat"], row["method"]) == (repeat, name) for row in known):
                continue
            if time.monotonic() > ends:
                break
            began = time.process_time()
            definition = self.definition(space, repeat)
            row = {"part": "methods", "space": space, "method": name, "repeat": repeat, "digest": self.digests[space]}
            row |= {"study": self.studies[space]} if METHODS[name].own else {}
            row |= one_study(definition, METHODS[name], memo, self.size.budget)
            same = [other["retrained"] for other in known if other.get("key") == row.get("key")]
            if row["chosen"] is not None:
                row["retrained"] = same[0] if same else self._retrained(definition, row["params"])
            self._keep({**row, "seconds": round(time.process_time() - began, 1)})
            count += 1
        return count

    def _retrained(self, definition: Definition, params: Values) -> list[float | None]:
        """Values from the fresh seeds, which are the same for all methods; None where the training diverged."""
        runs = [again(definition, params, 1_000_000 + index, self.train) for index in range(self.size.seeds)]
        return [round(one.worth(definition.window).value, 3) if one.state == "complete" else None for one in runs]

    def budgets(self, settings: int, ends: float = math.inf) -> int:
        """Train the first `settings` random settings of main's space for every length; how many were done."""
        longest = self.size.lengths[-1]
        definition = self.definition("main", 0, longest)
        study = optuna.create_study(sampler=RandomSampler(seed=0))
        count = 0
        for number in range(settings):
            trial = study.ask()
            config = suggest(definition, trial)
            if any(row["part"] == "budgets" and row["number"] == number for row in self.known()):
                continue
            if time.monotonic() > ends:
                break
            began = time.process_time()
            values: dict[str, float | None] = {}
            for index, (label, epochs) in enumerate(self._trainings()):
                run = shortened(config, epochs).model_copy(update={"seed": 1000 * (number + 1) + index})
                try:
                    curve = list(self.train(run))
                    values[label] = round(estimate(curve, max(2, round(0.05 * epochs))).value, 3)
                except Diverged:
                    values[label] = None
            row = {"part": "budgets", "number": number, "digest": self.digests["main"], "params": dict(trial.params)}
            self._keep({**row, "values": values, "seconds": round(time.process_time() - began, 1)})
            count += 1
        return count

    def _trainings(self) -> list[tuple[str, int]]:
        return [(str(epochs), epochs) for epochs in self.size.lengths] + [("again", self.size.again)]

    def note(self, part: str, about: Row, known: Row) -> None:
        """A line that says what the lines after it were measured on."""
        size = dataclasses.asdict(self.size)
        row = {"part": "facts", "of": part, "machine": about, "size": size, "baselines": known}
        self._keep({**row, "digests": self.digests, "studies": self.studies})

    def _keep(self, row: Row) -> None:
        line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:  # one write a line: others may append too
            file.write(line.encode())


def pack(path: Path) -> list[Row]:
    """Move all lines into the packed file, each once; the lines."""
    rows = {json.dumps(row, separators=(",", ":"), allow_nan=False): row for row in rows_of(path)}
    write_bytes(
        path.with_name(path.name + ".gz"), gzip.compress("".join(f"{line}\n" for line in rows).encode(), mtime=0)
    )
    path.unlink(missing_ok=True)
    return list(rows.values())


def main() -> None:
    """Run what was asked for and is missing, or show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder in the lab's layout")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", nargs="+", type=int, default=list(range(5)), help="search seeds")
    parser.add_argument("--settings", type=int, default=24, help="random settings of the part budgets")
    parser.add_argument("--until-s", type=float, default=math.inf, help="start nothing after so many seconds")
    parser.add_argument("--quick", action="store_true", help="one repeat of very small studies; nothing is kept")
    parser.add_argument("--report", action="store_true", help="run nothing: pack the results, tables")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / KEPT)
    options = parser.parse_args()
    if options.report:
        print(real_figures.report(pack(options.out), machine.RESULTS))
        return
    if options.data is None:
        parser.error("--data is needed: a data folder in the lab's layout (cvaeopt demo-data makes one)")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    import torch

    from cvaeopt.vae import dataset

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / KEPT if options.quick else options.out
        ends = time.monotonic() + options.until_s
        for part in options.parts:
            size = QUICK if options.quick else SIZES[part]
            whole = dataset.load(options.data, size.height, size.width)
            data = small(whole, size)
            campaign = Campaign(size, partial(trained, data), len(whole.train), data.digest, path)
            campaign.note(part, machine.facts(), baselines(data))
            if part == "budgets":
                done = campaign.budgets(3 if options.quick else options.settings, ends)
                print(f"{done} settings trained for {', '.join(map(str, size.lengths))} epochs", flush=True)
            else:
                repeats = [0] if options.quick else options.repeats
                wanted = [
                    (repeat, space, name) for repeat in repeats for space in options.spaces for name in options.methods
                ]
                print(f"{campaign.methods(wanted, ends)} studies, {len(wanted)} wanted", flush=True)
        if options.quick:
            print(real_figures.report(rows_of(path), None))
        else:
            print(f"results in {path}")


if __name__ == "__main__":
    main()
