"""What can end a run from outside it, each as one message: memory, disk, workers, other processes."""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path
from types import TracebackType

import psutil
import torch
import transformers

from lora_ft.errors import AdapterError, Interrupted, LoraFtError, RunError
from lora_ft.recipe.schema import Recipe
from lora_ft.train.checkpoints import where_to_start
from lora_ft.train.first_batch import divisors, less_memory, out_of_memory, peak
from lora_ft.train.interrupt import Interruption
from lora_ft.train.standing import Marks, Standing
from lora_ft.train.trainer import AdapterTrainer
from lora_ft.train.watchdog import Failure, Seen, Watchdog

GLOO = "/gloo/transport/"
"""What an error of gloo names: it is a plain RuntimeError (torch 2.13)."""
WORKER = "in DataLoader worker process"
"""What torch (2.13) writes before an error of a worker; it keeps the error's type."""
WORKER_GONE = ("DataLoader worker (pid", "is killed by signal", "exited unexpectedly")
NO_ROOM = (
    "No space left on device",
    "os error 28",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "Disk quota exceeded",
)
"""What safetensors and torch say of a full disk; neither raises an OSError."""
NEWS_S = 3.0
"""So long a process that lost contact waits to hear why."""


class Failures:
    """Turns what ends a run into one message, told by one process; on several, watches over the others.

    Args:
        recipe: The recipe.
        interruption: Signals wait while a message is made: a launcher sends them to whom another one's end has left.
    """

    def __init__(self, recipe: Recipe, interruption: Interruption) -> None:
        self.recipe = recipe
        self.interruption = interruption
        self.standing = Standing()
        self.trainer: AdapterTrainer | None = None
        self.watchdog: Watchdog | None = None

    def watch(self, arguments: transformers.TrainingArguments) -> None:
        """Watches over the processes, where there are several."""
        if arguments.world_size > 1:
            self.watchdog = Watchdog(
                self.standing,
                rank=int(arguments.process_index),
                world_size=int(arguments.world_size),
                timeout_s=float(arguments.ddp_timeout),
                advice=self.to_go_on,
            )
            self.watchdog.start()

    def follow(self, trainer: AdapterTrainer) -> None:
        """Follows the loop of a trainer."""
        self.trainer, trainer.standing = trainer, self.standing
        trainer.add_callback(Marks(self.standing))

    def __enter__(self) -> Failures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the watch; an error that has a message of ours gives way to it.

        Raises:
            RunError: What went wrong, in one message.
        """
        with self.interruption.unheard():
            told = self._told(error) if error is not None else None
            if self.watchdog is not None:
                self.watchdog.stop()
        if told is not None:
            raise told from error

    def _told(self, error: BaseException) -> LoraFtError | None:
        """What is raised in the place of an error; None: the error itself."""
        if lost_contact(error):
            return self._lost(error)
        if isinstance(error, Interrupted | KeyboardInterrupt):
            first = self.watchdog.first if self.watchdog is not None else None
            return self._followed(first) if first is not None else None
        made = self._explained(error)
        if self.watchdog is not None:
            mine = made if made is not None else error
            kind = "" if isinstance(mine, LoraFtError) else f"{type(mine).__name__}: "
            first = self.watchdog.claim(f"{kind}{mine}")
            if first is not None and isinstance(mine, LoraFtError) and first.told == str(mine):
                mine.told_by = first.rank
        return made

    def _lost(self, error: BaseException) -> RunError:
        """Of a process that lost contact with others: why, where that can be known."""
        first = self.watchdog.why(most_s=NEWS_S) if self.watchdog is not None else None
        if first is not None:
            return self._followed(first)
        rank = self.watchdog.own.rank if self.watchdog is not None else 0
        said = str(error).partition("\n")[0].rpartition("] ")[2].partition(". This is")[0]
        told = (
            f"process {rank} on {socket.gethostname()} lost contact with the others ({said}): one of them ended or can "
            f"no longer be reached. Look for the first error in their logs. {self.to_go_on()}"
        )
        if self.watchdog is not None:
            self.watchdog.claim(told)
        return RunError(told)

    def _followed(self, first: Failure | Seen) -> RunError:
        """Of a process that ends because another one did."""
        if isinstance(first, Seen):
            assert self.watchdog is not None
            told = (
                f"{first.name} ended without a word while rank {self.watchdog.own.rank} was at {self.standing.where}: "
                f"killed from outside, most often because memory was short (the kernel's log tells). {self.to_go_on()}"
            )
            before = self.watchdog.claim(told)
            if before is None:
                return RunError(told)
            first = before
        if self.watchdog is not None and first.rank == self.watchdog.own.rank:
            return RunError(first.told)  # its watchdog has claimed it, and the others have left since
        return RunError(f"ended, because {first.name} ended: {in_short(first.told)}")

    def _explained(self, error: BaseException) -> RunError | None:
        """An error of memory, disk or a worker in our words; None for any other."""
        text = str(error)
        if WORKER in text or all(part in text for part in WORKER_GONE[:2]) or WORKER_GONE[2] in text:
            return RunError(f"{worker_told(error)}. {self.to_go_on()}")
        if isinstance(error, LoraFtError) and not isinstance(error, AdapterError):  # the adapter could not be written
            return None
        if out_of_memory(error):
            return RunError(self._short_of_memory(error))
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(part in text for part in NO_ROOM):
            folder = Path(self.recipe.training_args["output_dir"])
            place = error.filename if isinstance(error, OSError) and error.filename else folder
            free = f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are free there)" if folder.is_dir() else ""
            return RunError(f"{place}: the disk is full{free}: make room. {self.to_go_on()}")
        return None

    def _short_of_memory(self, error: BaseException) -> str:
        """The numbers, and what needs less."""
        where = f"{self.standing.where}{f', a batch of {self.standing.batch}' if self.standing.batch else ''}"
        said = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        told = f"memory: too small at {where} ({said}"
        if self.trainer is None:
            return f"{told}{own_memory()})"
        arguments, ways = self.trainer.args, []
        told += (peak(arguments.device) or own_memory()) + ")"
        size, accumulated = int(arguments.train_batch_size), int(arguments.gradient_accumulation_steps)
        if self.trainer.batches is not None:
            tokens = self.trainer.batches.steps.budget.tokens
            ways.append(
                f"lean.max_tokens_per_batch: {tokens // 2} and training_args.gradient_accumulation_steps: "
                f"{2 * accumulated} (a step still learns of about as many tokens)"
            )
        for smaller in divisors(size, size * accumulated)[:1] if self.trainer.batches is None else ():
            ways.append(
                f"training_args.per_device_train_batch_size: {smaller} and training_args.gradient_accumulation_steps: "
                f"{size * accumulated // smaller} (a step still learns of as many rows)"
            )
        ways += less_memory(self.trainer, training=True)
        return f"{told}. Set one of: {'; '.join(ways)}. {self.to_go_on()}"

    def to_go_on(self) -> str:
        """What is left of the run, and how it goes on."""
        if self.trainer is None or not (self.trainer.state.global_step or self.standing.step):
            return "No adapter was written, and no step of this run is lost: the same command again"
        try:
            start = where_to_start(self.recipe, resume=False, auto_resume=True, overwrite=False)
        except AdapterError:
            start = None
        if start is None or start.checkpoint is None:  # it may be on the machine of process 0
            return "No adapter was written, and no whole checkpoint is seen here: the same command with --auto-resume"
        return (
            f"No adapter was written; the newest whole checkpoint is {start.checkpoint.folder.name}: the same command "
            "with --auto-resume goes on from it"
        )


def lost_contact(error: BaseException) -> bool:
    """Whether an error says that a message to or from another process failed."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and (GLOO in str(error) or "[gloo" in str(error).lower())


def worker_told(error: BaseException) -> str:
    """What ended a worker that reads rows: the last line of twenty, or the signal."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if WORKER not in str(error):
        return (
            f"a worker that reads rows ended: {lines[0].rstrip('. ')}. Most often memory was short: set "
            "training_args.dataloader_num_workers to less, or to 0"
        )
    kind, _, said = lines[-1].partition(": ")
    kind = kind.rpartition(".")[2]
    said = said if kind.endswith(("DataError", "InputError")) else f"{kind}: {said}"
    return f"a row could not be read: {said.rstrip('.')}. Mend or remove it"


def own_memory() -> str:
    """What this process holds, of what the machine has."""
    held, whole = psutil.Process().memory_info().rss, psutil.virtual_memory().total
    return f", this process holds {held / 1e9:.2f} of the machine's {whole / 1e9:.2f} GB"


def in_short(told: str) -> str:
    """The first sentence of a message."""
    return told.partition("\n")[0].partition(". ")[0]
