"""Runs as forks of one process that has imported everything: a trial takes a second or two instead of ten."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.faults.phases import NAMES, Phases
from tests.train.ranks import environment, free_port

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        codes: Of each rank, as `waitpid` has it: minus the signal for one that was killed.
        phase: What rank 0 did when the signal was sent; None where the run was over before.
        text: What all ranks wrote.
    """

    codes: tuple[int, ...]
    phase: str | None
    text: str


@dataclass(frozen=True)
class Blow:
    """A signal at a random point.

    Attributes:
        number: The signal.
        phase: It is sent within this phase,
        count: once it has been entered so often,
        delay_s: and so many seconds later.
        ranks: Who gets it.
    """

    number: signal.Signals
    phase: str
    count: int
    delay_s: float
    ranks: tuple[int, ...]

    @classmethod
    def drawn(cls, rng: random.Random, *, world: int) -> Blow:
        """One of all that there are."""
        number = rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), (5, 3, 1, 1))[0]
        phase = rng.choices(NAMES, (1, 5, 2, 4, 2, 1, 1, 1))[0]
        most = {"step": 85, "evaluation": 6, "writing": 40, "renaming": 6, "pruning": 6}.get(phase, 1)
        ranks = (tuple(range(world)),) if number != signal.SIGKILL else (tuple(range(world)), (0,), (world - 1,))
        delay_s = rng.random() * (3.0 if phase == "preparing" else 0.04)  # all of what comes before the first step
        return cls(number, phase, rng.randint(1, most), delay_s, rng.choice(ranks))


def run(arguments: Sequence[str], *, world: int, folder: Path, blow: Blow | None = None) -> Ended:
    """Runs `lora-ft train`, and strikes it once.

    Args:
        arguments: After `lora-ft`.
        world: Number of processes.
        folder: Where each writes what it says.
        blow: The signal, or None.
    """
    port = free_port()
    phases = [Phases(blow.phase if blow else None, blow.count if blow else 0)] + [Phases() for _ in range(world - 1)]
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    pids = [_fork(arguments, rank, world, port=port, phases=phases[rank], log=logs[rank]) for rank in range(world)]
    codes: dict[int, int] = {}
    struck = None if blow is None else _strike(blow, pids, phases[0], codes)
    until = time.monotonic() + PATIENCE_S
    while len(codes) < world and time.monotonic() < until:
        _reap(pids, codes)
        time.sleep(0.005)
    for pid in pids:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[pid] = 999  # it never ended
    return Ended(tuple(codes[pid] for pid in pids), struck, "".join(log.read_text(errors="replace") for log in logs))


def _fork(arguments: Sequence[str], rank: int, world: int, *, port: int, phases: Phases, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if world > 1:
            os.environ.update(environment(rank, world, port=port))
        sys.argv = ["lora-ft", *arguments]
        phases.watch()
        from lora_ft.cli.main import main

        main()
        code = 0
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:  # noqa: BLE001  # what the command line would have died of; a fork has to say it itself
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _strike(blow: Blow, pids: Sequence[int], phases: Phases, codes: dict[int, int]) -> str | None:
    """Waits for the moment and sends the signal; the phase that it met, or None where all was over before."""
    while not phases.reached:
        _reap(pids, codes)
        if codes:
            return None
        time.sleep(0.0005)
    time.sleep(blow.delay_s)
    _reap(pids, codes)
    if codes:
        return None
    met = phases.now
    for rank in blow.ranks:
        os.kill(pids[rank], blow.number)
    return met


def _reap(pids: Sequence[int], codes: dict[int, int]) -> None:
    for pid in pids:
        if pid not in codes:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)


def curve(run_folder: Path) -> list[dict[str, float]]:
    """What was logged, without times."""
    found = list(run_folder.glob("checkpoint-*"))
    if not found:
        return []
    newest = max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [
        {key: value for key, value in entry.items() if not key.endswith(("runtime", "per_second"))} for entry in history
    ]


def different(expected: Path, found: Path) -> str:
    """In what two finished run folders differ; empty where they are the same to the last bit."""
    tensors: list[dict[str, Any]] = [
        load_file(one / "adapter" / "adapter_model.safetensors") for one in (expected, found)
    ]
    if tensors[0].keys() != tensors[1].keys():
        return "other tensors"
    unequal = [name for name, tensor in tensors[0].items() if not np.array_equal(tensor, tensors[1][name])]
    if unequal:
        return f"{len(unequal)} tensors differ, {unequal[0]}"
    if curve(expected) != curve(found):
        return "the curves differ"
    left = [path.name for path in found.iterdir() if path.name.startswith(".")]
    return f"left: {left}" if left else ""
