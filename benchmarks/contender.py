"""Runs one contender in a process of its own and reads back what it measured."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.real_data import ROOT


@dataclass(frozen=True)
class Measured:
    """One finished process: wall and CPU seconds, peak memory, and the JSON of its last line."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    result: dict[str, Any]


def run(arguments: Sequence[str], *, quiet: bool = False) -> Measured:
    """Runs `python -m ARGUMENTS`; its last line on standard output must be JSON.

    Args:
        arguments: Module and its arguments.
        quiet: Whether what it says on standard error is shown only if it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    output, said = process.communicate()
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed with exit code {process.returncode}\n{said or ''}")
    result = json.loads(output.strip().splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall_s=wall, cpu_s=cpu, peak_mb=float(result.pop("peak_mb", 0.0)), result=result)


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
