"""What a run shows while it goes on: one bar, one line an evaluation, one curve also of a run that was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

CURVES = "tensorboard"
"""Folder of a run's curves, within its output_dir."""

SHOWN_METRICS = 4


class OneScreenProgress(ProgressCallback):  # type: ignore[misc]
    """transformers' progress bar without a line for every logged step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Puts the loss beside the bar, and writes one line for each evaluation."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        scores = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if scores:
            shown = [
                f"{name} {value:.4f}"
                for name, value in scores.items()
                if isinstance(value, float) and name not in ("runtime", "samples_per_second", "steps_per_second")
            ]
            self.training_bar.write(
                f"  epoch {state.epoch:4.1f}   " + "   ".join(shown[: SHOWN_METRICS + 1]), file=sys.stderr
            )


class OneCurve(TensorBoardCallback):  # type: ignore[misc]
    """TensorBoard with one folder for a run, whoever started it how often; transformers makes one at each start.

    Args:
        begun_at: The step that the run goes on from; what an earlier start wrote of later ones no longer counts.
    """

    def __init__(self, begun_at: int) -> None:
        super().__init__()
        self.begun_at = begun_at

    def _init_summary_writer(self, args: Any) -> None:
        folder = Path(args.output_dir) / CURVES
        self.tb_writer = self._SummaryWriter(log_dir=str(folder), purge_step=self.begun_at + 1 if self.begun_at else 0)


def one_curve(trainer: transformers.Trainer, *, begun_at: int) -> None:
    """Has TensorBoard show a run that was stopped and went on as one curve, where the run reports to it.

    Args:
        trainer: The trainer.
        begun_at: The step it goes on from; 0 from the start.
    """
    if trainer.pop_callback(TensorBoardCallback) is not None:
        trainer.add_callback(OneCurve(begun_at))
