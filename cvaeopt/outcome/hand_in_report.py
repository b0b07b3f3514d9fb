"""The skeleton of the report that is handed in, under the lab's headings.

The report is made from its facts alone (`facts.json`). It states what was measured, and marks what only the author can
write. If noise can explain a difference, the sentence says so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from cvaeopt.outcome.hand_in_text import Block, Facts, Figure, Heading, Said, Table, Todo
from cvaeopt.search.claims import MEASURED_IN_DB
from cvaeopt.text import BASELINES_LONG, short

TITLE: Final = "Lab 4: Conditional VAE for Video Prediction"
_FORCING: Final = "tfr"
_KL: Final = "kl_anneal"


def blocks(facts: Facts, figures: Collection[str]) -> list[Block]:
    """The report of `facts`. Only figures whose names are in `figures` are shown."""
    made = [
        *_derivation(),
        *_introduction(facts),
        Heading("Implementation details"),
        *_protocol(facts),
        Heading("How do you implement reparameterization tricks", 2),
        Todo("Show your code, and say why z is mu plus a scaled standard normal sample instead of a sample."),
        *_forcing(facts),
        *_annealing(facts),
        Heading("Analysis & Discussion"),
        *_arms(facts, "Plot teacher forcing ratio", _FORCING, "the loss under each forcing ratio"),
        *_arms(
            facts,
            "Plot the loss curve while training with different settings",
            _KL,
            "monotonic, cyclical and no annealing",
        ),
        *_per_frame(facts),
        *_strategy(facts),
        Heading("References"),
        Todo("List the papers and programs that you used."),
    ]
    return [block for block in made if not isinstance(block, Figure) or block.name in figures]


def _derivation() -> list[Block]:
    return [
        Heading("Derivate conditional VAE formula"),
        Todo("Derive the lower bound of the conditional likelihood. Remove this section if your lab does not ask it."),
    ]


def _introduction(facts: Facts) -> list[Block]:
    made: list[Block] = [
        Heading("Introduction"),
        Todo("Say in your own words what the task is and what you tried."),
        facts.say(
            "The checkpoint of epoch {score/epoch} reaches {score/val_psnr:.2f} dB on the validation video in a "
            "free-running prediction of {score/frames} frames, and {score/val_psnr_late:.2f} dB on the last third."
        ),
        *(
            facts.say(f"The baseline '{name}' reaches {{score/baselines/{key}:.2f}} dB.")
            for key, name in BASELINES_LONG.items()
        ),
        facts.say(
            "The checkpoint is {score/gain_over_baselines:.2f} dB above the better trivial baseline."
            if facts.at("score/gain_over_baselines") > 0
            else "The checkpoint does NOT beat the better trivial baseline: the difference is "
            "{score/gain_over_baselines:.2f} dB."
        ),
        Said("This is one trained network: its value has no interval, because other seeds were not trained."),
    ]
    return made + _search(facts)


def _search(facts: Facts) -> list[Block]:
    """How the settings were found: the search, whether it has ended, and its best trial."""
    if facts.values["study"] is None:
        return [Said("No study was named, so this report does not say how the settings were found.")]
    made: list[Block] = [
        facts.say(
            "The study {study/name} has {study/trials} trials of at most {study/epochs_a_trial} epochs: "
            "{study/complete} complete, {study/pruned} pruned, {study/failed} failed; {study/epochs_spent} epochs were "
            "trained in all."
        )
    ]
    if facts.at("study/is_open"):
        made.append(
            facts.say(
                "The study had not ended when this report was made ({study/not_ended} trials had begun or waited), so "
                "these values may change."
            )
        )
    if facts.at("study/best") is None:
        return [*made, Said("No trial is complete yet.")]
    made.append(
        facts.say("Its best trial is {study/best/trial} with {study/best/value:.2f} dB ({study/best/estimated}).")
    )
    if facts.at("study/confirmation") is None or not facts.at("study/confirmation/over"):
        made.append(
            facts.say(
                "This value is not confirmed: it is the highest of many single runs, so it is too high on average. "
                + (
                    "{study/within_noise} other trials are within {study/noise_db} dB of it, which is within noise."
                    if facts.at("study/within_noise")
                    else "No other trial is within {study/noise_db} dB of it."
                )
            )
        )
    return [*made, Figure("search", facts.say("The values of the trials of study {study/name}."))]


def _protocol(facts: Facts) -> list[Block]:
    made: list[Block] = [
        Heading("How do you write your training/testing protocol", 2),
        Todo("Show and explain your code of one training step and of one test step."),
    ]
    if facts.at("run/settings") is None:
        made.append(Todo("The checkpoint does not hold its settings: state them here."))
    else:
        made += [
            facts.say(
                "Training ran for {run/settings/num_epoch} epochs with clips of {run/settings/train_vi_len} frames, a "
                "batch of {run/settings/batch_size} clips, {run/settings/optim}, a learning rate of {run/settings/lr} "
                "and the schedule {run/settings/lr_scheduler}."
            ),
            _settings(facts),
        ]
    made.append(
        facts.say(
            "In validation and test, each frame is predicted from the previous prediction; z is '{score/noise/kind}', "
            "and the network's output is used as '{score/output}'."
        )
    )
    if facts.values["prediction"] is not None:
        averaged = facts.at("prediction/average") > 1
        made.append(
            facts.say(
                "The submission has {prediction/rows} rows of {prediction/sequences} test sequences; the first row of "
                "each sequence is its given frame."
                + (" Each frame is the mean of {prediction/average} roll-outs." if averaged else "")
            )
        )
    return made


def _settings(facts: Facts) -> Table:
    names = sorted(facts.at("run/settings"))
    rows = tuple((name, short(facts.at(f"run/settings/{name}"))) for name in names)
    return Table(("setting", "value"), rows, Said("All settings of the run.", ("run/settings",)))


def _forcing(facts: Facts) -> list[Block]:
    made: list[Block] = [Heading("How do you set your teacher forcing strategy", 2)]
    if facts.at("run/settings") is not None:
        if facts.at("run/forcing/falls_in") is None:
            made.append(facts.say("The forcing ratio is {run/forcing/first} in every epoch."))
        else:
            made.append(
                facts.say(
                    "The forcing ratio begins at {run/forcing/first}. It falls by {run/settings/tfr_d_step} an epoch, "
                    "and is lower in epoch {run/forcing/falls_in} for the first time."
                )
            )
        made.append(
            Figure("schedules", Said("The forcing ratio, the KL weight and the learning rate over the epochs."))
        )
    return [*made, Todo("Say why you chose this strategy.")]


def _annealing(facts: Facts) -> list[Block]:
    made: list[Block] = [Heading("How do you set your kl annealing ratio", 2)]
    if facts.at("run/settings") is not None:
        annealed = facts.at("run/settings/kl_anneal_type") != "none"
        made.append(
            facts.say(
                "The KL weight is '{run/settings/kl_anneal_type}' with the cycle {run/settings/kl_anneal_cycle} and "
                "the ratio {run/settings/kl_anneal_ratio}, by the formula '{run/settings/kl_formula}'; the KL term is "
                "normalised by '{run/settings/kl_norm}'."
                if annealed
                else "There is no annealing: the KL weight is constant, and the KL term is normalised by "
                "'{run/settings/kl_norm}'."
            )
        )
    return [*made, Todo("Say why you chose this annealing.")]


def _arms(facts: Facts, heading: str, setting: str, what: str) -> list[Block]:
    """A section that compares the values of one setting: the study's arms and claims, or the setting's effect."""
    made: list[Block] = [Heading(heading, 2)]
    study: dict[str, Any] | None = facts.values["study"]
    if study is not None and any(name.startswith(setting) for name in study["varied"]):
        made += _arm_table(facts)
        made += [Figure(name, Said(text)) for name, text in _ARM_FIGURES.items() if study["arms"]]
        made += _claims(facts)
    elif study is not None and study["importance"]:
        places = [at for at, one in enumerate(study["importance"]) if one["name"].startswith(setting)]
        made += [_effect(facts, at) for at in places]
        if not places:
            made.append(Said("The named study did not search this setting."))
    if len(made) == 1:
        made.append(Todo(f"There is no comparison here: train and show {what}, with several seeds for each."))
    return [*made, Todo("Analyse the difference. Do not call one setting better where noise explains the difference.")]


_ARM_FIGURES: Final = {
    "arms_loss": "Training loss of the arms over the epochs.",
    "arms_psnr": "Validation PSNR of the arms over the epochs.",
    "arms_frames": "PSNR per frame of the arms.",
}


def _arm_table(facts: Facts) -> list[Block]:
    if not facts.at("study/arms"):
        return []

    def shown(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = tuple(
        (
            one["label"],
            str(one["number"]),
            *(shown(one[key], ".2f") for key in ("value", "late")),
            *(shown(one[key], ".3g") for key in ("loss", "mse", "swing")),
        )
        for one in facts.at("study/arms")
    )
    columns = ("arm", "trial", "value, dB", "late, dB", "loss", "squared error", "swing")
    return [
        Table(columns, rows, Said("The arms of the study. Losses are those of the last epoch.", ("study/arms",))),
        Said("Each row is one run: a difference between two rows may be noise, and no row is called better here."),
    ]


def _claims(facts: Facts) -> list[Said]:
    """A sentence for each claim about the arms, with its verdict, and for each pair with its interval."""
    if facts.at("study/claims") is None:
        return []
    made = []
    for at, claim in enumerate(facts.at("study/claims/claims")):
        path = f"study/claims/claims/{at}"
        unit = " dB" if claim["measure"] in MEASURED_IN_DB else ""
        made.append(facts.say(f"Claim '{{{path}/text}}': {{{path}/verdict}}; compared over {{{path}/seeds}} seeds."))
        for place, pair in enumerate(claim["pairs"]):
            if pair["low"] is not None:
                here = f"{path}/pairs/{place}"
                made.append(
                    facts.say(
                        f"The difference is {{{here}/difference:.3g}}{unit} ({{confidence_percent}} % interval "
                        f"{{{here}/low:.3g}} to {{{here}/high:.3g}}{unit})."
                    )
                )
    return made


def _effect(facts: Facts, at: int) -> Said:
    """The effect of a searched setting, averaged over all other settings, and whether it exceeds its noise."""
    here = f"study/importance/{at}"
    judged = (
        "which is within noise: the search cannot tell which value is better"
        if facts.at(f"{here}/within_noise")
        else "which is more than its noise explains"
    )
    return facts.say(
        f"For {{{here}/name}}, the mean value over all other settings is highest at {{{here}/best_at}} and lowest at "
        f"{{{here}/worst_at}}; the difference is {{{here}/difference_db:.2f}} dB with a standard error of "
        f"{{{here}/error_db:.2f}} dB, {judged}."
    )


def _per_frame(facts: Facts) -> list[Block]:
    return [
        Heading("Plot the PSNR-per-frame diagram in the validation dataset", 2),
        facts.say(
            "The mean is {score/val_psnr:.2f} dB; the lowest frames are {score/worst_frames}, down to "
            "{score/lowest:.2f} dB."
        ),
        Figure("psnr_per_frame", Said("PSNR of every predicted validation frame.")),
        *(_explained(facts, at) for at in range(len(facts.at("score/explained")))),
        Said("A correlation is not a cause, and the intervals take into account that neighbouring frames are alike."),
        Figure("psnr_explained", Said("PSNR per frame over the measures that may explain it; the worst are marked.")),
        Figure("worst_frames", Said("The frames with the lowest PSNR: truth, pose and prediction.")),
        Figure("film_strip", Said("Frames from the whole video: truth, pose and prediction.")),
        Todo("Say what happens in the video where the PSNR is low."),
    ]


def _explained(facts: Facts, at: int) -> Said:
    """The correlation of one measure with the PSNR of the frames, and whether noise explains it."""
    here = f"score/explained/{at}"
    if facts.at(f"{here}/correlation") is None:
        return facts.say(f"For '{{{here}/what}}', no correlation with the PSNR is known.")
    text = f"For '{{{here}/what}}', the correlation with the PSNR is {{{here}/correlation:.2f}}"
    if facts.at(f"{here}/low") is not None:
        text += f" ({{{here}/low:.2f}} to {{{here}/high:.2f}}, a {{confidence_percent}} % interval for all together)"
    judged = (
        "which is within noise" if facts.at(f"{here}/psnr_is") == "unknown" else "which is more than noise explains"
    )
    return facts.say(f"{text}, {judged}.")


def _strategy(facts: Facts) -> list[Block]:
    made: list[Block] = [
        Heading("Other training strategy analysis", 2),
        Figure("training", Said("The training of this checkpoint.")),
    ]
    study: dict[str, Any] | None = facts.values["study"]
    if study is not None:
        made += [*_leaders(facts), *_importance(facts)]
    return [*made, Todo("Describe what else you tried, and what it changed.")]


def _leaders(facts: Facts) -> list[Block]:
    """The leaders that were trained again, compared with the first seed by seed."""
    if facts.at("study/confirmation") is None:
        return [Said("The leaders of the search were not trained again, so their order is not known.")]
    made: list[Block] = [
        facts.say(
            "The leaders of the search were trained again with fresh seeds: {study/confirmation/ended} of "
            "{study/confirmation/runs} runs have ended."
        )
    ]
    for at, one in enumerate(facts.at("study/confirmation/leaders")):
        here = f"study/confirmation/leaders/{at}"
        if one["estimate"] is None:
            made.append(facts.say(f"Trial {{{here}/trials/0}} has no value."))
            continue
        text = f"Trial {{{here}/trials/0}}: {{{here}/estimate:.2f}} dB"
        if one["low"] is not None:
            text += f" ({{confidence_percent}} % interval {{{here}/low:.2f}} to {{{here}/high:.2f}} dB)"
        behind = one["behind_first"]
        if behind is not None:
            text += f"; {{{here}/behind_first/value:.2f}} dB behind the first"
            if behind["low"] is not None:
                text += f" ({{{here}/behind_first/low:.2f}} to {{{here}/behind_first/high:.2f}} dB)"
            text += ", which is within noise" if one["tied_with_first"] else ", which is more than noise explains"
        made.append(facts.say(f"{text}."))
    return made


def _importance(facts: Facts) -> list[Block]:
    found = facts.at("study/importance")
    if not found:
        return []
    made: list[Block] = [
        facts.say(
            "The setting with the largest share of the differences is {study/importance/0/name} "
            "({study/importance/0/share:.2f} of the variance; the probability that it is the largest is "
            "{study/importance/0/certainty:.2f})."
            if found[0]["certain"]
            else "Which setting matters most cannot be told: {study/importance/0/name} has the largest share, but only "
            "with a probability of {study/importance/0/certainty:.2f}."
        )
    ]
    return [*made, Figure("importance", Said("The importance of the searched settings."))]
