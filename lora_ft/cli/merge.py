"""The verb merge: one adapter into its base, or several adapters into one."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.cli.environment import open_options, opening, task_facts
from lora_ft.cli.output import print_table, progress_bar
from lora_ft.errors import InputError

if TYPE_CHECKING:
    from lora_ft.adapters.merge_plan import Plan, Source
    from lora_ft.assemble.saved import OpenOptions


@click.command()
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ADAPTER...")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The folder to be.")
@click.option(
    "--method", "methods", multiple=True, help="How several become one, cat by default; several for --search."
)
@click.option("--weights", help="One for each adapter, 0.5,0.3,0.2; by default all alike, 1 in all.")
@click.option("--density", type=float, help="Share of the values that ties, dare and magnitude_prune keep, 0.5.")
@click.option("--rank", type=int, help="Rank of the methods that end in svd; that of the largest adapter.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what dare drops.")
@click.option("--search", is_flag=True, help="Try methods and weights on the validation rows of every adapter.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier merge wrote there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@opening
@click.pass_context
def merge(context: click.Context, /, adapters: tuple[Path, ...], output: Path, **asked: Any) -> None:
    """Fold one ADAPTER into its base (a plain checkpoint), or several of one base into one new adapter."""
    from lora_ft.adapters.export import check_apart
    from lora_ft.adapters.merge_plan import read_sources

    where = {name: asked.pop(name) for name in ("base", "quantization", "device", "offline", "trust_remote_code")}
    sources = read_sources(adapters)
    base = Path(where["base"] or sources[0].manifest.base.name)
    if base.is_dir():
        check_apart(output, base)
    if len(sources) == 1:
        _refuse_for_one(asked)
        _refuse_output_of_one(sources[0], output, overwrite=asked["overwrite"], quantization=where["quantization"])
        options = open_options(where, debug=context.obj["debug"])
        told = _one(sources[0], output, options, overwrite=asked["overwrite"], batch_size=asked["batch_size"])
    else:
        plan = _plan(sources, asked)
        _refuse_output_of_several(sources, output, overwrite=asked["overwrite"])
        options = open_options(where, debug=context.obj["debug"])
        told = _several(sources, output, options, plan=plan, asked=asked)
    if asked["as_json"]:
        click.echo(json.dumps({"output": str(output), **told}, indent=2, ensure_ascii=False))
        return
    from lora_ft import screen

    tables = [screen.folded_table(told, output)] if len(sources) == 1 else screen.combined_tables(told, output)
    for table in tables:
        print_table(table)


def _refuse_for_one(asked: Mapping[str, Any]) -> None:
    """What says how several are combined means nothing for one."""
    given = [name for name in ("methods", "weights", "density", "rank", "search") if asked[name]]
    if given:
        option = "--method" if given[0] == "methods" else f"--{given[0]}"
        raise InputError(
            f"merge: {option} says how several adapters become one, and one is given. "
            "Give more adapters, or leave it out"
        )


def _refuse_output_of_one(source: Source, output: Path, *, overwrite: bool, quantization: str) -> None:
    """Where a merged base may go, never in or around its adapter; a base in 4 or 8 bits is never written."""
    from lora_ft.adapters.export import check_apart
    from lora_ft.adapters.merge_plan import check_checkpoint_target, checkpoint_bytes

    if quantization not in ("as-trained", "none"):
        raise InputError(
            f"merge: --quantization {quantization}: a merged base is written in the precision the base is stored in, "
            "never quantised. Leave it out; load the result quantised if you like"
        )
    check_apart(output, source.folder)
    check_checkpoint_target(output, overwrite=overwrite, needed_bytes=checkpoint_bytes(source.manifest))


def _refuse_output_of_several(sources: Sequence[Source], output: Path, *, overwrite: bool) -> None:
    """Where a merged adapter may go: never over, in or around one that it is made of."""
    from lora_ft.adapters.export import check_apart
    from lora_ft.adapters.target import check_target

    for one in sources:
        check_apart(output, one.folder)
    check_target(output, overwrite=overwrite, option="--output")


def _plan(sources: Sequence[Source], asked: Mapping[str, Any]) -> Plan:
    """How several adapters are combined, as far as the command line says it; with --search every method is checked."""
    from lora_ft.adapters.merge_plan import (
        DENSITY,
        Plan,
        check_method,
        check_plan,
        check_together,
        parse_weights,
        prunes,
        shared_settings,
    )

    methods: tuple[str, ...] = asked["methods"]
    for method in methods:
        check_method(method)
    if len(methods) > 1 and not asked["search"]:
        raise InputError(f"merge: {len(methods)} methods are given. Give one --method, or --search to try them all")
    if asked["search"] and asked["weights"]:
        raise InputError("merge: --search finds the weights. Leave --weights out, or --search")
    check_together(sources)
    shared_settings(sources)
    count = len(sources)
    weights = parse_weights(asked["weights"]) if asked["weights"] else (1 / count,) * count
    plans = []
    for method in methods or ("cat",):
        density = asked["density"]
        if density is None or (asked["search"] and not prunes(method)):
            density = DENSITY if prunes(method) else None
        rank = asked["rank"] if method.endswith("svd") or not asked["search"] else None
        plans.append(Plan(method, weights, density, asked["seed"], rank))
    for plan in plans:
        check_plan(plan, sources)
    return plans[0]


def _one(source: Source, output: Path, options: OpenOptions, *, overwrite: bool, batch_size: int) -> dict[str, Any]:
    """One adapter into its base; the adapter is asked first as it was trained."""
    from lora_ft.assemble.encode import references_of
    from lora_ft.assemble.merged import fold, remember, write_merged
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.evaluate.merge_search import measure, validation_rows

    opened = open_adapter(source.folder, options)
    rows, why = validation_rows(opened, tasks=task_facts())
    before = remember(opened, rows, why=why)
    folded = fold(before, options)
    metrics: dict[str, Any] = {}
    if rows is not None and before.features is not None:
        references = references_of(rows, task=opened.task, problem=opened.problem)
        with progress_bar(2 * len(before.features), "merge") as advance:
            metrics = {
                name: measure(one, rows, features, references, batch_size=batch_size, advance=advance)
                for name, one, features in (
                    ("before", before.adapter, before.features),
                    ("after", folded.merged, folded.merged.encode(rows)),
                )
            }
    return write_merged(
        output, source=source, before=before, folded=folded, metrics=metrics, command=_command(), overwrite=overwrite
    )


def _several(
    sources: Sequence[Source], output: Path, options: OpenOptions, *, plan: Plan, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Several adapters into one, with the given weights or the best that a search finds."""
    from lora_ft.assemble.combined import open_sources, save_combined
    from lora_ft.evaluate.merge_search import Score, best, finish, methods_to_search, open_domains, search, tries

    batch_size, tried = asked["batch_size"], list[Score]()
    opened = open_sources(sources, options)
    with progress_bar(None, "each alone") as advance:
        domains = open_domains(
            opened, tasks=task_facts(), batch_size=batch_size, needed=asked["search"], advance=advance
        )
    if asked["search"]:
        methods = methods_to_search(asked["methods"], sources)
        with progress_bar(tries(len(sources), len(methods)), "search") as advance:
            tried = search(
                opened, domains, methods=methods, density=asked["density"], seed=asked["seed"], rank=asked["rank"],
                batch_size=batch_size, advance=advance,
            )  # fmt: skip
        plan = best(tried, opened.views[0].task, opened.views[0].manifest.problem_type).plan
    with progress_bar(None, "merged") as advance:
        report, new = finish(opened, plan, domains, batch_size=batch_size, tried=tried, advance=advance)
    told = {"sources": [one.to_mapping() for one in sources], **report.to_mapping()}
    save_combined(
        output, opened=opened, new=new, merge=told, metrics=report.mean_metrics(), command=_command(),
        overwrite=asked["overwrite"],
    )  # fmt: skip
    return told


def _command() -> str:
    """The command as it was typed."""
    return shlex.join(["lora-ft", *sys.argv[1:]])
