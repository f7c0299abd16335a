"""Tables for the terminal: what a person would rather look at than read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lora_ft.adapters.manifest import Manifest
    from lora_ft.evaluate.compare import Comparison
    from lora_ft.evaluate.compare_many import DomainResult, PoolComparison
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
    return _uncut(table)


def pool_table(comparison: PoolComparison, folder: Path) -> Table:
    """The adapters of a folder, each on its own rows, one a line, and their average; the router's accuracy below."""
    domains = comparison.domains
    rows = sum(len(one.references) for one in domains.values())
    table = Table(title=escape(f"{folder}: {rows} rows of {len(domains)} adapters"), title_justify="left")
    mains = {one.main for one in domains.values()}
    main = mains.pop() if len(mains) == 1 else "main metric"
    second = "f1_macro" if main == "accuracy" else "accuracy"  # neither says enough where classes are unequal
    both = any(second in one.metrics for one in domains.values())
    table.add_column("adapter", overflow="fold", min_width=min(20, max(map(len, domains), default=0)))
    headings = ["rows", f"{main}\n[95 %]", *([f"{second}\n[95 %]"] if both else []), "base"]
    headings += ["router:\nsent here"] if comparison.router_accuracy() is not None else []
    headings += ["router:\nmetric"] if any(one.routed for one in domains.values()) else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, one in domains.items():
        cells = [str(len(one.references)), _with_interval(one, one.main)]
        cells += [_with_interval(one, second)] if both else []
        cells.append(_number(one.base.get(one.main)))
        cells += [_number(one.sent_to(name))] if one.routes is not None else []
        cells += [_number(one.routed[one.main])] if one.routed is not None else []
        table.add_row(escape(name), *cells)
    if len(domains) > 1:
        averages = [comparison.average(of) for of in ("metrics", "base", "routed")]
        own, base, routed = (values.get(main) for values in averages)
        cells = [str(rows), _number(own), *([_number(averages[0].get(second))] if both else []), _number(base)]
        right = comparison.router_accuracy()
        cells += [_number(right)] if right is not None else []
        cells += [_number(routed)] if routed is not None else []
        table.add_row("average", *cells, style="bold")
    table.caption = escape("\n".join(_pool_notes(comparison)))
    return _uncut(table)


def _pool_notes(comparison: PoolComparison) -> list[str]:
    """What has to be said below the table of a pool."""
    answers = dict.fromkeys(one.base_answer for one in comparison.domains.values())
    splits = dict.fromkeys(one.split for one in comparison.domains.values())
    notes = [f"rows: {', '.join(splits)}; base: {', '.join(answers)}"]
    right = comparison.router_accuracy()
    notes += [f"router: {right:.3f} of all rows are nearest to their own adapter"] if right is not None else []
    notes += [f"router: no metric, {comparison.not_routed}"] if comparison.not_routed else []
    without = comparison.without_centroid
    notes += [f"without a centroid, never chosen: {', '.join(without)}"] if without and right is not None else []
    return notes


def _with_interval(one: DomainResult, metric: str) -> str:
    if metric not in one.metrics:
        return ""
    interval = one.intervals[metric]
    return f"{one.metrics[metric]:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _uncut(table: Table) -> Table:
    """The table with the columns that do not fold as wide as their cells, however narrow the terminal is."""
    for column in table.columns:
        if column.overflow != "fold":
            cells = [str(column.header), *map(str, column.cells)]
            column.no_wrap = True
            column.min_width = max(
                Text.from_markup(line).cell_len for cell in cells for line in (cell.splitlines() or [""])
            )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


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
    return _uncut(table)


def not_learned(result: TrainResult) -> Panel:
    """The loud word at the end of a run that learned nothing."""
    manifest = result.manifest
    rows = manifest.run["rows"]["validation"] if manifest else 0
    steps = manifest.run["steps"] if manifest else 0
    change = (manifest.run.get("gap") or {}).get("change", "") if manifest else ""
    advice = (
        f"First change: {change}"
        if change
        else f"{steps} steps are few: raise training_args.num_train_epochs, or give more rows."
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
        Text(
            f"On the {rows} validation rows this adapter {beaten_by}.\n"
            f"It was saved, and its manifest says learned: false.\n{advice}"
        ),
        title="nothing learned",
        border_style="bold red",
        expand=False,
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
        **({"texts": f"prepared by {', '.join(manifest.preparation)}"} if manifest.preparation else {}),
        "metrics": "; ".join(f"{split}: {_headline(values)}" for split, values in manifest.metrics.items()) or "none",
        "learned": {True: "yes", False: "NO: no better than what it had to beat", None: "not measured"}[
            manifest.learned
        ],
        "precision": manifest.precision,
        **_origin(manifest),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))
    return _uncut(table)


def _origin(manifest: Manifest) -> dict[str, str]:
    """When an adapter was trained, or what is known of one that was adopted."""
    if "adopted" in manifest.run:
        said = manifest.run["adopted"]
        by = f"peft {said['peft_version'] or 'of unknown version'}, base {said['base_model_name_or_path']!r}"
        return {"adopted": f"{manifest.created}, from {by}; unknown: {', '.join(said['unknown'])}"}
    return {"trained": f"{manifest.created}, seed {manifest.seed}, {manifest.run['steps']} steps"}


