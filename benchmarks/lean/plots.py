"""Summaries -> small PNG files: speed and memory of each contender, and loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.lean.tables import OURS

OURS_COLOUR, OTHERS_COLOUR = "#2a6f97", "#b8b8b8"
DOTS_PER_INCH = 80


def plot_contenders(file: Path, *, title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Two rows of bars: real tokens a second, and peak memory with the part of the imports marked."""
    names = list(found)[::-1]
    colours = [OURS_COLOUR if name.startswith(OURS) else OTHERS_COLOUR for name in names]
    figure = Figure(figsize=(9, 0.8 + 0.45 * len(names)), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    bars = speed.barh(names, [found[name]["tokens_per_s"] for name in names], color=colours)
    speed.bar_label(bars, fmt="%.0f", padding=2)
    speed.set_xlabel("real tokens a second")
    bars = memory.barh(names, [found[name]["peak_mb"] for name in names], color=colours)
    memory.bar_label(bars, fmt="%.0f", padding=2)
    memory.barh(names, [found[name]["imports_mb"] for name in names], color="none", edgecolor="black", hatch="///")
    memory.set_xlabel("peak memory, MB (hatched: imports)")
    for axis in (speed, memory):
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=DOTS_PER_INCH)


def plot_curves(file: Path, *, title: str, ours: Sequence[float], plain: Sequence[float]) -> None:
    """Both loss curves, and the difference at each step below them."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses, differences = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = range(1, len(ours) + 1)
    losses.plot(steps, plain, color=OTHERS_COLOUR, linewidth=4, label="plain peft")
    losses.plot(steps, ours, color=OURS_COLOUR, linewidth=1, label=OURS)
    losses.set_ylabel("loss")
    losses.legend(frameon=False)
    differences.plot(steps, [abs(one - other) for one, other in zip(ours, plain, strict=True)], color=OURS_COLOUR)
    differences.set_ylabel("difference")
    differences.set_xlabel("step")
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=DOTS_PER_INCH)
