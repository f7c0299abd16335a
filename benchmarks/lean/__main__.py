"""The lean path beside what a user would run instead: speed, memory, FLOPs, saved bytes, padding, and quality.

    python -m benchmarks.lean [--full] [--only books,top_layers,decoder_49k,decoder_152k,single] [--rounds N]
        [--output FILE.json] [--plots FOLDER]

The quick run takes a part of the rows so that all fits into 15 minutes on 2 cores; `--full` takes all rows, 3 epochs
and three rounds with a seed of their own. Each contender has a process of its own, and contenders take turns. `train s`
is the whole of the training loop: in the quick run nothing is evaluated or saved in it, in the full run dev after each
epoch, in all of them alike. Steps are counted (FLOPs, saved bytes) in a run after the timed one. What needs data or a
base that is not on this machine is passed over with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contender import Measured, run
from benchmarks.lean.scenarios import ALONE, FULL, NAMES, QUICK, Scenario, Size, scenario
from benchmarks.lean.tables import ratio_lines, ratios, summary, table
from benchmarks.real_data import Absent

SINGLE = "single"
COUNT_AFTER = "--count-after"


def rounds_of(scenario: Scenario, *, progress: Progress) -> dict[str, dict[str, Any]]:
    """Runs the contenders in turn; only the first round counts steps, and each has a seed of its own."""
    measured: dict[str, list[Measured]] = {name: [] for name in scenario.commands}
    for number in range(scenario.rounds):
        for name, command in scenario.commands.items():
            progress.say(f"{scenario.title}: {name}, round {number + 1} of {scenario.rounds}")
            own = command if number == 0 else without_counts(command)
            measured[name].append(run([*own, *seeded(command, number)], quiet=True))
    return {name: summary(runs) for name, runs in measured.items()}


def without_counts(command: list[str]) -> list[str]:
    """A command that does not count steps after the timed run."""
    if COUNT_AFTER not in command:
        return command
    at = command.index(COUNT_AFTER)
    return [*command[:at], *command[at + 2 :]]


def seeded(command: list[str], number: int) -> list[str]:
    """The argument that gives a round its seed; rows and first weights of a decoder are random anyway."""
    if command[0] == "benchmarks.usual_script":
        return ["--seed", str(number)]
    if command[0] == "benchmarks.our_run":
        return [f"training_args.seed={number}"]
    return []


class Progress:
    """Says what runs, and how long it has been since the start."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def say(self, what: str) -> None:
        print(f"[{(time.perf_counter() - self.started) / 60:5.1f} min] {what}", flush=True)


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def print_single(name: str, found: dict[str, Any]) -> None:
    if "ratio" in found:
        print(
            f"{name}: {found['second_s']:.3f} s a step of {found['tokens']} tokens against {found['first_s']:.3f} s, "
            f"{found['ratio'] - 1:+.1%}"
        )
    else:
        print(f"{name}: largest difference of {len(found['ours'])} losses {found['largest_difference']:.1e}")


def compared(name: str, size: Size, *, progress: Progress, plots: Path | None) -> dict[str, Any]:
    """Runs one scenario and prints its table.

    Raises:
        Absent: What it needs is not on this machine.
    """
    with tempfile.TemporaryDirectory(prefix=f"lora_ft-{name}-") as folder:
        given = scenario(name, size, Path(folder))
        found = rounds_of(given, progress=progress)
    told = ratios(found)
    print(f"\n## {given.title}\n\n{table(given, found)}\n\n{ratio_lines(told)}\n", flush=True)
    if plots is not None:
        from benchmarks.lean.plots import plot_contenders

        plot_contenders(plots / f"{name}.png", title=given.title, found=found)
    return {"title": given.title, "contenders": found, "ratios": told}


def measured_alone(name: str, command: list[str], *, progress: Progress, plots: Path | None) -> dict[str, Any]:
    """Runs what one process measures by itself, and prints it."""
    progress.say(name)
    found: dict[str, Any] = run(command, quiet=True).result
    print_single(name, found)
    if plots is not None and "ours" in found:
        from benchmarks.lean.plots import plot_curves

        file = plots / f"{name.lower().replace(', ', '-').replace(' ', '_').replace(chr(39), '')}.png"
        plot_curves(file, title=name, ours=found["ours"], plain=found["plain"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default=",".join((*NAMES, SINGLE)))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    size, only, progress = FULL if options.full else QUICK, options.only.split(","), Progress()
    if options.rounds is not None:
        size = replace(size, rounds=options.rounds)
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"environment": environment(), "full": options.full}
    for name in (one for one in NAMES if one in only):
        try:
            results[name] = compared(name, size, progress=progress, plots=options.plots)
        except Absent as why:
            results[name] = {"skipped": str(why)}
            progress.say(f"{name}: {why}")
        write(options.output, results)
    for name, runs in ALONE.items() if SINGLE in only else ():
        with tempfile.TemporaryDirectory(prefix="lora_ft-single-") as folder:
            try:
                commands = runs(Path(folder), full=options.full)
            except Absent as why:
                results[name] = {"skipped": str(why)}
                progress.say(f"{name}: {why}")
                write(options.output, results)
                continue
            for alone, command in commands.items():
                results[alone] = measured_alone(alone, command, progress=progress, plots=options.plots)
                write(options.output, results)
    progress.say("done")


def write(file: Path | None, results: dict[str, Any]) -> None:
    """Keeps what was measured so far."""
    if file is not None:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
