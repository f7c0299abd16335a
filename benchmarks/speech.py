"""Speech on yesno and the Free Spoken Digits: loaders, a few rows learned by heart, digits told apart.

    python -m benchmarks.speech [section.key=value ...]

No pretrained speech base is to be had here, so all bases are tiny, made from their configs with random weights, and
stay frozen: the numbers say that the mechanics are right, not how good a real base is. Overrides go to all runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from benchmarks.real_data import real_data
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.fresh import build
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.cli.environment import read_checked
from lora_ft.recipe.schema import Recipe
from lora_ft.train.arguments import planned_steps, training_arguments
from lora_ft.train.measure import measure, splits_to_measure
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base

ASR, CLASSES = "automatic-speech-recognition", "audio-classification"
Row = Mapping[str, str]


@dataclass(frozen=True)
class Corpus:
    """Sounds and their table, `labels.csv`."""

    folder: Path
    rows: Sequence[Row]


@dataclass(frozen=True)
class Run:
    """One line of the table: what is learned from which rows by which base."""

    name: str
    task: str
    base: str
    corpus: Corpus
    columns: Mapping[str, str]
    train: Sequence[Row]
    validation: Sequence[Row]
    metrics: tuple[str, ...]
    training_args: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)


def read_corpus(folder: Path) -> Corpus:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        return Corpus(folder, list(csv.DictReader(stream)))


def unpacked(folder: Path, to: Path) -> Corpus:
    """FSDD, whose sounds are in an archive."""
    with tarfile.open(folder / "wav.tar.gz") as archive:
        archive.extractall(to, filter="data")
    return Corpus(to, read_corpus(folder).rows)


def write_table(file: Path, rows: Sequence[Row]) -> str:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


def recipe_of(run: Run, folder: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run; JSON is YAML."""
    folder.mkdir(parents=True)
    content = {
        "task": run.task,
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(make_base(folder / "base", run.base, hidden=64))},
        "peft_config": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "dataset": {
            "data_files": {
                "train": write_table(folder / "train.csv", run.train),
                "validation": write_table(folder / "validation.csv", run.validation),
            },
            "columns": {"audio": "path", **run.columns},
            "media_dir": str(run.corpus.folder),
        },
        "training_args": {
            "output_dir": str(folder / "run"), "disable_tqdm": True, "report_to": "none", "eval_strategy": "no",
            "save_strategy": "no", **run.training_args,
        },
        **run.more,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return read_checked(file, overrides)


def loss_before(recipe: Recipe) -> float:
    """The loss of the untrained adapter on the validation rows."""
    prepared = prepare(recipe)
    arguments, precision = training_arguments(prepared)
    fresh = build(prepared, precision=precision, total_steps=planned_steps(arguments, len(prepared.features["train"])))
    measured = measure(
        fresh.model, splits_to_measure(prepared)["validation"], task=prepared.task, problem=prepared.problem,
        precision=precision, arguments=arguments,
    )  # fmt: skip
    return measured.metrics["loss"]


def answers_agree(recipe: Recipe, folder: Path, metrics: Mapping[str, float], names: Sequence[str]) -> bool:
    """Whether the saved adapter, opened again, scores on the validation rows as it did in training."""
    adapter = open_adapter(folder, OpenOptions(offline=True))
    rows = prepare(recipe).rows["validation"]
    references = references_of(rows, task=adapter.task, problem=adapter.problem)
    targets = [column.name for column in adapter.task.columns if column.target]
    predictions = adapter.predict(rows.remove_columns(targets), batch_size=7)
    scores = adapter.task.score(predictions, references, adapter.problem)
    return all(abs(scores[name] - metrics[name]) < 1e-6 for name in names)


def print_loader(name: str, recipe: Recipe) -> None:
    """Reads every row of a recipe, and decodes every sound once."""
    started = time.perf_counter()
    prepared = prepare(recipe)
    read_s = time.perf_counter() - started
    rows = sum(len(table) for table in prepared.rows.values())
    started = time.perf_counter()
    sounds = [features[index] for features in prepared.features.values() for index in range(len(features))]
    decode_s = time.perf_counter() - started
    cut = sum(sound["truncated"] for sound in sounds)
    print(
        f"{name:<38}{rows:>5} rows read in {read_s:.1f} s, {len(sounds)} sounds decoded in {decode_s:.1f} s, {cut} cut"
    )


def print_run(run: Run, folder: Path, overrides: Sequence[str]) -> None:
    recipe = recipe_of(run, folder, overrides)
    print_loader(run.name, recipe)
    before = loss_before(recipe)
    result = train(recipe, RunOptions(overwrite=True))
    found = result.metrics["validation"]
    scores = ", ".join(f"{name} {result.baseline['validation'][name]:.3f} -> {found[name]:.3f}" for name in run.metrics)
    agrees = answers_agree(recipe, result.folder, found, run.metrics)
    print(
        f"{'':<38}loss {before:.3f} -> {found['loss']:.3f}, {scores}, learned {result.learned}, "
        f"{result.seconds:.0f} s; opened again it answers {'the same' if agrees else 'OTHERWISE'}",
        flush=True,
    )


def runs(yesno: Corpus, fsdd: Corpus) -> list[Run]:
    """By heart means: measured on the rows that were trained on. Digits are measured on takes that were not."""
    heart = {"learning_rate": 1e-2, "warmup_steps": 20, "per_device_train_batch_size": 4}
    digits = {"learning_rate": 3e-3, "num_train_epochs": 8, "per_device_train_batch_size": 16}
    one_each = [next(row for row in fsdd.rows if row["digit"] == str(digit)) for digit in range(10)]
    takes = {name: [row for row in fsdd.rows if row["split"] == name] for name in ("train", "test")}
    error_rates = ("wer", "cer")
    return [
        Run(
            "yesno, all 60, HuBERT (CTC)", ASR, "hubert", yesno, {"text": "transcript"}, yesno.rows[:31],
            yesno.rows[31:], error_rates, {**heart, "num_train_epochs": 1},
        ),
        Run(
            "yesno, 8 by heart, HuBERT (CTC)", ASR, "hubert", yesno, {"text": "transcript"}, yesno.rows[:8],
            yesno.rows[:8], error_rates, {**heart, "max_steps": 400},
        ),
        Run(
            "digits, 10 by heart, wav2vec2 (CTC)", ASR, "wav2vec2", fsdd, {"text": "word"}, one_each, one_each,
            error_rates, {**heart, "learning_rate": 4e-3, "max_steps": 500},
        ),
        Run(
            "digits, 10 by heart, Whisper", ASR, "whisper", fsdd, {"text": "word"}, one_each, one_each,
            error_rates, {**heart, "max_steps": 300}, {"generation_config": {"max_new_tokens": 16}},
        ),
        Run(
            "digits told apart, AST", CLASSES, "ast", fsdd, {"label": "word"}, takes["train"], takes["test"],
            ("accuracy",), digits,
        ),
        Run(
            "digits told apart, wav2vec2", CLASSES, "wav2vec2", fsdd, {"label": "word"}, takes["train"],
            takes["test"], ("accuracy",), digits,
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yesno, packed = read_corpus(real_data("yesno")), real_data("fsdd")
    with tempfile.TemporaryDirectory(prefix="lora_ft-speech-") as name:
        folder = Path(name)
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        for number, run in enumerate(runs(yesno, unpacked(packed, folder / "fsdd"))):
            print_run(run, folder / str(number), options.overrides)


if __name__ == "__main__":
    main()
