"""The command line: one function a verb; the only place that reads argv and the environment, prints and exits."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft import __version__
from lora_ft.errors import InputError, LoraFtError, RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from lora_ft.assemble.saved import OpenOptions, SavedAdapter
    from lora_ft.recipe.schema import Recipe, TaskFacts

INTERRUPTED = 130
QUANTIZATIONS = ("as-trained", "none", "nf4", "fp4", "int8")


def _opening(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of every verb that puts an adapter on its base."""
    options = (
        click.option("--base", help="Where the base is now, if not where the adapter says."),
        click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="as-trained", show_default=True),
        click.option("--device", help="cpu, cuda, mps; the best there is by default."),
        click.option("--offline", is_flag=True, help="Never ask a hub."),
        click.option("--trust-remote-code", is_flag=True, help="Run code from the base's repository."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lora-ft")
@click.option("--debug", is_flag=True, help="Show tracebacks, and the libraries' own warnings.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train, check, compare and use LoRA and QLoRA adapters, one YAML recipe each."""
    context.obj = {"debug": debug}


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
@click.option("--overwrite", is_flag=True, help="Replace the adapter that is already in the output folder.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the output folder.")
@click.option("--modules", is_flag=True, help="Also list the modules that train.")
@click.pass_context
def train(
    context: click.Context,
    recipe: Path,
    overrides: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    modules: bool,
) -> None:
    """Train the adapter of RECIPE and write its folder."""
    checked = _read(recipe, overrides)
    _quiet_libraries(context.obj["debug"], offline=checked.offline)
    import psutil

    from lora_ft import screen
    from lora_ft.tasks.base import load_task
    from lora_ft.train.launcher import asked_world_size
    from lora_ft.train.run import RunOptions
    from lora_ft.train.run import train as run_training

    main_process = os.environ.get("RANK", "0") == "0"
    _log_to_stderr(logging.INFO if main_process else logging.ERROR)
    parent = psutil.Process().parent()
    result = run_training(
        checked,
        RunOptions(
            overwrite=overwrite,
            resume=resume,
            asked_world_size=asked_world_size(parent.cmdline() if parent else []),
            cache_dir=_cache_dir(),
            command=shlex.join(["lora-ft", "train", str(recipe), *overrides]),
            list_modules=modules,
        ),
    )
    if not main_process:
        return
    console = _console()
    console.print(screen.result_table(result))
    if result.learned is False:
        console.print(screen.not_learned(result))
    shown = os.path.relpath(result.folder)
    example = {"image": "photo.jpg", "audio": "sound.wav"}.get(load_task(checked.task).argument, "'a new text'")
    console.print(f"adapter: {shown}\nnext:    lora-ft evaluate {shown}\n         lora-ft predict {shown} {example}")


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
def check(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Report every fault of RECIPE at once, without loading anything heavy."""
    checked = _read(recipe, overrides)
    click.echo(f"{recipe}: no fault; {checked.task} on {checked.model.pretrained_model_name_or_path}")


@cli.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Rows with labels; else the recipe's test split.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Which split of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Also write each row's prediction (JSON lines).")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_opening
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    adapter: Path,
    data: Path | None,
    split: str | None,
    as_json: bool,
    predictions: Path | None,
    batch_size: int,
    **where: Any,
) -> None:
    """Measure ADAPTER and its base side by side, with 95 % intervals."""
    _refuse_damaged(adapter)
    options = _open_options(where, debug=context.obj["debug"])
    from lora_ft import screen
    from lora_ft.assemble.recorded import recorded_columns, recorded_recipe
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.evaluate.compare import compare, rows_of_file, rows_of_recipe
    from lora_ft.metrics.intervals import RESAMPLES

    opened = open_adapter(adapter, options)
    if data is None:
        name, rows = rows_of_recipe(opened, recorded_recipe(opened.folder, tasks=_tasks()), split)
    else:
        name, rows = str(data), rows_of_file(opened, data, recorded_columns(opened.folder))
    with _bar(None, "evaluate") as advance, _bar(2 * RESAMPLES, "intervals") as advance_draw:
        comparison = compare(
            opened, rows, split=name, batch_size=batch_size, advance=advance, advance_draw=advance_draw
        )
    if predictions is not None:
        from lora_ft.serve.predict import shown

        inputs = {column.name for column in opened.task.inputs()}
        targets = {
            column.name: "reference" if column.kind == "label" else f"reference_{column.name}"
            for column in opened.task.columns
            if column.target
        }
        lines = (
            {
                **{
                    targets.get(key, key): shown(value) for key, value in row.items() if key in inputs or key in targets
                },
                **answer,
            }
            for row, answer in zip(rows, comparison.predictions, strict=True)
        )
        _write_lines(lines, predictions)
    if as_json:
        click.echo(json.dumps({"adapter_folder": str(opened.folder), **comparison.to_mapping()}, indent=2))
    else:
        _console().print(screen.comparison_table(comparison, opened.folder.parent.name))


@cli.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1)
@click.option(
    "--input",
    "source",
    help="A file (.txt .csv .tsv .jsonl .json .parquet), or - for one text a line (else: one JSON object a line).",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON lines here instead of printing them.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), help="Also draw the predictions into copies of the images."
)
@click.option("--stream", is_flag=True, help="Print generated text as it comes.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_opening
@click.pass_context
def predict(
    context: click.Context,
    /,
    adapter: Path,
    inputs: tuple[str, ...],
    source: str | None,
    output: Path | None,
    pictures: Path | None,
    stream: bool,
    batch_size: int,
    **where: Any,
) -> None:
    """Answer INPUTS (texts; files or folders of images or sounds), a file or standard input: one JSON object a row."""
    if bool(inputs) == bool(source):
        raise InputError("predict: give either inputs or --input (a file, or - for standard input)")
    if stream and (output is not None or pictures is not None):
        raise InputError("predict: --stream prints text as it comes. Leave out --output and --pictures, or --stream")
    if source not in (None, "-") and not Path(source or "").is_file():
        raise InputError(f"predict: --input {source}: there is no such file")
    _refuse_damaged(adapter)
    options = _open_options(where, debug=context.obj["debug"])
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.serve.predict import drawn, streamed
    from lora_ft.serve.predict import predict as answer

    opened = open_adapter(adapter, options)
    rows, total = _rows_to_predict(opened, inputs, source)
    window = 1 if source == "-" else 8  # a stream is answered batch by batch as it comes
    if stream:
        for piece in streamed(opened, rows):
            click.echo(piece, nl=False)
        return
    with _bar(total, "predict", hidden=output is None and sys.stdout.isatty()) as advance:
        how: dict[str, Any] = {"batch_size": batch_size, "window": window, "advance": advance}
        answers = answer(opened, rows, **how) if pictures is None else drawn(opened, rows, pictures, **how)
        _write_lines(answers, output)


def _rows_to_predict(
    opened: SavedAdapter, words: tuple[str, ...], source: str | None
) -> tuple[Iterable[Mapping[str, Any]], int | None]:
    """The rows that the command line names, and their number if it is known."""
    from lora_ft.assemble.recorded import recorded_columns
    from lora_ft.data.sources import load_file
    from lora_ft.serve.predict import argument_rows, is_file, json_rows, text_rows

    task, needed = opened.task, opened.manifest.run["columns"]
    alone = next((column for column in task.inputs() if column.name == task.argument), None)
    if words:
        if alone is None or (len(needed) > 1 and alone.name in needed):
            raise InputError(
                f"predict: this adapter answers rows of {' and '.join(needed)}, not one input alone. Give --input FILE "
                "with these columns, or --input - with a JSON object a line"
            )
        if alone.kind == "text" and len(words) == 1 and is_file(Path(words[0])):
            raise InputError(f"predict: {words[0]} is a file, not a text. To answer its rows: --input {words[0]}")
        rows = list(argument_rows(words, alone))
        return rows, len(rows)
    if source == "-":
        if alone is not None and alone.kind == "text" and set(needed) <= {alone.name}:
            return text_rows(sys.stdin, column=alone.name), None
        return json_rows(sys.stdin, columns=task.inputs(), needed=needed or [task.argument]), None
    recorded = recorded_columns(opened.folder)
    table = load_file(
        Path(source or ""), columns=recorded.columns, wanted=task.inputs(), column_sets=task.column_sets,
        label_delimiter=recorded.label_delimiter, sample_by=recorded.sample_by, media_dir=recorded.media_dir,
    )  # fmt: skip
    return table, len(table)


@cli.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@_opening
@click.pass_context
def verify(context: click.Context, /, adapter: Path, **where: Any) -> None:
    """Prove that ADAPTER is whole, belongs to its base, and answers as it did."""
    _refuse_damaged(adapter)
    options = _open_options(where, debug=context.obj["debug"])
    from lora_ft.assemble.saved import open_adapter

    opened = open_adapter(adapter, options)
    manifest = opened.manifest
    click.echo(f"{opened.folder}: verified")
    click.echo(f"  files   {len(manifest.files)} with the recorded size and checksum")
    click.echo(f"  base    {manifest.base.name}: weights, config and tokenizer as in training")
    click.echo(f"  tensors {len(manifest.tensors)}, all loaded bit by bit")
    click.echo(f"  probe   {len(manifest.probe.logits)} rows answered as after training")


@cli.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def show(adapter: Path, as_json: bool) -> None:
    """Say what ADAPTER is: task, labels, base, size, metrics, versions."""
    from lora_ft import screen
    from lora_ft.adapters.verify import resolve_adapter, verify_files

    folder = resolve_adapter(adapter)
    manifest = verify_files(folder)
    if as_json:
        click.echo((folder / "manifest.json").read_text(encoding="utf-8"))
    else:
        _console().print(screen.manifest_table(manifest, folder))


@cli.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def list_adapters(folder: Path) -> None:
    """List the adapters below FOLDER."""
    from lora_ft import screen
    from lora_ft.adapters.manifest import Manifest
    from lora_ft.adapters.verify import find_adapters, read_manifest

    found: list[tuple[Path, Manifest | str]] = []
    for adapter in find_adapters(folder):
        try:
            found.append((adapter, read_manifest(adapter)))
        except LoraFtError as error:
            found.append((adapter, str(error)))
    if not found:
        raise InputError(f"{folder}: there is no adapter below this folder (a folder with a manifest.json)")
    _console().print(screen.adapters_table(found))


@cli.command()
@click.argument("task")
def init(task: str) -> None:
    """Print a commented recipe for TASK to start from."""
    from lora_ft.recipe.template import template
    from lora_ft.tasks.base import load_task

    click.echo(template(load_task(task).facts()), nl=False)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from lora_ft.recipe.json_schema import json_schema

    click.echo(json.dumps(json_schema(_tasks()), indent=2))


@cli.command()
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
        process = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        click.echo(f"{process}{heading}{error}", err=True)
        sys.exit(error.exit_code)


def _tasks() -> dict[str, TaskFacts]:
    from lora_ft.tasks.base import load_task, task_names

    return {name: load_task(name).facts() for name in task_names()}


def _read(recipe: Path, overrides: Iterable[str]) -> Recipe:
    from lora_ft.recipe.read import read_recipe

    return read_recipe(recipe, overrides=tuple(overrides), tasks=_tasks())


def _refuse_damaged(adapter: Path) -> None:
    """Refuses an adapter folder that is absent or not whole, in less time than torch takes to import."""
    from lora_ft.adapters.verify import resolve_adapter, verify_files

    verify_files(resolve_adapter(adapter))


def _open_options(where: dict[str, Any], *, debug: bool) -> OpenOptions:
    """How an adapter is to be opened; sets up the libraries first, because this imports them."""
    said = os.environ.get("HF_HUB_OFFLINE", "").upper()
    offline = where.pop("offline") or said in ("1", "ON", "YES", "TRUE")
    _quiet_libraries(debug, offline=offline)
    from lora_ft.assemble.saved import OpenOptions

    return OpenOptions(**where, offline=offline, cache_dir=_cache_dir())


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_ft"


def _quiet_libraries(debug: bool, *, offline: bool) -> None:
    """Sets what the libraries read from the environment; must run before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DATASETS_VERBOSITY", "error")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line a layer and forward in 8 bits on a CPU
        import warnings

        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("lora_ft")
    ours.addHandler(handler)
    ours.setLevel(level)


def _console() -> Console:
    from rich.console import Console

    return Console()


@contextmanager
def _bar(total: int | None, what: str, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="row", disable=hidden or None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


def _write_lines(rows: Iterable[Mapping[str, Any]], output: Path | None) -> None:
    """Writes JSON lines to a file, whole or not at all, or to standard output as they come."""
    if output is None:
        for row in rows:
            click.echo(json.dumps(dict(row), ensure_ascii=False))
        return
    temporary = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
        temporary.replace(output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
