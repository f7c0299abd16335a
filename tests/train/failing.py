"""Runs of two processes that fail, one after the other, each forked from a process that has imported all there is.

`python -m tests.train.failing FOLDER` reads FOLDER/jobs.json: `[{"name": "killed", "recipe": "...", "world": 2}]`
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.train.ranks import ROOT, environment, free_port

MOST_S = 60.0
AT_STEP = 5


def run_failing(jobs: Sequence[Mapping[str, Any]], *, folder: Path) -> dict[str, dict[str, Any]]:
    """What each job's ranks said, their exit codes, and how long the last one lived after the failure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "tests.train.failing", str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    subprocess.run(command, cwd=ROOT, env=environ, check=True, timeout=240)
    found: dict[str, dict[str, Any]] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


def die(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_in_a_layer(_: Path) -> None:
    time.sleep(1000)


def run_out_of_memory(_: Path) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to")


def fill_the_disk(_: Path) -> None:
    raise OSError(28, "No space left on device", "events.out.tfevents")


BREAKS: dict[str, Callable[[Path], None]] = {
    "killed": die, "stopped": stop, "hanging": sleep_in_a_layer, "memory": run_out_of_memory, "disk": fill_the_disk,
}  # fmt: skip


def break_at_a_step(name: str, mark: Path) -> None:
    """Arranges that the last rank fails in a step, or has a loss that is not finite."""
    from lora_ft.train.resumable import ResumableTrainer

    whole_step, whole_loss = ResumableTrainer.training_step, ResumableTrainer.compute_loss

    def training_step(trainer: ResumableTrainer, *arguments: Any) -> Any:
        if trainer.state.global_step == AT_STEP:
            mark.write_text(str(time.time()), encoding="utf-8")
            if name in BREAKS:
                BREAKS[name](mark)
        return whole_step(trainer, *arguments)

    def compute_loss(trainer: ResumableTrainer, *arguments: Any, **named: Any) -> Any:
        loss = whole_loss(trainer, *arguments, **named)
        return loss * float("nan") if name == "nan" and trainer.state.global_step == AT_STEP else loss

    ResumableTrainer.training_step = training_step  # type: ignore[method-assign]
    ResumableTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def be_rank(rank: int, job: Mapping[str, Any], *, port: int, folder: Path) -> None:
    """A rank, from the command line on; never returns."""
    from lora_ft.cli.main import main

    world = int(job["world"])
    os.environ.update(environment(rank, world, port=port))
    log = os.open(folder / f"{job['name']}-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if rank == world - 1:
        break_at_a_step(str(job["name"]), folder / f"{job['name']}.failed")
    sys.argv = ["lora-ft", "train", str(job["recipe"])]
    code: Any = 0
    try:
        main()
    except SystemExit as leave:
        code = leave.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def watch(pids: Sequence[int]) -> dict[int, tuple[int, float]]:
    """The exit code of each rank, and when it ended; a stopped one is waited for until the others have ended."""
    ended: dict[int, tuple[int, float]] = {}
    until = time.time() + MOST_S
    while len(ended) < len(pids) and time.time() < until:
        for rank, pid in enumerate(pids):
            if rank not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[rank] = (os.waitstatus_to_exitcode(status), time.time())
        stopped = len(pids) - 1 not in ended and len(ended) == len(pids) - 1 and _state(pids[-1]) == "T"
        if stopped:  # as a launcher ends it
            os.kill(pids[-1], signal.SIGKILL)
        time.sleep(0.05)
    for rank, pid in enumerate(pids):
        if rank not in ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            ended[rank] = (999, time.time())
    return ended


def _state(pid: int) -> str:
    """A letter: R, S, T (stopped)."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def main(folder: Path) -> None:
    """Does all jobs."""
    import lora_ft.cli.main
    import lora_ft.train.run  # noqa: F401  imported once for all ranks

    found = {}
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        port, pids = free_port(), []
        for rank in range(int(job["world"])):
            pid = os.fork()
            if pid == 0:
                be_rank(rank, job, port=port, folder=folder)
            pids.append(pid)
        ended = watch(pids)
        failed = folder / f"{job['name']}.failed"
        at = float(failed.read_text(encoding="utf-8")) if failed.exists() else 0.0
        logs = [folder / f"{job['name']}-{rank}.log" for rank in range(int(job["world"]))]
        found[job["name"]] = {
            "codes": [ended[rank][0] for rank in range(len(pids))],
            "pids": pids,
            "after_s": max(when for _, when in ended.values()) - at,
            "logs": [log.read_text(encoding="utf-8") for log in logs],
        }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
