"""Did a run learn its training rows by heart, or not enough of them: said in words, with the one setting to change.

One line: gap: overfitted: f1_macro 1.000 on training rows and 0.871 on validation, ... First change: ...
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lora_ft.assemble.encode import encode_rows, references_of
from lora_ft.assemble.known_prefix import known_of_rows
from lora_ft.assemble.prepare import Prepared
from lora_ft.recipe.schema import Recipe
from lora_ft.train.measure import Split, measure
from lora_ft.train.trainer import AdapterTrainer
from lora_ft.train.weights import made_up_for

logger = logging.getLogger(__name__)

GATE = "gap"
RISES = 0.05
"""Share by which the validation loss must rise above its lowest value, so that it is no wobble."""

FALLS = 0.02
"""Share by which it must still fall from one evaluation to the next to say that a run is not finished."""

LEAST_GAP = 0.05
"""Between training and validation rows, of a metric from 0 to 1; less is not worth a word."""

LOSS_GAP = 0.25
"""Share by which the validation loss is above that of training rows, where the metric is not one from 0 to 1."""

SURE = 2.0
"""Standard errors by which the two must differ."""

FEW_STEPS = 50
"""Fewer teach nothing at any learning rate."""

UNEQUAL = 4.0
"""From so many times the rows on, a rare class may be left out without the loss minding it much."""

DROPOUT, WEIGHT_DECAY, LEAST_RANK = 0.1, 0.1, 4
HIGH_RATE, LOW_RATE, USUAL_RATE = 1e-3, 1e-4, 5e-4

Verdict = Literal["overfitted", "underfitted", "even"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during a run.

    Attributes:
        epoch: When.
        train_loss: Mean training loss since the evaluation before; None where none was logged.
        validation_loss: On the validation rows.
    """

    epoch: float
    train_loss: float | None
    validation_loss: float | None


@dataclass(frozen=True)
class Both:
    """What the finished adapter is worth on rows that it learned and on rows that it did not.

    Attributes:
        metric: The main metric.
        lower_is_better: Whether it improves downwards.
        train: Metrics of the training rows, with `loss`, without dropout and augmentation.
        validation: Likewise of the validation rows.
        rows: How many training rows, and how many validation rows.
        knows_training_rows: Whether the training rows are answered better than by chance.
    """

    metric: str
    lower_is_better: bool
    train: Mapping[str, float]
    validation: Mapping[str, float]
    rows: tuple[int, int]
    knows_training_rows: bool = True


@dataclass(frozen=True)
class Setup:
    """The settings that could be changed.

    Attributes:
        epochs: Epochs that were planned.
        max_steps: Steps, where the recipe plans those; None where it plans epochs.
        steps: Steps that were taken.
        learning_rate: The highest one.
        weight_decay: Of the optimizer.
        dropout: `peft_config.lora_dropout`; None where the method has none.
        rank: `peft_config.r`; None where the method has none.
        unequal: Training rows of the most frequent class for each of the rarest; 1 where the recipe makes up for it.
    """

    epochs: float
    max_steps: int | None
    steps: int
    learning_rate: float
    weight_decay: float
    dropout: float | None
    rank: int | None
    unequal: float = 1.0

    @classmethod
    def of(cls, recipe: Recipe, *, epochs: float, steps: int, unequal: float = 1.0) -> Setup:
        """Reads them from a recipe, with the epochs that its steps come to and the steps that were taken."""
        arguments, adapter = recipe.training_args, recipe.peft_config
        counts_steps = arguments.get("max_steps", -1) > 0
        return cls(
            epochs=epochs if counts_steps else float(arguments.get("num_train_epochs", epochs)),
            max_steps=int(arguments["max_steps"]) if counts_steps else None,
            learning_rate=float(arguments["learning_rate"]),
            steps=steps,
            weight_decay=float(arguments["weight_decay"]),
            dropout=adapter.get("lora_dropout"),
            rank=adapter.get("r"),
            unequal=1.0 if recipe.makes_up_for_rare_classes else unequal,
        )


