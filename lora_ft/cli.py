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

    from lora_ft.assemble.saved import OpenOptions
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
    console.print(f"adapter: {shown}\nnext:    lora-ft evaluate {shown}\n         lora-ft predict {shown} 'a new text'")


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
    options = _open_options(where)
    _quiet_libraries(context.obj["debug"], offline=options.offline)
    from lora_ft import screen
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.evaluate.compare import compare, rows_of_file, rows_of_recipe
    from lora_ft.metrics.intervals import RESAMPLES

    opened = open_adapter(adapter, options)
    if data is None:
        name, rows = rows_of_recipe(opened, _recorded_recipe(opened.folder), split)
    else:
        columns, delimiter = _recorded_columns(opened.folder)
        name, rows = (
            str(data),
            rows_of_file(opened, data, columns=columns, label_delimiter=delimiter),
        )
    with _bar(len(rows), "evaluate") as advance, _bar(2 * RESAMPLES, "intervals") as advance_draw:
        comparison = compare(
            opened, rows, split=name, batch_size=batch_size, advance=advance, advance_draw=advance_draw
        )
    if predictions is not None:
        lines = (
            {
                **{key: value for key, value in row.items() if key != "label"},
                "reference": row["label"],
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
@click.argument("texts", nargs=-1)
@click.option(
    "--input",
    "source",
    help="A file (.txt .csv .tsv .jsonl .json .parquet), or - for one text a line (pairs: one JSON object).",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON lines here instead of printing them.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@_opening
@click.pass_context
def predict(
    context: click.Context,
    /,
    adapter: Path,
    texts: tuple[str, ...],
    source: str | None,
    output: Path | None,
    batch_size: int,
    **where: Any,
) -> None:
    """Answer TEXTS, a file or standard input with ADAPTER: one JSON object a row, in order."""
    if bool(texts) == bool(source):
        raise InputError("predict: give either texts or --input (a file, or - for standard input)")
    if len(texts) == 1 and Path(texts[0]).is_file():
        raise InputError(f"predict: {texts[0]} is a file, not a text. To answer its rows: --input {texts[0]}")
    options = _open_options(where)
    _quiet_libraries(context.obj["debug"], offline=options.offline)
    from lora_ft.assemble.saved import open_adapter
    from lora_ft.data.sources import load_file
    from lora_ft.serve.predict import json_rows, text_rows
    from lora_ft.serve.predict import predict as answer

    opened = open_adapter(adapter, options)
    window, total = 8, None
    rows: Iterable[Any]
    inputs = opened.manifest.run["columns"]
    if texts and len(inputs) > 1:
        raise InputError(
            f"predict: this adapter answers rows of {' and '.join(inputs)}, not texts alone. Give --input FILE with "
            "these columns, or --input - with a JSON object a line"
        )
    if texts:
        rows, total = text_rows(texts), len(texts)
    elif source == "-":
        rows = text_rows(sys.stdin) if inputs == ["text"] else json_rows(sys.stdin, wanted=inputs)
        window = 1  # a stream is answered batch by batch as it comes
    else:
        columns, delimiter = _recorded_columns(opened.folder)
        wanted = [column for column in opened.task.columns if column.kind != "label"]
        table = load_file(Path(source or ""), columns=columns, wanted=wanted, label_delimiter=delimiter)
        rows, total = table, len(table)
    with _bar(total, "predict", hidden=output is None and sys.stdout.isatty()) as advance:
        _write_lines(answer(opened, rows, batch_size=batch_size, window=window, advance=advance), output)


@cli.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@_opening
@click.pass_context
def verify(context: click.Context, /, adapter: Path, **where: Any) -> None:
    """Prove that ADAPTER is whole, belongs to its base, and answers as it did."""
    options = _open_options(where)
    _quiet_libraries(context.obj["debug"], offline=options.offline)
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
            need = "" if column.required else " (optional)"
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


def _recorded_recipe(adapter: Path) -> Recipe:
    """The rows of the recipe in an adapter folder; its data files must still be where they were.

    Where it was trained (device, base, output folder) does not matter for measuring and is not checked again.
    """
    from lora_ft.recipe.reader import read_document

    file = adapter / "recipe.yaml"
    seed = read_document(file).value["training_args"]["seed"]
    elsewhere = (
        f"training_args={{output_dir: {json.dumps(str(adapter.parent))}, seed: {seed}}}",
        "model={pretrained_model_name_or_path: not/loaded}",
        "quantization_config=null",
        "early_stopping=null",
    )
    try:
        return _read(file, elsewhere)
    except RecipeError as error:
        raise RecipeError([*error.faults, "The adapter itself is fine: give the rows with --data FILE"]) from error


def _recorded_columns(adapter: Path) -> tuple[Mapping[str, str | tuple[str, ...]], str | None]:
    """The column mapping and label delimiter with which an adapter was trained."""
    from lora_ft.recipe.reader import read_document

    section = read_document(adapter / "recipe.yaml").value["dataset"]
    columns = {
        name: tuple(column) if isinstance(column, list) else column
        for name, column in (section.get("columns") or {}).items()
    }
    return columns, section.get("label_delimiter")


def _open_options(where: dict[str, Any]) -> OpenOptions:
    from lora_ft.assemble.saved import OpenOptions

    offline = where.pop("offline") or os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    )
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
