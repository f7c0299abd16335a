"""What a run has to beat, and what it came to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers

from lora_ft.assemble.encode import references_of
from lora_ft.assemble.prepare import Prepared
from lora_ft.train.measure import Measured, Split, measure, score
from lora_ft.train.trainer import AdapterTrainer

logger = logging.getLogger(__name__)

LOW_RATE = 1e-4
"""A rate below this is more likely too low than too high: adapters want more than whole models do."""
EARLY = 0.1
"""Share of a run after which an evaluation says something, where it comes before the end of an epoch."""


@dataclass(frozen=True)
class Baseline:
    """What a run has to beat.

    Attributes:
        constant: The best constant answer for the training rows; None where only the untrained model can tell.
        metrics: Its metrics, or those of the untrained model, on each split.
    """

    constant: dict[str, Any] | None
    metrics: dict[str, dict[str, float]]

    @classmethod
    def of(cls, trainer: AdapterTrainer) -> Baseline:
        """Measures it; to be called before training."""
        prepared, task, problem = trainer.prepared, trainer.prepared.task, trainer.prepared.problem
        constant = task.constant_answer(references_of(prepared.rows["train"], task=task, problem=problem), problem)
        if constant is None:
            return cls(None, {name: measure_split(trainer, split).metrics for name, split in trainer.splits.items()})
        metrics = {
            name: task.score([constant] * len(split.references), split.references, problem)
            for name, split in trainer.splits.items()
        }
        return cls(constant, metrics)

    def is_beaten(self, metrics: Mapping[str, Mapping[str, float]], prepared: Prepared) -> bool | None:
        """Whether the adapter learned something; None without a validation split."""
        if "validation" not in metrics:
            return None
        return prepared.task.learned(
            metrics["validation"],
            self.metrics["validation"],
            rows=len(prepared.rows["validation"]),
            problem_type=prepared.problem.problem_type,
        )


class Compared(transformers.TrainerCallback):  # type: ignore[misc]
    """Measures what a run has to beat before its first step, and warns early where nothing of it is beaten.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer
        self._baseline: Baseline | None = None
        self._looks = "stuck-at-chance" not in trainer.prepared.recipe.checks_off

    def baseline(self) -> Baseline:
        """What the run has to beat; measured when it is first asked for, which must be before the first step."""
        if self._baseline is None:
            self._baseline = Baseline.of(self.trainer)
        return self._baseline

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Measures it, where nobody has yet; what was looked at before the run was stopped is not looked at again."""
        self.baseline()
        looked_at = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
        if any(self._is_late(entry["step"], entry["epoch"], state) for entry in looked_at):
            self._looks = False

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **context: Any
    ) -> None:
        """Looks at the first evaluation that comes late enough to say something."""
        if not self._looks or metrics is None or not self._is_late(state.global_step, state.epoch, state):
            return
        self._looks = False
        if state.global_step >= state.max_steps:
            return  # the run is over, and says what it came to
        own = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        if self.baseline().is_beaten({"validation": own}, self.trainer.prepared) is False:
            logger.warning("%s", stuck(self.trainer, constant=self.baseline().constant is not None))

    @staticmethod
    def _is_late(step: int, epoch: float, state: Any) -> bool:
        """Whether an evaluation comes late enough to say something."""
        return epoch >= 1 or step >= EARLY * state.max_steps


def stuck(trainer: AdapterTrainer, *, constant: bool) -> str:
    """The early word on a run that has learned nothing yet."""
    state, rate = trainer.state, float(trainer.args.learning_rate)
    beaten_by = "a constant answer or a coin" if constant else "the base before training"
    falls = trainer.watch.falls
    advice = (
        "The training loss falls, so it may need more epochs (training_args.num_train_epochs) or more rows than "
        f"{len(trainer.train_dataset)}"
        if falls
        else f"The training loss does not fall either: stop (Ctrl-C) and set {other_rate(rate)}, or look at the labels "
        "(lora-ft data check)"
    )
    return (
        f"stuck at chance: after step {state.global_step} of {state.max_steps} the adapter is no better than "
        f"{beaten_by}. {advice} (checks: {{stuck-at-chance: false}} turns this warning off)"
    )


def other_rate(rate: float) -> str:
    """Another learning rate to try: adapters that learn nothing have one too high, unless it is very low."""
    if rate < LOW_RATE:
        return f"training_args.learning_rate: {LOW_RATE:.0e} ({rate:.2g} is low for an adapter)"
    return f"training_args.learning_rate: {rate / 3:.2g} (a third)"


def measure_split(trainer: AdapterTrainer, split: Split) -> Measured:
    """Metrics of the model as it is on one split; nothing is added to the training curves."""
    return measure(
        trainer.accelerator.unwrap_model(trainer.model), split, task=trainer.prepared.task,
        problem=trainer.prepared.problem, precision=trainer.precision, arguments=trainer.args,
        budget=trainer.evaluation_budget, in_step=trainer.in_step, known=trainer.known_of(split),
        given_up=trainer.given_up,
    )  # fmt: skip


def measure_adapter(trainer: AdapterTrainer) -> tuple[Prepared, dict[str, dict[str, float]]]:
    """Metrics of the trained adapter on each split, after what is best chosen on validation has been chosen there.

    Returns:
        What was prepared with the tuned settings; metrics by split.
    """
    prepared, task, splits = trainer.prepared, trainer.prepared.task, trainer.splits
    measured = {name: measure_split(trainer, split) for name, split in splits.items()}
    if "validation" in splits:
        tuned = task.tune(measured["validation"].predictions, splits["validation"].references, prepared.problem)
        if tuned:
            logger.info("chosen on validation: %s", ", ".join(f"{key} = {value}" for key, value in tuned.items()))
            problem = replace(prepared.problem, settings={**prepared.problem.settings, **tuned})
            prepared = replace(prepared, problem=problem)
            measured = {
                name: score(one.answers, splits[name], task=task, problem=problem) for name, one in measured.items()
            }
    return prepared, {name: one.metrics for name, one in measured.items()}
