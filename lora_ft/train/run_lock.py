"""One run at a time in a run folder: a lock that the system takes back from a process that ended, however it ended."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from types import TracebackType

import filelock
import transformers

from lora_ft.errors import AdapterError
from lora_ft.train.told import first_told

logger = logging.getLogger(__name__)

LOCK = ".lock"
PATIENCE_S = 3.0
"""Data loader workers of a run that was killed hold its lock for a moment longer."""


class RunLock:
    """Held by the main process from before the first file is written until the run has ended."""

    def __init__(self) -> None:
        self._held: filelock.FileLock | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            Path(self._held.lock_file).unlink(missing_ok=True)
            self._held.release()

    def take(self, arguments: transformers.TrainingArguments) -> None:
        """Takes the run folder; all processes hear whether that went well.

        Raises:
            AdapterError: Another run is in it; says which process on which machine.
        """
        told = self._take(Path(arguments.output_dir)) if arguments.process_index == 0 else None
        told = first_told(told, world_size=int(arguments.world_size))
        if told is not None:
            raise AdapterError(told)

    def _take(self, folder: Path) -> str | None:
        file = folder / LOCK
        lock = filelock.FileLock(file)
        try:
            lock.acquire(timeout=PATIENCE_S)
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except filelock.Timeout:
            holder = file.read_text(encoding="utf-8") or "a process"
            return (
                f"{folder}: another run trains into this folder ({holder}). Wait for its end, or choose another "
                "training_args.output_dir"
            )
        except (
            OSError
        ) as error:  # a full disk says so where a checkpoint is written, and some file systems have no locks
            logger.info("%s: cannot be locked against other runs: %s", folder, error.strerror or error)
        self._held = lock
        return None
