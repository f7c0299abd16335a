"""The verb that makes one of our adapter folders of an adapter that plain peft saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lora_ft.cli.environment import cache_dir, quiet_libraries
from lora_ft.errors import InputError


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="The base that it was trained on: a hub id, or a folder.")
@click.option("--task", required=True, help="What it does; lora-ft tasks lists all.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The new adapter folder.")
@click.option("--labels", help="All labels in the order of the head's rows: a,b,c, or a file with one a line.")
@click.option("--problem-type", help="Where the task has several: single_label_classification, regression, ...")
@click.option("--data", type=click.Path(path_type=Path), help="Rows with labels to measure it on.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="processor.max_length=256, and the like.")
@click.option("--revision", help="Commit of a base on the hub; else the one that the adapter names.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Type of the base's weights.")
@click.option("--untrained", is_flag=True, help="Adopt an adapter that changes nothing, too.")
@click.option("--overwrite", is_flag=True, help="Replace the adapter that is already in the output folder.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", help="cpu, cuda, mps; the best there is by default.")
@click.option("--offline", is_flag=True, help="Never ask a hub.")
@click.pass_context
def adopt(
    context: click.Context,
    /,
    adapter: Path,
    output: Path,
    data: Path | None,
    overwrite: bool,
    batch_size: int,
    device: str | None,
    **said: Any,
) -> None:
    """Make an adapter folder of ours of ADAPTER, which plain peft saved; ADAPTER stays as it is."""
    _refuse_places([adapter, Path(said["base"])], output, data, overwrite=overwrite)
    offline = said.pop("offline") or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    quiet_libraries(context.obj["debug"], offline=offline)
    from lora_ft.assemble.adoption import Wishes, plan_adoption

    labels = read_labels(said.pop("labels"))
    plan = plan_adoption(adapter, Wishes(**said, labels=labels, offline=offline))
    for note in plan.notes:
        click.echo(f"{adapter}: {note}", err=True)
    from lora_ft.assemble.adopted import measure, open_foreign, write_adopted

    opened = open_foreign(plan, device=device, cache_dir=cache_dir())
    measured = None
    if data is not None:
        from lora_ft.assemble.recorded import RecordedColumns
        from lora_ft.evaluate.compare import rows_of_file

        columns = {key: tuple(one) if isinstance(one, list) else one for key, one in _columns(plan.dataset).items()}
        recorded = RecordedColumns(
            columns,
            plan.dataset.get("label_delimiter"),
            plan.dataset.get("sample_by") or "line",
            Path(plan.dataset["media_dir"]) if plan.dataset.get("media_dir") else None,
        )
        measured = measure(opened, rows_of_file(opened, data, recorded), file=data, batch_size=batch_size)
    manifest = write_adopted(output, opened, plan, measured=measured, overwrite=overwrite)
    click.echo(f"{output}: adopted")
    click.echo(f"  base    {manifest.base.name}: from now on no other one is accepted; whether it was trained on it,")
    click.echo("          nobody can tell")
    click.echo(f"  tensors {len(manifest.tensors)}, all loaded bit by bit")
    click.echo(f"  labels  {', '.join(manifest.labels) or 'none'}")
    click.echo(f"  probe   {len(manifest.probe.logits)} rows")
    shown = ", ".join(f"{name} {value:.4f}" for name, value in measured.metrics.items()) if measured else "unknown"
    click.echo(f"  metrics {shown}{f' ({measured.rows} rows of {measured.file})' if measured else ''}")


def read_labels(given: str | None) -> tuple[str, ...] | None:
    """The labels of `--labels`: of a file one a line, else between commas.

    Args:
        given: What the user wrote, or None.

    Raises:
        InputError: The file is not UTF-8, or holds nothing.
    """
    if given is None:
        return None
    parts = given.split(",")
    if Path(given).is_file():
        try:
            parts = Path(given).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"--labels {given}: not UTF-8. Expected a text file with one label a line") from error
        parts = [part for part in parts if part.strip()]
    labels = tuple(part.strip() for part in parts)
    if not any(labels):
        raise InputError(f"--labels {given}: there is no label. Expected a,b,c or a file with one label a line")
    return labels


def _columns(dataset: Any) -> dict[str, Any]:
    """The columns that `--set dataset.columns.text=review` names."""
    return dict(dataset.get("columns") or {})


def _refuse_places(read: Sequence[Path], output: Path, data: Path | None, *, overwrite: bool) -> None:
    """Refuses an output that may not be written, or lies in or around what is read, and rows that are not there."""
    from lora_ft.adapters.export import check_apart
    from lora_ft.adapters.target import check_target

    for place in (*read, *([data] if data is not None else [])):
        if place.exists():
            check_apart(output, place)
    if data is not None and not data.is_file():
        raise InputError(f"--data {data}: there is no such file. Expected rows with labels (.csv, .jsonl, ...)")
    check_target(output, overwrite=overwrite, option="--output")
