"""What is compared with what: each contender is a command that prints one line of JSON."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lean.decoder import write_completions, write_decoder, write_recipe
from benchmarks.real_data import packaged_base
from benchmarks.reviews import write_domain

NOT_EVALUATED = (
    "training_args.eval_strategy=no",
    "training_args.save_strategy=no",
    "training_args.load_best_model_at_end=false",
)
BF16 = "a CPU without bf16 imitates it; --full runs it"
VOCABULARIES = {"decoder_49k": 49_152, "decoder_152k": 152_064}


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        rows: Of the reviews to train on, the first so many; None: all.
        epochs: Of the reviews.
        rows_of_top: The same for adapters in the top layers, which take five epochs.
        rounds: How often each contender runs, in turn.
        steps: Of the decoders, by scenario.
        evaluated: Whether dev is measured and a checkpoint saved after each epoch, within the time, in all of them.
        all_contenders: Whether those run too that are slow for a reason that is named.
    """

    rows: int | None
    epochs: int
    rows_of_top: int | None
    rounds: int
    steps: Mapping[str, int]
    evaluated: bool
    all_contenders: bool


QUICK = Size(192, 1, 64, 1, {"decoder_49k": 5, "decoder_152k": 3}, evaluated=False, all_contenders=False)
FULL = Size(None, 3, None, 3, {"decoder_49k": 20, "decoder_152k": 10}, evaluated=True, all_contenders=True)


@dataclass(frozen=True)
class Scenario:
    """Contenders that run in turn.

    Attributes:
        title: Of its table and plot.
        commands: Arguments of `python -m`, by contender; ours are those whose name begins with lora_ft.
        quality: What stands beside the time.
        ratio: What the plot and the ratios compare, and whether more of it is better.
        rounds: How often.
        skipped: Contenders that do not run here, with the reason.
    """

    title: str
    commands: Mapping[str, list[str]]
    quality: str
    ratio: str
    rounds: int
    skipped: Mapping[str, str]


def first_rows(file: Path, rows: int | None) -> Path:
    """The first so many rows of a CSV, in a file beside it; the file itself for None."""
    if rows is None:
        return file
    target = file.with_name(f"{file.stem}-{rows}.csv")
    with file.open(encoding="utf-8", newline="") as source, target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows(row for row, _ in zip(csv.reader(source), range(rows + 1), strict=False))
    return target


def books(size: Size, folder: Path) -> Scenario:
    """Reviews of books at 256 tokens, MiniLM, r 8 on all linear layers."""
    files, base = reviews(size.rows, folder), ["--base", packaged_base()]
    evaluated, never = (["--evaluate"], ()) if size.evaluated else ([], NOT_EVALUATED)
    usual = ["benchmarks.usual_script", *files, *base, "--epochs", str(size.epochs), *evaluated, "--count-after", "0"]
    ours = ["benchmarks.our_run", *files, *base, "--count-after", "0", *never]
    ours.append(f"training_args.num_train_epochs={size.epochs}")
    lean = ["--lean-settings", "--lora-dropout"]
    commands = {
        "usual script": [*usual, "--lora-dropout", "0.1"],
        "usual, lean settings": [*usual, *lean, "0.1"],
        "usual, lean, no lora_dropout": [*usual, *lean, "0"],
        "lora_ft, lora_dropout 0.1": [*ours, "--output", str(folder / "dropout"), "peft_config.lora_dropout=0.1"],
        "lora_ft": [*ours, "--output", str(folder / "plain")],
    }
    skipped = {}
    if size.all_contenders:
        commands["usual script, bf16"] = [*usual, "--lora-dropout", "0.1", "--bf16"]
    else:
        skipped["usual script, bf16"] = BF16
    title = f"books, MiniLM, {size.epochs} epoch(s) of {size.rows or 'all'} rows"
    return Scenario(title, commands, "dev_accuracy", "train_s", size.rounds, skipped)


def top_layers(size: Size, folder: Path) -> Scenario:
    """The same with adapters in the top 2 of 6 layers, 5 epochs."""
    files, base = reviews(size.rows_of_top, folder), ["--base", packaged_base()]
    evaluated, never = (["--evaluate"], ()) if size.evaluated else ([], NOT_EVALUATED)
    ours = ["benchmarks.our_run", *files, *base, *never]
    ours += ["training_args.num_train_epochs=5"]
    top = "peft_config.layers_to_transform=[4,5]"
    commands = {
        "usual script": ["benchmarks.usual_script", *files, *base, "--epochs", "5", *evaluated],
        "lora_ft, all layers": [*ours, "--output", str(folder / "all")],
        "lora_ft, top 2 layers": [*ours, "--output", str(folder / "top"), top],
    }
    title = f"books, MiniLM, adapters in the top 2 of 6 layers, 5 epochs of {size.rows_of_top or 'all'} rows"
    return Scenario(title, commands, "dev_accuracy", "train_s", size.rounds, {})


