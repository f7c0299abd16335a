"""The verb `data preview`: what the model really gets of a few rows, before and after they are varied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_ft.cli.environment import quiet_libraries, read_checked
from lora_ft.cli.output import write_text
from lora_ft.cli.refusals import refuse_place

if TYPE_CHECKING:
    from lora_ft.assemble.previewed import Given, Preview, Stage

LONGEST = 700
"""Characters of one text on the terminal; the page has all of them."""

COLOURS = {"new": "green", "gone": "red"}


@click.command("preview")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="How many rows to show.")
@click.option("--split", default="train", show_default=True, help="Of which split; only train is varied.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page with pictures and sounds instead.")
@click.pass_context
def preview_data(
    context: click.Context, recipe: Path, overrides: tuple[str, ...], rows: int, split: str, page: Path | None
) -> None:
    """Show what the model gets of some rows of RECIPE: in the file, prepared, varied, as tokens or pixels."""
    checked = read_checked(recipe, overrides)
    refuse_place("--html", page)
    quiet_libraries(context.obj["debug"], offline=checked.offline)
    from lora_ft.assemble.previewed import preview

    found = preview(checked, split=split, count=rows)
    if page is not None:
        from lora_ft.evaluate.preview_page import preview_page

        write_text(page, preview_page(found))
        click.echo(f"{len(found.shown)} of {found.rows} {split} rows: {page}")
        return
    _print(found)


def _print(found: Preview) -> None:
    click.echo(f"{found.recipe}: {found.task}, {len(found.shown)} of {found.rows} {found.split} rows")
    for note in found.notes:
        click.echo(note)
    for row in found.shown:
        click.secho(f"\n{row.where}", bold=True)
        before: dict[str, str] = {}
        for stage in row.stages:
            _print_stage(stage, before)
            if not stage.name.startswith("variant"):
                before = dict(stage.columns) or before
    if found.lazy:
        click.echo("\nto see or hear it: --html FILE")


def _print_stage(stage: Stage, before: dict[str, str]) -> None:
    """A stage: what changed since the one before it, and what the model gets."""
    click.secho(f"  {stage.name}", fg="cyan")
    if stage.media is not None:
        click.echo(f"    {stage.media_line()}")
    for name, value in stage.columns.items():
        if before.get(name) != value:
            click.echo(f"    {name}: {_changed(before.get(name), value)}")
    for given in stage.given:
        click.echo(f"    the model gets: {_one_line(given.shown)}{_cut(given)}")


def _changed(before: str | None, value: str) -> str:
    """A text with what came in green and, in red and braces, what went."""
    if before is None:
        return _one_line(value)
    from lora_ft.assemble.previewed import changes

    pieces = []
    for kind, text in changes(before, value):
        shown = f"{{-{text}-}}" if kind == "gone" else f"{{+{text}+}}" if kind == "new" else text
        pieces.append((kind, shown))
    room, told = LONGEST, []
    for kind, shown in pieces:
        told.append(click.style(_one_line(shown[:room]), fg=COLOURS.get(kind)))
        room -= len(shown)
        if room <= 0:
            return "".join(told) + " ..."
    return "".join(told)


def _cut(given: Given) -> str:
    """How many tokens, and what was cut off."""
    if given.tokens is None:
        return ""
    cut = f"; cut off: {_one_line(given.cut)}" if given.cut else "; cut" if given.truncated else ""
    return click.style(f" ({given.tokens} tokens{cut})", dim=True)


def _one_line(text: str) -> str:
    """A text on one line, long ones shortened."""
    flat = text.replace("\n", "\\n").replace("\r", "\\r")
    return flat if len(flat) <= LONGEST else f"{flat[:LONGEST]} ... ({len(flat) - LONGEST} more characters)"
