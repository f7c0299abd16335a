"""The verb that makes of an adapter what other programs load: a checkpoint, a graph, a server's folder, fewer bits."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.cli.environment import open_options, opening, task_facts
from lora_ft.cli.output import print_table, progress_bar
from lora_ft.errors import LoraFtError

if TYPE_CHECKING:
    from lora_ft.adapters.manifest import Manifest
    from lora_ft.assemble.compressed import Rows
    from lora_ft.assemble.saved import OpenOptions, SavedAdapter


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--format", "name", required=True, help="safetensors, onnx, vllm, lorax, or adapter.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The folder to be.")
@click.option("--dtype", help="bf16 or int8, with --format adapter.")
@click.option("--data", type=click.Path(path_type=Path), help="Rows to measure the change on, with --format adapter.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in the output folder.")
@opening
@click.pass_context
def export(
    context: click.Context,
    /,
    adapter: Path,
    name: str,
    output: Path,
    dtype: str | None,
    data: Path | None,
    batch_size: int,
    overwrite: bool,
    **where: Any,
) -> None:
    """Export ADAPTER for other programs, with its answers proven equal or the change measured."""
    from lora_ft.assemble.export_checks import check_export

    check_export(adapter, output, name=name, dtype=dtype, overwrite=overwrite, base=where["base"])
    options = open_options(where, debug=context.obj["debug"])
    from lora_ft.assemble.saved import open_adapter

    opened = open_adapter(adapter, options)
    command = shlex.join(["lora-ft", "export", str(adapter), "--format", name, "--output", str(output)])
    if name == "safetensors":
        _merged(opened, output, options=options, command=command, overwrite=overwrite)
    elif name == "onnx":
        _graph(opened, output, options=options, command=command, overwrite=overwrite)
    elif name == "adapter":
        from lora_ft.assemble.compressed import export_compressed

        measured_on = _rows(opened, data)
        with progress_bar(None, "measure") as advance:
            manifest = export_compressed(
                opened, output, dtype=str(dtype), quantization=_quantization(opened, options), measured_on=measured_on,
                batch_size=batch_size, command=f"{command} --dtype {dtype}", overwrite=overwrite, advance=advance,
            )  # fmt: skip
        _show_compression(manifest, output)
    else:
        from lora_ft.assemble.exported import export_served

        record = export_served(opened, output, server=name, command=command, overwrite=overwrite)
        click.echo(f"{output}: {record['tensors']} tensors of rank {record['rank']}, {record['bytes']:,} bytes")
        if opened.manifest.quantization is not None:
            click.echo(
                f"  note    it was trained on {record['trained_on']}; a base in 16 bits answers a little otherwise"
            )
        for change in record["changes"]:
            click.echo(f"  changed {change}")
        click.echo(f"  proven  B times A moved by {record['largest_relative_change']:.1e} of its largest element")
        click.echo(f"  next    {record['next']}")
    if opened.manifest.preparation and name != "adapter":
        steps = ", ".join(opened.manifest.preparation)
        click.echo(f"  texts   prepare them first, as `preparation` in the JSON file beside it says: {steps}")


def _merged(opened: SavedAdapter, output: Path, *, options: OpenOptions, command: str, overwrite: bool) -> None:
    """Writes the checkpoint that `lora-ft merge` writes of one adapter."""
    from lora_ft.adapters.merge_plan import read_sources
    from lora_ft.assemble.exported import refuse_another
    from lora_ft.assemble.merged import fold, remember, write_merged

    (source,) = read_sources([opened.folder])
    before = remember(opened, None, why="lora-ft export compares the probe alone; lora-ft merge measures")
    folded = fold(before, options)
    refuse_another(folded.merged, folded)
    record = write_merged(
        output, source=source, before=before, folded=folded, metrics={}, command=command, overwrite=overwrite
    )
    found = record["drift"]["unmerged"]["probe"]
    click.echo(f"{output}: {folded.auto_class} in {record['dtype']}, read back by plain transformers")
    click.echo(f"  probe   answers as the adapter beside its base to {found['max']:.1e} (largest {found['scale']:.3g})")


def _graph(opened: SavedAdapter, output: Path, *, options: OpenOptions, command: str, overwrite: bool) -> None:
    """Writes the ONNX graph, and says how equal it is."""
    from lora_ft.assemble.exported_onnx import export_onnx

    record = export_onnx(opened, output, options=options, command=command, overwrite=overwrite)
    parity = record["parity"]
    shapes = ", ".join(f"{name} {one['axes']}" for name, one in record["inputs"].items())
    click.echo(f"{output}: {record['graph']}, opset {record['opset']}, {record['bytes']:,} bytes")
    click.echo(f"  inputs  {shapes}".replace("'", ""))
    click.echo(f"  outputs {', '.join(record['outputs'])}; labels and settings in export.json")
    click.echo(
        f"  parity  onnxruntime and torch differ by {parity['largest_difference']:.1e} at most, over "
        f"{len(parity['batches'])} batches of other sizes and lengths"
    )


def _rows(opened: SavedAdapter, data: Path | None) -> Rows:
    """The rows that a change is measured on: of a file, else of the recipe, where these can still be read."""
    from lora_ft.assemble.compressed import Rows
    from lora_ft.assemble.recorded import recorded_columns, recorded_recipe
    from lora_ft.evaluate.compare import rows_of_file, rows_of_recipe

    if data is not None:
        return Rows(str(data), rows_of_file(opened, data, recorded_columns(opened.folder)))
    try:
        return Rows(*rows_of_recipe(opened, recorded_recipe(opened.folder, tasks=task_facts()), None))
    except LoraFtError as error:
        return Rows(None, None, why=str(error).splitlines()[0])


def _quantization(opened: SavedAdapter, options: OpenOptions) -> str | None:
    """How the base lies in memory."""
    if options.quantization == "as-trained":
        return opened.manifest.quantization
    return None if options.quantization == "none" else options.quantization


def _show_compression(manifest: Manifest, output: Path) -> None:
    """A table of every metric and the size, before and after."""
    from rich.table import Table

    found: Mapping[str, Any] = manifest.run["compression"]
    on = f"{found['rows']} rows of {found['split']}" if found["metrics"] else f"no metric: {found['not_measured']}"
    table = Table(title=f"{output}: {found['dtype']}; {on}", title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for name, (before, after) in found["metrics"].items():
        table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    before, after = found["bytes"]
    table.add_row("bytes", f"{before:,}", f"{after:,}", f"{after / before - 1:+.0%}")
    probe = found["probe"]
    table.add_row("probe, largest value", f"{probe['largest_logit']:.4g}", "", f"{probe['largest_difference']:.2g}")
    print_table(table)
