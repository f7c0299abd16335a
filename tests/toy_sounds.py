"""Toy sounds that a tiny base learns in seconds: words of one tone each, as files with a table or a whole recipe."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from lora_ft.tasks.parts.audio_examples import tones

TEXTS = ("yes", "no", "yes no", "no yes")


def tone(seconds: float, *, rate: int = 16_000, pitch: float = 440.0, channels: int = 1) -> npt.NDArray[np.float32]:
    """A sine, `(samples,)` or `(samples, channels)`."""
    wave = (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    return wave if channels == 1 else np.stack([wave] * channels, axis=1)


def write_tone(file: Path, seconds: float = 0.5, *, rate: int = 16_000, **more: Any) -> dict[str, Any]:
    """A file with a sine, as the value of a column."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, tone(seconds, rate=rate, **more), rate)
    return {"path": str(file), "bytes": None}


def write_words(folder: Path, name: str, texts: Sequence[str], *, column: str = "text") -> Path:
    """A CSV with `audio` and `column`, one WAV file a row beside it."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    table = folder / f"{name}.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["audio", column])
        for index, (text, sound) in enumerate(zip(texts, tones(texts), strict=True)):
            (folder / name / f"{index}.wav").write_bytes(sound["bytes"])
            writer.writerow([f"{name}/{index}.wav", text])
    return table


def write_recipe(folder: Path, base: Path, task: str, **sections: Mapping[str, Any]) -> Path:
    """A whole small experiment on `TEXTS` (the single words for classification); JSON is YAML."""
    labelled = task == "audio-classification"
    texts, column = (TEXTS[:2] * 2, "label") if labelled else (TEXTS, "text")
    for name in ("train", "dev"):
        write_words(folder / "data", name, texts, column=column)
    content: dict[str, Any] = {
        "task": task,
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": "data/train.csv", "validation": "data/dev.csv"}},
        "processor": {},
        "training_args": {
            "output_dir": "run",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "save_strategy": "steps",
            "save_steps": 4,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file
