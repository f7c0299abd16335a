"""The verbs around data: `data check`; `data preview` is in `preview.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_ft.cli.environment import quiet_libraries, read_checked, task_facts
from lora_ft.cli.output import print_table, progress_bar, write_text
from lora_ft.cli.refusals import refuse_place
from lora_ft.errors import InputError

LABEL_ERRORS = "probable-label-errors"

if TYPE_CHECKING:
    from lora_ft.recipe.schema import Recipe


@click.group()
def data() -> None:
    """Look at the rows of a recipe before time is spent on them."""


@data.command("check")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON, every row of every finding included.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Also write a page with plots.")
@click.option("--label-errors", is_flag=True, help="Also look for wrong labels; embeds every row by the base.")
@click.pass_context
def check_data(
    context: click.Context,
    recipe: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    page: Path | None,
    label_errors: bool,
) -> None:
    """Report what is wrong with the rows of RECIPE: duplicates, leakage, labels, encodings, lengths."""
    checked = read_checked(recipe, overrides)
    refuse_place("--html", page)
    if label_errors:
        _refuse_label_errors(checked)
    quiet_libraries(context.obj["debug"], offline=checked.offline)
    from lora_ft.assemble.examined import examine

    examination = examine(checked, watch=progress_bar)
    if label_errors:
        from lora_ft.assemble.suspected import with_label_errors

        examination = with_label_errors(examination, checked, watch=progress_bar)
    if page is not None:
        from lora_ft.evaluate.data_page import data_page

        write_text(page, data_page(examination))
    if as_json:
        click.echo(json.dumps(examination.as_json(), ensure_ascii=False, indent=2))
        return
    from lora_ft.cli.data_table import findings_table, splits_table

    for count in examination.prepared:
        click.echo(count.line())
    print_table(splits_table(examination))
    if examination.findings:
        print_table(findings_table(examination))
    else:
        click.echo("nothing is wrong")
    if examination.off:
        click.echo(f"turned off in the recipe: {', '.join(examination.off)}")
    click.echo(f"looked at in {examination.seconds:.1f} s" + (f"; page: {page}" if page is not None else ""))


def _refuse_label_errors(recipe: Recipe) -> None:
    """Refuses to look for wrong labels where there are none, before anything heavy is imported."""
    columns = task_facts()[recipe.task].columns
    if not any(column.kind == "label" for column in columns):
        raise InputError(f"data check: --label-errors: {recipe.task} has no column of labels. Leave it out")
    if LABEL_ERRORS in recipe.checks_off:
        raise InputError(
            f"data check: --label-errors: the recipe turns it off (checks.{LABEL_ERRORS}: false). Leave one of them out"
        )