@dataclass(frozen=True)
class Gap:
    """What is said at the end of a run.

    Attributes:
        verdict: `overfitted`, `underfitted` or `even`.
        reasons: Why, with the numbers.
        change: The setting to change first, with a value; empty where nothing has to.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    change: str

    def line(self) -> str:
        """All of it in one line."""
        told = {"even": "neither overfitted nor underfitted"}.get(self.verdict, self.verdict)
        return f"{told}: {'; '.join(self.reasons)}" + (f". First change: {self.change}" if self.change else "")


def look_at_gap(
    trainer: AdapterTrainer, prepared: Prepared, metrics: Mapping[str, Mapping[str, float]], *, baseline: Any
) -> dict[str, Any] | None:
    """Measures the finished adapter on as many training rows as there are validation rows, and says what that means.

    Args:
        trainer: The trainer of a finished run.
        prepared: Its rows, with the settings that were tuned.
        metrics: Of the finished adapter on each split.
        baseline: Metrics of what the run has to beat, by split.

    Returns:
        For the manifest; None where nothing was measured or the recipe turns it off.
    """
    if GATE in prepared.recipe.checks_off or "validation" not in metrics:
        return None
    task, problem, started = prepared.task, prepared.problem, time.perf_counter()
    split, chosen = _sample(prepared, rows=len(prepared.rows["validation"]))
    train = measure(
        trainer.accelerator.unwrap_model(trainer.model), split, task=task, problem=problem,
        precision=trainer.precision, arguments=trainer.args, budget=trainer.evaluation_budget, in_step=trainer.in_step,
        known=known_of_rows(trainer.known.get("train"), prepared.features["train"], split.features, rows=chosen),
        given_up=trainer.given_up,
    ).metrics  # fmt: skip
    main = str(trainer.args.metric_for_best_model or task.metrics[problem.problem_type][0]).removeprefix("eval_")
    both = Both(
        metric=main,
        lower_is_better=main == "loss" or main.partition("/")[0] in task.lower_is_better,
        train=train,
        validation=metrics["validation"],
        rows=(len(split.rows), len(prepared.rows["validation"])),
        knows_training_rows=task.learned(
            train, baseline["validation"], rows=len(split.rows), problem_type=problem.problem_type
        ),
    )
    setup = Setup.of(
        prepared.recipe, epochs=float(trainer.state.num_train_epochs), steps=trainer.state.global_step,
        unequal=_unequal(prepared),
    )  # fmt: skip
    made_up = made_up_for(trainer.training_problem, class_weight=trainer.class_weight, draw=trainer.draw)
    # what is minimised then is another loss than the plain one that is measured, which may rise while all gets better
    gap = judge([] if made_up else evaluations_of(trainer.state.log_history), both, setup)
    logger.log(
        logging.WARNING if gap.verdict != "even" else logging.INFO,
        "gap: %s (%d of %d training rows were measured in %.1f s; checks: {gap: false} turns it off)",
        gap.line(), both.rows[0], len(prepared.own_rows["train"]), time.perf_counter() - started,
    )  # fmt: skip
    return {**asdict(gap), "rows": both.rows[0], "train": dict(train)}


def evaluations_of(history: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """The evaluations in a Trainer's `log_history`, each with the mean training loss since the one before."""
    found: list[Evaluation] = []
    losses: list[float] = []
    for entry in history:
        if "loss" in entry:
            losses.append(float(entry["loss"]))
        elif "eval_loss" in entry:
            mean = sum(losses) / len(losses) if losses else None
            found.append(Evaluation(float(entry["epoch"]), mean, float(entry["eval_loss"])))
            losses = []
    return found


def judge(evaluations: Sequence[Evaluation], both: Both, setup: Setup) -> Gap:
    """Says whether a run overfitted or underfitted, and what to change first.

    Overfitted: the training rows are known better than the validation rows by more than chance, or the validation
    loss rose while the training loss went on falling. Underfitted: not even the training rows are known, or the
    validation loss was still falling when the run ended and the metric could still be better.

    Args:
        evaluations: In order.
        both: What the finished adapter is worth on both kinds of rows.
        setup: The settings of the run.
    """
    numbers = _numbers(both)
    rose, wide = _rise(evaluations), _gap(both)
    if rose or wide:
        reasons = [numbers, *([rose] if rose else [])]
        best = min(evaluations, key=_validation_loss).epoch if rose else None
        return Gap("overfitted", tuple(reasons), _regularised(setup, best_epoch=best))
    falls = _still_falls(evaluations)
    if not both.knows_training_rows:
        reasons = [numbers, "that is no better than chance on rows that it was shown", *([falls] if falls else [])]
        longer = falls or setup.steps < FEW_STEPS
        change = _in_the_way(setup) or (_lasting(setup, 2 * setup.epochs) if longer else _stronger(setup))
        return Gap("underfitted", tuple(reasons), change)
    if falls and not _is_perfect(both):
        return Gap("underfitted", (numbers, falls), _lasting(setup, 2 * setup.epochs))
    return Gap("even", (numbers,), "")


def _sample(prepared: Prepared, *, rows: int) -> tuple[Split, list[int]]:
    """As many training rows as wanted, by the run's seed, encoded as rows that are measured are; their numbers."""
    table, task, problem = prepared.own_rows["train"], prepared.task, prepared.problem
    rng = np.random.default_rng((problem.seed, len(table)))
    numbers = np.sort(rng.permutation(len(table))[:rows]).tolist()
    chosen = table.select(numbers)
    features = encode_rows(chosen, task=task, problem=problem)
    return Split(chosen, features, references_of(chosen, task=task, problem=problem)), numbers


def _validation_loss(one: Evaluation) -> float:
    return math.inf if one.validation_loss is None else one.validation_loss


def _numbers(both: Both) -> str:
    """Metric and loss of both kinds of rows."""
    told = []
    for name in dict.fromkeys((both.metric, "loss")):
        if name in both.train and name in both.validation:
            told.append(f"{name} {both.train[name]:.3f} on training rows and {both.validation[name]:.3f} on validation")
    return ", ".join(told)


