"""Finished runs -> medians, markdown tables and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contender import Measured
from benchmarks.lean.scenarios import Scenario

OURS = "lora_ft"
COLUMNS = {
    "train_s": ("train s", ".1f"),
    "step_s": ("step s", ".3f"),
    "tokens_per_s": ("tokens/s", ".0f"),
    "peak_mb": ("peak MB", ".0f"),
    "imports_mb": ("of it imports", ".0f"),
    "before_mb": ("before the 1st step", ".0f"),
    "gflops": ("GFLOPs a step", ".0f"),
    "saved_mb": ("saved MB a step", ".1f"),
    "padded_ratio": ("padded/real", ".2f"),
}


def summary(runs: Sequence[Measured]) -> dict[str, Any]:
    """Medians over the rounds; accuracies are means, and counts stand in the first run that has them."""
    results = [{**one.result, "peak_mb": one.peak_mb, "wall_s": one.wall_s, "cpu_s": one.cpu_s} for one in runs]
    names = ("train_s", "step_s", "tokens_per_s", "peak_mb", "imports_mb", "before_mb", "padded_ratio", "cpu_s")
    found: dict[str, Any] = {name: statistics.median(result[name] for result in results) for name in names}
    if "step_flops" in results[0]:
        found |= {"gflops": results[0]["step_flops"] / 1e9, "saved_mb": results[0]["saved_mb"]}
        found["counted_tokens"] = results[0]["counted_tokens"]
    if "dev_accuracy" in results[0]:
        found["dev_accuracy"] = statistics.mean(result["dev_accuracy"] for result in results)
    if losses := results[0]["losses"]:
        found |= {"first_loss": losses[0], "last_loss": losses[-1], "losses": losses}
    return {**found, "steps": results[0]["steps"], "rounds": len(runs), "lean": results[0].get("lean")}


def table(scenario: Scenario, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A markdown table, a line for each contender; quality stands beside the time."""
    heads = ["contender", *(head for head, _ in COLUMNS.values()), scenario.quality.replace("_", " ")]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, values in found.items():
        cells = [format(values[column], shape) if column in values else "" for column, (_, shape) in COLUMNS.items()]
        quality = format(values[scenario.quality], ".4f") if scenario.quality in values else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {quality} |")
    lines += [f"| {name} | skipped: {why} |" for name, why in scenario.skipped.items()]
    return "\n".join(lines)


def ratios(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast, and with what part of the memory, each of ours is as each of the others."""
    lines = []
    for our_name, ours in found.items():
        for name, other in found.items():
            if our_name.startswith(OURS) and not name.startswith(OURS):
                lines.append(
                    {
                        "ours": our_name,
                        "other": name,
                        "train_time": other["train_s"] / ours["train_s"],
                        "tokens_per_s": ours["tokens_per_s"] / other["tokens_per_s"],
                        "peak_memory": ours["peak_mb"] / other["peak_mb"],
                        "peak_over_imports": (ours["peak_mb"] - ours["imports_mb"])
                        / (other["peak_mb"] - other["imports_mb"]),
                    }
                )
    return lines


def ratio_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table of `ratios`."""
    rows = ["| ours | against | train time | tokens/s | peak memory | without the imports |", f"|{'---|' * 6}"]
    rows += [
        f"| {one['ours']} | {one['other']} | {one['train_time']:.2f} times shorter | {one['tokens_per_s']:.2f} times | "
        f"{one['peak_memory']:.2f} of it | {one['peak_over_imports']:.2f} of it |"
        for one in lines
    ]
    return "\n".join(rows)
