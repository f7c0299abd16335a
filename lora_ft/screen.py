"""Tables for the terminal: what a person would rather look at than read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

if TYPE_CHECKING:
    from lora_ft.adapters.manifest import Manifest
    from lora_ft.evaluate.compare import Comparison
    from lora_ft.train.run import TrainResult

FEW_STEPS = 50


def comparison_table(comparison: Comparison, name: str) -> Table:
    """Base and adapter side by side, with the 95 % interval of the adapter and of the difference."""
    table = Table(title=escape(f"{name} on {comparison.split}: {comparison.rows} rows"), title_justify="left")
    table.add_column("metric", no_wrap=True)
    for heading in ("base", "adapter [95 %]", "difference [95 %]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for metric, value in comparison.adapter.items():
        interval, difference = comparison.intervals.get(metric), comparison.differences.get(metric)
        base = comparison.base.get(metric)
        table.add_row(
            escape(metric),
            "" if base is None else f"{base:.3f}",
            f"{value:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""),
            ("" if base is None else f"{value - base:+.3f}")
            + (f" [{difference.low:+.3f}, {difference.high:+.3f}]" if difference else ""),
        )
    cut = "" if comparison.truncated is None else f"; {comparison.truncated} rows were cut"
    table.caption = f"base: {comparison.base_answer}{cut}"
    return table


def result_table(result: TrainResult) -> Table:
    """Metrics of a finished run beside what it had to beat: a constant answer, or the model before training."""
    manifest = result.manifest
    baseline = "untrained" if manifest is not None and manifest.run["majority"] is None else "constant"
    table = Table(
        title=f"trained in {result.seconds:.0f} s; the best model by {result.main_metric}", title_justify="left"
    )
    table.add_column("metric", no_wrap=True)
    for split in result.metrics:
        table.add_column(f"{split}\n{baseline}", justify="right")
        table.add_column("\nadapter", justify="right")
    names = list(dict.fromkeys(name for values in result.metrics.values() for name in values))
    for name in names:
        cells = []
        for split, values in result.metrics.items():
            constant = result.baseline[split].get(name)
            cells += [f"{constant:.4f}" if constant is not None else "", f"{values[name]:.4f}"]
        table.add_row(escape(name), *cells)
    return table


def not_learned(result: TrainResult) -> Panel:
    """The loud word at the end of a run that learned nothing."""
    manifest = result.manifest
    rows = manifest.run["rows"]["validation"] if manifest else 0
    steps = manifest.run["steps"] if manifest else 0
    advice = (
        f"{steps} steps are few: raise training_args.num_train_epochs, or give more rows."
        if steps < FEW_STEPS
        else "Try a lower training_args.learning_rate (a third of it), a longer training_args.warmup_steps, more "
        "epochs, or look at the labels."
    )
    untrained = manifest is not None and manifest.run["majority"] is None
    beaten_by = (
        "is no better than the base before training"
        if untrained
        else ("cannot be told from a constant answer or a coin")
    )
    return Panel(
        f"On the {rows} validation rows this adapter {beaten_by}.\n"
        f"It was saved at {escape(str(result.folder))} and its manifest says learned: false.\n{advice}",
        title="nothing learned",
        border_style="bold red",
    )


def manifest_table(manifest: Manifest, folder: Path) -> Table:
    """What an adapter is."""
    table = Table(title=escape(str(folder)), title_justify="left", show_header=False)
    base = manifest.base
    tensors = sum(math.prod(tensor.shape) for tensor in manifest.tensors.values())
    rows: Mapping[str, Any] = {
        "task": f"{manifest.task} ({manifest.problem_type})",
        "labels": ", ".join(manifest.labels) or _without_labels(manifest),
        "base": f"{base.name}{'@' + base.revision if base.revision else ''} ({base.parameters / 1e6:.1f} M parameters)",
        "base fingerprint": str(base.fingerprint["weights"])[:16],
        "method": f"{manifest.peft_type}{' on ' + manifest.quantization if manifest.quantization else ''}",
        "size": f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.2f} MB in {len(manifest.files)} files, "
        f"{tensors / 1e6:.2f} M values in {len(manifest.tensors)} tensors",
        "head": (", ".join(manifest.head) + ("" if manifest.new_head else " (the base's own, trained on)"))
        if manifest.head
        else "none that trains",
        "metrics": "; ".join(f"{split}: {_headline(values)}" for split, values in manifest.metrics.items()) or "none",
        "learned": {True: "yes", False: "NO: no better than what it had to beat", None: "not measured"}[
            manifest.learned
        ],
        "precision": manifest.precision,
        "trained": f"{manifest.created}, seed {manifest.seed}, {manifest.run['steps']} steps",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))
    return table


def adapters_table(found: Sequence[tuple[Path, Manifest | str]]) -> Table:
    """The adapters of a folder, one a line; what cannot be read says why."""
    table = Table(title_justify="left")
    table.add_column("adapter", overflow="fold")
    for heading in ("task", "base", "labels", "main metric", "MB"):
        table.add_column(heading, no_wrap=heading == "task")
    for folder, manifest in found:
        if isinstance(manifest, str):
            table.add_row(escape(str(folder)), f"[red]{escape(manifest)}[/red]", "", "", "", "")
            continue
        scores: Mapping[str, float] = next(iter(manifest.metrics.values()), {})
        table.add_row(
            escape(str(folder)),
            manifest.task,
            escape(manifest.base.name),
            str(len(manifest.labels) or _without_labels(manifest)),
            escape(_headline(scores, count=1)),
            f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.2f}",
        )
    return table


def _without_labels(manifest: Manifest) -> str:
    return "a number" if manifest.problem_type == "regression" else "none"


def _headline(scores: Mapping[str, float], *, count: int = 3) -> str:
    names = [name for name in scores if name != "loss" and not name.startswith("f1/")]
    return ", ".join(f"{name} {scores[name]:.4f}" for name in names[:count])
