"""The trainer that can be stopped and go on: whole checkpoints, signals at safe points, exact resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from lora_ft.errors import AdapterError, Interrupted, RunError
from lora_ft.recipe.write import resolved_yaml
from lora_ft.train import loop_state, sharded
from lora_ft.train.agreement import Agreement
from lora_ft.train.checkpoint_folder import (
    LOOP,
    SCALER,
    SCHEDULER,
    STATE,
    cannot_write,
    prune,
    read_state,
    read_weights,
    write_checkpoint,
    write_state,
    write_weights,
)
from lora_ft.train.checkpoints import OPTIMIZER, RECIPE, checkpoint_folder, read_checkpoint, step_of
from lora_ft.train.interrupt import Interruption
from lora_ft.train.loop_state import Pending
from lora_ft.train.measure import GivenUp
from lora_ft.train.told import first_told, told_by_each
from lora_ft.train.trainer import AdapterTrainer

logger = logging.getLogger(__name__)


class Restored(transformers.TrainerCallback):  # type: ignore[misc]
    """Puts the loop of a resumed run back once all is prepared, and does what was due when it stopped.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Does it before the first step, and says how long a signal has to wait."""
        if self.trainer.worst_step_s is not None:
            step_s = self.trainer.worst_step_s * args.gradient_accumulation_steps
            logger.info(
                "on SIGINT, SIGTERM or SIGUSR1: a checkpoint after the step, which takes %.1f s at most", step_s
            )
        self.trainer.go_on()


class ResumableTrainer(AdapterTrainer):
    """An AdapterTrainer whose run survives what machines do.

    A checkpoint holds the adapter, the optimizer, and all that the loop knows, of every process, and is written by the
    main process alone. A signal ends the run after the step, or within an evaluation, which is then made up for.

    Args:
        made_of: What checkpoints remember of the run, see `same_run.made_of`.
        interruption: Where signals arrive.
        checkpoint: What the run goes on from, or None.
        **arguments: Those of `AdapterTrainer`.
    """

    def __init__(
        self, *, made_of: Mapping[str, Any], interruption: Interruption, checkpoint: Path | None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.made_of = made_of
        self.interruption = interruption
        self.checkpoint = checkpoint
        self.saved_s = 0.0
        self.agreement = Agreement()
        self._drawn: Mapping[str, Any] | None = None
        self._seen_step: int | None = None
        self._after_step = False
        self._done: Pending | None = None
        self._last_whole = checkpoint
        self.before_restoring: Callable[[], object] | None = None  # called when the weights are cut, but still new

    def given_up(self) -> bool:
        """Whether an evaluation is to be given up, because a signal came."""
        return self.interruption.received is not None

    def go_on(self) -> None:
        """Puts the loop back to where the checkpoint was saved, and does what was due there."""
        if self.checkpoint is None:
            return
        state = read_state(self.checkpoint, LOOP)
        if self.state.best_global_step:
            best = checkpoint_folder(Path(self.args.output_dir), self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        drawn = loop_state.restore(self, state["run"], state["ranks"])
        if drawn is not None:
            loop_state.put_back(drawn, self.args.device)
        self.control.should_training_stop = state["run"]["stopped"]
        if state["run"]["pending"] is not None:
            self._make_up(Pending(**state["run"]["pending"]))
        self._drawn = loop_state.chance(self.args.device)

    def _make_up(self, pending: Pending) -> None:
        """Does what was due after the step of the checkpoint, and after the epoch that ended with it."""
        self._seen_step = None if pending.ends_epoch else self.state.global_step
        self.control.should_log = pending.log
        self.control.should_evaluate, self.control.should_save = pending.evaluate, pending.save
        for _ in range(2 if pending.ends_epoch else 1):
            if self._seen_step == self.state.global_step and pending.ends_epoch:
                self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(
                self._tr_loss, pending.grad_norm, self.model_wrapped, None, self.state.epoch, None, time.time(),
                learning_rate=pending.learning_rate,
            )  # fmt: skip

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called once the first batches were fetched, which must leave no trace."""
        if self._drawn is not None:
            loop_state.put_back(self._drawn, self.args.device)
            self._drawn = None

    def _run_epoch(self, **context: Any) -> None:
        """An epoch, or nothing, where the checkpoint was the last of its run."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # accelerate 1.15 loses the sampler on several processes, once batches are skipped
        context["train_dataloader"].set_epoch(context["epoch"])
        super()._run_epoch(**context)

    def _reduced(self, totals: torch.Tensor) -> torch.Tensor:
        """Sums over the processes; on the way they agree whether one of them got a signal."""
        mine = torch.full_like(totals[:1], int(self.interruption.received is not None))
        sums = super()._reduced(torch.cat([totals, mine]))
        self.agreement.add(sums[-1])
        return sums[:-1]

    def _stops(self) -> bool:
        """Whether the run ends after this step; the same on all processes."""
        return self.agreement.said if self.args.world_size > 1 else self.interruption.received is not None

    def _maybe_log_save_evaluate(  # the signature is transformers'
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """What the Trainer does after a step, and once more after an epoch; a signal comes first."""
        self._after_step, self._seen_step = self.state.global_step != self._seen_step, self.state.global_step
        pending = Pending.of(
            self.control, grad_norm=grad_norm, learning_rate=learning_rate, ends_epoch=self._ends_epoch()
        )
        self._done = replace(pending, log=False, evaluate=False, save=False)
        if self._stops():
            raise self._stop_here(pending)
        drawn = loop_state.chance(self.args.device) if pending.evaluate else None
        try:
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
            )
        except GivenUp:
            raise self._stop_here(replace(pending, log=False), drawn=drawn) from None

    def _ends_epoch(self) -> bool:
        """Whether a step was the last of its epoch, and what is due at the end of the epoch is still to come."""
        stops = self.control.should_training_stop or self.control.should_epoch_stop
        return self._after_step and (stops or self.state.epoch.is_integer())

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Also has the best model saved where no checkpoint was due; transformers (5.23) would forget it."""
        best: bool = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return best

    def to_go_on(self) -> str:
        """Saves the last step where no checkpoint can go on; says how a run that was ended goes on."""
        if self.args.save_strategy == transformers.trainer_utils.SaveStrategy.NO or self.args.save_only_model:
            self._write(None, None)
        return f"A checkpoint is in {self.args.output_dir}. To go on: the same command with --resume"

    def _stop_here(self, pending: Pending, *, drawn: Mapping[str, Any] | None = None) -> Interrupted:
        """Saves a checkpoint; the error that ends the run."""
        self._write(pending, drawn)
        where = f"step {self.state.global_step} of {self.state.max_steps}"
        after = f", {self.interruption.waited_s:.2f} s after the signal" if self.interruption.received else ""
        return self.interruption.ended(
            f"ended after {where}: a checkpoint was saved in {self.args.output_dir}{after}. To go on: the same command "
            "with --resume"
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        pending = replace(self._done, ends_epoch=True) if self._done is not None and self._ends_epoch() else None
        self._write(pending, None, whole=not self.args.save_only_model)

    def _write(self, pending: Pending | None, drawn: Mapping[str, Any] | None, *, whole: bool = True) -> None:
        """Writes the checkpoint of this step.

        Args:
            pending: What is due and was not done, or None.
            drawn: Where chance was after the step, where an evaluation has drawn since.
            whole: Whether with the optimizer.

        Raises:
            RunError: It cannot be written; all processes end.
        """
        started = time.perf_counter()
        self.standing.at("checkpoint")
        self.store_flos()
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        target = checkpoint_folder(output_dir, step)
        if self.state.best_global_step:
            best = checkpoint_folder(output_dir, self.state.best_global_step)
            if best == target or best.exists():
                self.state.best_model_checkpoint = str(best)
        tensors, optimizer = sharded.adapter_state(self), sharded.optimizer_state(self) if whole else None
        mine = loop_state.of_rank(self, drawn or loop_state.chance(self.args.device))
        ranks = told_by_each(mine, world_size=self.args.world_size)
        told = None
        if self.args.should_save:
            loop = {"run": loop_state.of_run(self, pending), "ranks": ranks}
            told = self._write_alone(target, tensors=tensors, optimizer=optimizer, loop=loop)
        told = first_told(told, world_size=self.args.world_size)
        if told is not None:
            raise RunError(told)
        self.saved_s = time.perf_counter() - started

    def _write_alone(
        self, target: Path, *, tensors: Any, optimizer: Mapping[str, Any] | None, loop: Mapping[str, Any]
    ) -> str | None:
        """Writes the checkpoint, and removes old ones; what went wrong, or None."""
        step, best_step = self.state.global_step, self._best_step()

        def fill(folder: Path) -> None:
            write_weights(folder, tensors, self.accelerator.unwrap_model(self.model).peft_config["default"])
            if optimizer is not None:
                write_state(folder, OPTIMIZER, optimizer)
                write_state(folder, SCHEDULER, self.lr_scheduler.state_dict())
                if self.accelerator.scaler is not None:
                    write_state(folder, SCALER, self.accelerator.scaler.state_dict())
            write_state(folder, LOOP, dict(loop))
            (folder / RECIPE).write_text(resolved_yaml(self.prepared.recipe), encoding="utf-8")
            self.state.save_to_json(str(folder / STATE))

        try:
            write_checkpoint(target, fill, step=step, best_step=best_step, run=self.made_of)
            prune(target.parent, keep=self.args.save_total_limit, newest=step, best_step=best_step)
        except (AdapterError, OSError) as error:
            return cannot_write(error, target, last=self._last_whole)
        self._last_whole = target
        return None

    def _best_step(self) -> int | None:
        """The step of the best checkpoint until now, where the run will end with it."""
        best = self.state.best_model_checkpoint
        return step_of(Path(best)) if best is not None and self.args.load_best_model_at_end else None

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Puts a run that is cut into shards back once it is; DeepSpeed would look for a checkpoint of its own."""
        if resume_from_checkpoint is None or not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.before_restoring is not None:
            self.before_restoring()
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        read_checkpoint(best)
        self._load_weights(best)

    def _load_weights(self, folder: Path) -> None:
        """Adapter and head of a checkpoint into the model."""
        if self.prepared.recipe.peft_config["peft_type"] == "ADALORA":
            loop_state.restore_adalora(self, read_state(folder, LOOP)["run"]["ranks_of_adalora"])
        else:
            sharded.restore_adapter(self, read_weights(folder))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            sharded.restore_optimizer(self, read_state(Path(checkpoint), OPTIMIZER))
            self.lr_scheduler.load_state_dict(read_state(Path(checkpoint), SCHEDULER))