def _rise(evaluations: Sequence[Evaluation]) -> str:
    """How the validation loss rose while the training loss fell; empty if it did not."""
    if len(evaluations) < 2:
        return ""
    best, last = min(evaluations, key=_validation_loss), evaluations[-1]
    low, high = _validation_loss(best), _validation_loss(last)
    if best is last or high - low <= RISES * abs(low):
        return ""
    if best.train_loss is not None and last.train_loss is not None and last.train_loss >= best.train_loss:
        return ""
    fell = (
        f", while the training loss fell from {best.train_loss:.3f} to {last.train_loss:.3f}"
        if best.train_loss is not None and last.train_loss is not None
        else ""
    )
    return (
        f"the validation loss was lowest at epoch {best.epoch:.3g} ({low:.3f}) and rose to {high:.3f} at epoch "
        f"{last.epoch:.3g}{fell}"
    )


def _gap(both: Both) -> bool:
    """Whether training rows are known better than validation rows, by more than chance.

    Source: the standard error of the difference of two shares, sqrt(p (1 - p) (1 / n + 1 / m)); metrics such as F1 are
    no shares, and near enough for a warning.
    """
    ours, theirs = both.train.get(both.metric), both.validation.get(both.metric)
    if ours is not None and theirs is not None and not both.lower_is_better and 0 <= min(ours, theirs) <= 1 >= ours:
        mean = min(max((ours + theirs) / 2, 0.0), 1.0)
        error = math.sqrt(mean * (1 - mean) * sum(1 / max(rows, 1) for rows in both.rows))
        return ours - theirs > max(LEAST_GAP, SURE * error)
    if "loss" not in both.train or "loss" not in both.validation:
        return False
    return both.validation["loss"] - both.train["loss"] > LOSS_GAP * abs(both.train["loss"])


def _still_falls(evaluations: Sequence[Evaluation]) -> str:
    """That the last evaluation was the best one by far; empty if it was not."""
    if len(evaluations) < 2:
        return ""
    before, last = min(map(_validation_loss, evaluations[:-1])), _validation_loss(evaluations[-1])
    if before - last <= FALLS * abs(before):
        return ""
    return f"the validation loss was still falling at the end, from {before:.3f} to {last:.3f}"


def _is_perfect(both: Both) -> bool:
    """Whether the metric of the validation rows can be no better, of those from 0 to 1."""
    return both.validation.get(both.metric) == (0.0 if both.lower_is_better else 1.0)


def _regularised(setup: Setup, *, best_epoch: float | None) -> str:
    """The first thing against overfitting that a run does not do yet."""
    if best_epoch is not None and math.ceil(best_epoch) < setup.epochs:
        return _lasting(setup, best_epoch)
    if setup.dropout is not None and setup.dropout < DROPOUT:
        return f"peft_config.lora_dropout: {DROPOUT} (now {setup.dropout:g})"
    if setup.weight_decay < WEIGHT_DECAY:
        return f"training_args.weight_decay: {WEIGHT_DECAY} (now {setup.weight_decay:g})"
    if setup.rank is not None and setup.rank > LEAST_RANK:
        return f"peft_config.r: {max(setup.rank // 2, LEAST_RANK)} (now {setup.rank})"
    return "more training rows, or the section augmentation"


def _lasting(setup: Setup, epochs: float) -> str:
    """A run of another length, in the words of the recipe."""
    if setup.max_steps is None:
        return f"training_args.num_train_epochs: {math.ceil(epochs)} (now {setup.epochs:g})"
    return f"training_args.max_steps: {math.ceil(setup.max_steps * epochs / setup.epochs)} (now {setup.max_steps})"


def _in_the_way(setup: Setup) -> str:
    """What keeps a run from learning however long it is; empty if nothing does."""
    if setup.learning_rate > HIGH_RATE:
        lower = max(setup.learning_rate / 3, USUAL_RATE) if setup.learning_rate < 10 * HIGH_RATE else USUAL_RATE
        return f"training_args.learning_rate: {lower:.1g} (now {setup.learning_rate:g})"
    if setup.unequal >= UNEQUAL:
        return f"loss.class_weight: balanced (one class has {setup.unequal:.0f} times the rows of another)"
    return ""


def _unequal(prepared: Prepared) -> float:
    """Training rows of the most frequent class for each of the rarest; 1 where the task weighs none."""
    counts = [count for count in prepared.report.labels.get("train", {}).values() if count]
    return max(counts) / min(counts) if prepared.task.weighs_classes and counts else 1.0


def _stronger(setup: Setup) -> str:
    """The first thing for a run that cannot even answer its training rows."""
    if setup.learning_rate < LOW_RATE or setup.rank is None:
        return f"training_args.learning_rate: {USUAL_RATE:g} (now {setup.learning_rate:g})"
    return f"peft_config.r: {2 * setup.rank} (now {setup.rank}), with lora_alpha: {4 * setup.rank}"
