"""Whole runs with `lean.label_loss` on and off: the same adapter and measurements, and the manifest says which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_ft.tasks.base import load_task
from lora_ft.train.run import RunOptions, TrainResult, train
from tests.bases import make_base
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

RUNS = {
    "text-generation": ("llama", "AutoModelForCausalLM", "completion", {"max_length": 32, "packing": True}),
    "fill-mask": ("bert", "AutoModelForMaskedLM", "masked_language_modeling", {"max_length": 32}),
    "preference-tuning": ("gpt2", "AutoModelForCausalLM", "pairs", {"max_length": 32}),
}


def run(folder: Path, task: str, *, lean: Mapping[str, Any], peft_config: Mapping[str, Any]) -> TrainResult:
    """Three steps with label smoothing where that means something, measured at their end."""
    kind, auto_class, problem_type, processor = RUNS[task]
    base = make_base(folder / "base", kind, auto_class=auto_class)
    rows = load_task(task).example_rows(problem_type)
    lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    (folder / "train.jsonl").write_text("\n".join(lines * 3) + "\n", encoding="utf-8")
    (folder / "dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    smoothing = {"label_smoothing_factor": 0.1} if load_task(task).smooths_labels else {}
    file = write_recipe(
        folder, base, task=task,
        arguments={"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **smoothing},
        peft_config={"peft_type": "LORA", "r": 2, "lora_dropout": 0.1, **peft_config},
        dataset={"data_files": {"train": "train.jsonl", "validation": "dev.jsonl"}},
        processor=processor, lean=lean, checks={"learned": False, "gap": False},
    )  # fmt: skip
    return train(read(file), RunOptions())


@pytest.mark.parametrize(
    "task",
    ["text-generation", *(pytest.param(one, marks=pytest.mark.slow) for one in RUNS if one != "text-generation")],
)
def test_a_run_ends_with_the_adapter_and_the_measurements_of_the_usual_way(tmp_path: Path, task: str) -> None:
    found = []
    for name, lean in (("on", {}), ("off", {"label_loss": False})):
        (tmp_path / name).mkdir()
        found.append(run(tmp_path / name, task, lean=lean, peft_config={}))
    ours, usual = found
    assert [one.manifest.run["lean"]["label_loss"] for one in found if one.manifest] == [
        True,
        "off: lean.label_loss is false",
    ]
    tensors, others = (load_file(one.folder / "adapter_model.safetensors") for one in found)
    for name, tensor in tensors.items():
        assert float((tensor - others[name]).abs().max()) < 1e-5, name
    assert ours.metrics["validation"] == pytest.approx(usual.metrics["validation"], rel=1e-5, abs=1e-5)
