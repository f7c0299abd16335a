"""What one process of a machine makes and the others of its run read: they wait for a file, never for the process.

    ~/.cache/lora_ft/runs/node7-4711-1795377600-29500/9c1e....json    ["Ein gutes Buch.", ...]
                                                      9c1e....lock    held by the process that makes it

The system lets go of the lock of a process that died, and the next one makes it. The folder goes when all have read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import filelock
import psutil

logger = logging.getLogger(__name__)


def run_folder(parent: Path, launcher: psutil.Process, *, port: str) -> Path:
    """The folder that the processes of one run on one machine have in common; it is not made yet.

    Args:
        parent: Where such folders are; those of launchers that are gone are removed.
        launcher: The process that started all of them.
        port: At which they meet.
    """
    host = socket.gethostname()
    for left in parent.glob(f"{host}-*"):
        pid = left.name.removeprefix(f"{host}-").partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return parent / f"{host}-{launcher.pid}-{launcher.create_time():.0f}-{port}"


def once(folder: Path, key: str, make: Callable[[], list[str]]) -> list[str]:
    """Texts that the first of several processes makes; what it raises, each of them meets.

    Args:
        folder: See `run_folder`; made when it is first needed, for its owner alone.
        key: Of all that the texts follow from.
        make: Makes them; where nothing can be shared, in each process.
    """
    file = folder / f"{key}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{key}.lock", mode=0o600, fallback_to_soft=False)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.warning("%s: nothing can be shared there by the processes of this run: %s", folder, error)
        return make()
    try:
        if file.is_file():
            found: list[str] = json.loads(file.read_text(encoding="utf-8"))
            return found
        made = make()
        _write(file, made)
        return made
    finally:
        lock.release()


def forget(folder: Path | None) -> None:
    """Removes what the processes had in common, for all of them; who still waits for something makes it."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _write(file: Path, made: list[str]) -> None:
    try:
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(made), encoding="utf-8")
        temporary.rename(file)
    except OSError as error:
        logger.warning("%s: cannot be written: %s; each process makes it", file, error.strerror or error)