def adapters_table(found: Sequence[tuple[Path, Manifest | str]]) -> Table:
    """The adapters of a folder, one a line; what cannot be read says why."""
    table = Table(title_justify="left")
    for heading in ("adapter", "task", "base", "labels", "metrics", "MB"):
        table.add_column(heading)
    if any(isinstance(manifest, str) for _, manifest in found):
        table.add_column("why it cannot be read", overflow="fold", style="red")
    for folder, manifest in found:
        if isinstance(manifest, str):
            table.add_row(escape(shown_folder(folder)), "", "", "", "", "", escape(manifest))
            continue
        scores: Mapping[str, float] = next(iter(manifest.metrics.values()), {})
        table.add_row(
            escape(shown_folder(folder)),
            manifest.task,
            escape(manifest.base.name),
            str(len(manifest.labels) or _without_labels(manifest)),
            escape(_headline(scores, count=2)),
            f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.2f}",
        )
    return _uncut(table)


def shown_folder(adapter: Path) -> str:
    """The shortest path that every verb understands: of `runs/shop/adapter` the run folder above it."""
    return str(adapter.parent if adapter.name == "adapter" and adapter.parent.name else adapter)


def listed(found: Sequence[tuple[Path, Manifest | str]]) -> list[dict[str, Any]]:
    """The adapters of a folder as JSON; of one that cannot be read the reason."""
    rows: list[dict[str, Any]] = []
    for folder, manifest in found:
        if isinstance(manifest, str):
            rows.append({"adapter": shown_folder(folder), "error": manifest})
            continue
        rows.append(
            {
                "adapter": shown_folder(folder), "task": manifest.task, "problem_type": manifest.problem_type,
                "labels": list(manifest.labels), "base": manifest.base.name, "revision": manifest.base.revision,
                "peft_type": manifest.peft_type, "metrics": manifest.metrics, "learned": manifest.learned,
                "bytes": sum(file.bytes for file in manifest.files.values()), "created": manifest.created,
            }
        )  # fmt: skip
    return rows


def folded_table(record: Mapping[str, Any], folder: Path) -> Table:
    """How far a base with an adapter folded in is from the adapter: metrics, then answers."""
    before, after = record["metrics"].get("before", {}), record["metrics"].get("after", {})
    table = Table(title=escape(f"{folder}: merged, {record['dtype']}"), title_justify="left")
    table.add_column("validation", no_wrap=True)
    for heading in ("adapter", "merged", "difference"):
        table.add_column(heading, justify="right")
    for name, value in after.items():
        table.add_row(escape(name), f"{before[name]:.4f}", f"{value:.4f}", f"{value - before[name]:+.4f}")
    drift = record["drift"]["as_trained"]
    lines = [f"{what}: answers differ by {one['max']:.2g} (of {one['scale']:.2g})" for what, one in drift.items()]
    on = record["quantization_of_the_adapter"]
    lines += [f"trained on a base in {on}, merged into the original one"] if on else []
    lines += [f"validation not measured: {record['not_measured']}"] if record["not_measured"] else []
    table.caption = escape("\n".join(lines))
    return _uncut(table)


def combined_tables(report: Mapping[str, Any], folder: Path) -> list[Table]:
    """Each domain's main metric with its own adapter and with the merged one, and all that a search tried."""
    main = report["main_metric"]
    weights = ", ".join(f"{weight:.3g}" for weight in report["weights"])
    table = Table(title=escape(f"{folder}: {report['method']} with weights {weights}"), title_justify="left")
    table.add_column("domain", overflow="fold")
    for heading in (f"{main}: own adapter", "merged", "difference", "answers differ by"):
        table.add_column(heading, justify="right")
    measured = [one for one in report["domains"].values() if one["after"]]
    for name, one in report["domains"].items():
        drift = one["drift"].get("validation", one["drift"]["probe"])
        apart = f"{drift['mean']:.2g} (at most {drift['max']:.2g})"
        if one["after"]:
            own, merged = one["before"][main], one["after"][main]
            table.add_row(escape(name), f"{own:.4f}", f"{merged:.4f}", f"{merged - own:+.4f}", apart)
        else:
            table.add_row(escape(name), escape(f"not measured: {one['why']}"), "", "", apart)
    if len(measured) > 1:
        own, merged = (sum(one[key][main] for one in measured) / len(measured) for key in ("before", "after"))
        table.add_row("mean", f"{own:.4f}", f"{merged:.4f}", f"{merged - own:+.4f}", "", style="bold")
    return [_uncut(table), *([_tried_table(report)] if report["tried"] else [])]


def _tried_table(report: Mapping[str, Any]) -> Table:
    """Every combination that a search tried, in order; the one that was kept is bold."""
    table = Table(title=f"tried: {len(report['tried'])} combinations", title_justify="left")
    for heading in ("method", "weights", "as"):
        table.add_column(heading, no_wrap=True)
    for heading in (*report["domains"], f"mean {report['main_metric']}"):
        table.add_column(escape(heading), justify="right")
    kept = {key: report[key] for key in ("method", "weights")}
    for one in report["tried"]:
        means = [*(one["main"][name] for name in report["domains"]), one["mean"]]
        scores = ["not finite" if value is None else f"{value:.4f}" for value in means]
        weights = ", ".join(f"{weight:.3g}" for weight in one["weights"])
        style = "bold" if {key: one[key] for key in kept} == kept else None
        table.add_row(one["method"], weights, one["kind"], *scores, style=style)
    return _uncut(table)


def _without_labels(manifest: Manifest) -> str:
    return "a number" if manifest.problem_type == "regression" else "none"


def _headline(scores: Mapping[str, float], *, count: int = 3) -> str:
    names = [name for name in scores if name != "loss" and not name.startswith("f1/")]
    return ", ".join(f"{name} {scores[name]:.4f}" for name in names[:count])