def reviews(rows: int | None, folder: Path) -> list[str]:
    """The files of the books domain, `rows` of them to train on."""
    files = write_domain("books", folder)
    return [str(first_rows(files["train"], rows)), str(files["dev"])]


def decoder(name: str, size: Size, folder: Path) -> Scenario:
    """SmolLM2-135M's shape in 4 layers, 512 tokens a row, 4 rows a batch, 30 % labels."""
    vocabulary, steps = VOCABULARIES[name], size.steps[name]
    base = write_decoder(folder / "base", vocabulary=vocabulary)
    rows = write_completions(folder / "rows.jsonl", rows=4 * steps, vocabulary=vocabulary)
    recipe = write_recipe(folder / "ours", base=base, rows=rows, batch_size=4)
    count = ["--count-after", "0"]
    given = [str(rows), "--base", str(base), *count]
    commands = {
        "TRL SFTTrainer": ["benchmarks.lean.usual_decoder", "trl", *given, "--fp32"],
        "usual script": ["benchmarks.lean.usual_decoder", "trainer", *given, "--fp32"],
        "lora_ft": ["benchmarks.lean.ours", str(recipe), *count],
    }
    skipped = {}
    if importlib.util.find_spec("llamafactory") is None:
        skipped["LLaMA-Factory"] = "it is not installed; benchmarks/lean/llama_factory.py says how"
    else:
        commands["LLaMA-Factory"] = ["benchmarks.lean.llama_factory", *given]
    for contender, script in {"TRL SFTTrainer, bf16": "trl", "usual script, bf16": "trainer"}.items():
        if size.all_contenders:
            commands[contender] = ["benchmarks.lean.usual_decoder", script, *given]
        else:
            skipped[contender] = BF16
    title = f"SmolLM2-135M's shape, 4 layers, vocabulary {vocabulary:,}, {steps} steps of 4 x 512 tokens"
    return Scenario(title, commands, "last_loss", "tokens_per_s", size.rounds, skipped)


NAMES = ("books", "top_layers", *VOCABULARIES)


def scenario(name: str, size: Size, folder: Path) -> Scenario:
    """One of `NAMES`, its files in a folder.

    Raises:
        Absent: Its rows or its base are not on this machine.
    """
    make = {"books": books, "top_layers": top_layers}.get(name)
    return make(size, folder) if make is not None else decoder(name, size, folder)


def encoder_runs(folder: Path, *, full: bool) -> dict[str, list[str]]:
    """What one process measures by itself of MiniLM, see `runs_of`.

    Raises:
        Absent: The reviews or MiniLM are not on this machine.
    """
    recipe = write_encoder_recipe(folder, reviews(None, folder))
    return runs_of("MiniLM", recipe, steps=50 if full else 20)


def decoder_runs(folder: Path, *, full: bool) -> dict[str, list[str]]:
    """What one process measures by itself of a decoder, see `runs_of`."""
    base = write_decoder(folder / "base", vocabulary=VOCABULARIES["decoder_49k"])
    rows = write_completions(folder / "rows.jsonl", rows=8, vocabulary=VOCABULARIES["decoder_49k"])
    recipe = write_recipe(folder, base=base, rows=rows, batch_size=2)
    return runs_of("SmolLM2's shape", recipe, steps=50 if full else 4)


def runs_of(base: str, recipe: Path, *, steps: int) -> dict[str, list[str]]:
    """What settings cost in a step, and whether the curve of a few steps is plain peft's."""
    nf4 = "quantization_config={load_in_4bit: true, bnb_4bit_quant_type: nf4}"
    every_time = "lean.dequantized_gb=0"
    native, dropout = "peft_config.lora_dropout=0.0", "peft_config.lora_dropout=0.1"
    against = ["benchmarks.lean.step_cost", str(recipe), "--first", native, "--second"]
    return {
        f"lora_dropout 0.1, {base}": [*against, dropout],
        f"NF4, {base}": [*against, nf4],
        f"NF4, nothing kept dequantised, {base}": [*against, nf4, every_time],
        f"curve, {base}": ["benchmarks.lean.same_curve", str(recipe), "--steps", str(steps)],
    }


ALONE = {"MiniLM alone": encoder_runs, "a decoder alone": decoder_runs}
"""What makes the commands of runs that one process measures by itself."""


def write_encoder_recipe(folder: Path, files: list[str]) -> Path:
    """Reviews at 4 x 256 tokens a step, padded to exactly that; JSON is YAML."""
    content = {
        "task": "text-classification",
        "offline": True,
        "model": {"pretrained_model_name_or_path": packaged_base()},
        "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": files[0], "validation": files[1]}},
        "processor": {"max_length": 256, "padding": "max_length"},
        "training_args": {"output_dir": str(folder / "run"), "per_device_train_batch_size": 4},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file
