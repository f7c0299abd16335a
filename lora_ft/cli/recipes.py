"""The verbs around a recipe: train, check, init, schema, tasks."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_ft.cli.environment import (
    cache_dir,
    finished_already,
    log_to_stderr,
    needs_rows,
    quiet_libraries,
    read_checked,
    refuse_contradiction,
    refuse_lonely_task,
    shared_dir,
    task_facts,
)
from lora_ft.cli.output import print_panel, print_table

if TYPE_CHECKING:
    from lora_ft.tasks.base import Task


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
@click.option("--overwrite", is_flag=True, help="Replace the adapter that is already in the output folder.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint of the output folder.")
@click.option("--auto-resume", is_flag=True, help="The same where there is one; start, or be done, where there is not.")
@click.option("--modules", is_flag=True, help="Also list the modules that train.")
@click.option("--no-feature-cache", is_flag=True, help="Keep no tokens of large data sets for the next run.")
@click.pass_context
def train(
    context: click.Context,
    recipe: Path,
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    auto_resume: bool,
    modules: bool,
    no_feature_cache: bool,
) -> None:
    """Train the adapter of RECIPE and write its folder."""
    checked = read_checked(recipe, overrides)
    refuse_lonely_task()
    refuse_contradiction("train", overwrite=overwrite, resume=resume, auto_resume=auto_resume)
    if finished_already(checked, overwrite=overwrite, resume=resume, auto_resume=auto_resume):
        return
    quiet_libraries(context.obj["debug"], offline=checked.offline)
    import psutil

    from lora_ft import screen
    from lora_ft.tasks.base import load_task
    from lora_ft.train.launcher import asked_world_size
    from lora_ft.train.run import RunOptions
    from lora_ft.train.run import train as run_training

    main_process = os.environ.get("RANK", "0") == "0"
    log_to_stderr(logging.INFO if main_process else logging.ERROR)
    parent = psutil.Process().parent()
    result = run_training(
        checked,
        RunOptions(
            overwrite=overwrite,
            resume=resume,
            auto_resume=auto_resume,
            asked_world_size=asked_world_size(parent.cmdline() if parent else [], told=os.environ.get("WORLD_SIZE")),
            shared_dir=shared_dir(parent),
            cache_dir=cache_dir(),
            command=shlex.join(["lora-ft", "train", str(recipe), *overrides]),
            list_modules=modules,
            keep_features=not no_feature_cache,
        ),
    )
    if not main_process:
        return
    print_table(screen.result_table(result))
    if result.learned is False and "learned" not in checked.checks_off:
        print_panel(screen.not_learned(result))
    shown = os.path.relpath(result.folder)
    needed = result.manifest.run["columns"] if result.manifest is not None else ()
    predict = predict_command(shown, load_task(checked.task), needed=needed, example=result.example)
    click.echo(f"adapter: {shown}\nnext:    lora-ft evaluate {shlex.quote(shown)}\n         {predict}")


def predict_command(adapter: str, task: Task, *, needed: Sequence[str], example: str) -> str:
    """A command that asks a new adapter something; it works as it stands.

    Args:
        adapter: The adapter folder.
        task: Its task.
        needed: The input columns that it was trained with.
        example: A word for the command line, where one input is enough.
    """
    folder = shlex.quote(adapter)
    if not needs_rows(task, needed):
        return f"lora-ft predict {folder} {shlex.quote(example)}"
    values = {
        "texts": ["a", "new", "text"], "messages": [{"role": "user", "content": "a new text"}],
        "image": "photo.jpg", "audio": "sound.wav",
    }  # fmt: skip
    row = {one.name: values.get(one.kind, f"a new {one.name}") for one in task.inputs() if one.name in needed}
    return f"echo {shlex.quote(json.dumps(row))} | lora-ft predict {folder} --input -"


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
def check(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Report every fault of RECIPE at once, without loading anything heavy."""
    checked = read_checked(recipe, overrides)
    click.echo(f"{recipe}: no fault; {checked.task} on {checked.model.pretrained_model_name_or_path}")


@click.command()
@click.argument("task")
def init(task: str) -> None:
    """Print a commented recipe for TASK to start from."""
    from lora_ft.recipe.template import template
    from lora_ft.tasks.base import load_task

    click.echo(template(load_task(task).facts()), nl=False)


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from lora_ft.recipe.json_schema import json_schema

    click.echo(json.dumps(json_schema(task_facts()), indent=2))


@click.command()
def tasks() -> None:
    """List the tasks with their columns."""
    from lora_ft.tasks.base import load_task, task_names

    for name in task_names():
        task = load_task(name)
        click.echo(f"{name}: {task.summary}")
        for column in task.columns:
            sets = [kind for kind, names in task.column_sets.items() if column.name in names]
            need = f" ({' or '.join(sets)})" if sets else "" if column.required else " (optional)"
            click.echo(f"  {column.name:<12} {column.help}{need}")
