"""The command line: the only room that reads argv and the environment, prints and exits; one function a verb."""

from __future__ import annotations

import os
import sys

import click

from lora_ft import __version__
from lora_ft.cli import adapters, adopt, data, export, launch, merge, preview, recipes
from lora_ft.errors import InputError, LoraFtError, RecipeError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lora-ft")
@click.option("--debug", is_flag=True, help="Show tracebacks, and the libraries' own warnings.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train, check, compare and use LoRA and QLoRA adapters, one YAML recipe each."""
    context.obj = {"debug": debug}


for verb in (
    recipes.train,
    launch.launch,
    recipes.check,
    data.data,
    adapters.evaluate,
    adapters.predict,
    adapters.verify,
    adapters.show,
    adapters.list_adapters,
    adopt.adopt,
    export.export,
    merge.merge,
    recipes.init,
    recipes.schema,
    recipes.tasks,
):
    cli.add_command(verb)
data.data.add_command(preview.preview_data)


def main() -> None:
    """Runs the command line; every error ends with one message and its exit code."""
    debug = "--debug" in sys.argv
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(InputError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except LoraFtError as error:
        if debug:
            raise
        faults = len(error.faults) if isinstance(error, RecipeError) else 0
        heading = f"{faults} faults:\n" if faults > 1 else ""
        click.echo(by_process(f"{heading}{error}", error), err=True)
        sys.exit(error.exit_code)


def by_process(told: str, error: LoraFtError) -> str:
    """What a process says of an error: one of several says all of it, the others a line."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return told
    if error.told_by is not None:
        told = f"ended as well: see rank {error.told_by}"
    elif isinstance(error, InputError) and os.environ.get("LOCAL_RANK", "0") != "0":
        told = told.partition("\n")[0]  # the first process of the machine read the same files
    return f"[rank {os.environ['RANK']}] {told}"
