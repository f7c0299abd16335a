"""Two processes on one CPU machine, each with half the batch, follow the loss curve of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.painted import recipe as painted_recipe
from tests.tasks.painted import write_coco
from tests.toy import read, write_recipe

ROOT = Path(__file__).parents[2]
CPU = ROOT / "launch" / "accelerate" / "cpu.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(recipe: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "-m", "lora_ft", "train", str(recipe)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


def losses(run: Path, *, steps: int = 32) -> list[float]:
    (state,) = run.glob(f"checkpoint-{steps}/trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
def test_two_processes_with_half_the_batch_follow_the_curve_of_one(tmp_path: Path, tiny_bert: Path) -> None:
    arguments = {"logging_steps": 1, "num_train_epochs": 2}
    one = write_recipe(tmp_path / "one", tiny_bert, training_args={**arguments, "per_device_train_batch_size": 8})
    two = write_recipe(tmp_path / "two", tiny_bert, training_args={**arguments, "per_device_train_batch_size": 4})
    alone = launch(one)
    assert alone.returncode == 0, alone.stderr
    both = launch(two, "-m", "accelerate.commands.launch", "--config_file", str(CPU))
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("trained in") == 1, "only the main process speaks"
    assert losses(tmp_path / "two" / "run") == pytest.approx(losses(tmp_path / "one" / "run"), abs=2e-4)
    weights = "run/adapter/adapter_model.safetensors"
    first, second = load_file(tmp_path / "one" / weights), load_file(tmp_path / "two" / weights)
    for name, tensor in first.items():
        assert second[name] == pytest.approx(tensor, abs=1e-3), name
    manifest = json.loads((tmp_path / "two" / "run" / "adapter" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["run"]["world_size"] == 2


def test_boxes_on_two_processes_teach_as_on_one_also_where_one_has_more_of_them(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "yolos")
    for folder, images in (("train", 4), ("dev", 3)):
        file = write_coco(tmp_path / folder)
        content = json.loads(file.read_text(encoding="utf-8"))
        content["images"] = content["images"][:images]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] < images]
        file.write_text(json.dumps(content), encoding="utf-8")
    weights, curves = [], []
    files = {split: str(tmp_path / name / "boxes.json") for split, name in (("train", "train"), ("validation", "dev"))}
    for name, size in (("one", 4), ("two", 2)):
        (tmp_path / name).mkdir()
        painted_recipe(
            tmp_path / name, base, "object-detection",
            dataset={"data_files": files},
            training_args={
                # plain gradient descent: Adam and clipping would hide a gradient of the wrong size
                "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-3, "per_device_train_batch_size": size,
                "num_train_epochs": 6, "logging_steps": 1, "save_strategy": "epoch", "eval_strategy": "epoch",
                "per_device_eval_batch_size": 1, "metric_for_best_model": "loss", "greater_is_better": False,
            },
        )  # fmt: skip
        file = tmp_path / name / "recipe.yaml"
        if name == "one":
            train(read(file), RunOptions())
        else:
            done = launch(file, "-m", "accelerate.commands.launch", "--config_file", str(CPU))
            assert done.returncode == 0, done.stderr
        curves.append(losses(tmp_path / name / "run", steps=6))
        weights.append(load_file(tmp_path / name / "run" / "adapter" / "adapter_model.safetensors"))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    one, two = weights
    for key, tensor in one.items():
        assert two[key] == pytest.approx(tensor, abs=1e-5), key


SHORT_OF_MEMORY = """
import os, sys
from pathlib import Path
import torch
from lora_ft.errors import GateError
from lora_ft.tasks.text_classification import TextClassification
from lora_ft.train.run import RunOptions, train
from tests.toy import read

whole, rank = TextClassification.forward, os.environ["RANK"]

def forward(task, model, batch, problem):
    if rank == "1" and model.training and len(batch["input_ids"]) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return whole(task, model, batch, problem)

TextClassification.forward = forward
try:
    train(read(Path(sys.argv[1])), RunOptions())
except GateError as error:
    print(f"rank {rank}: {error}", flush=True)
"""


def test_memory_that_one_process_alone_is_short_of_ends_all_of_them_with_one_proposal(
    tmp_path: Path, tiny_bert: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, training_args={"per_device_train_batch_size": 4})
    script = tmp_path / "short.py"
    script.write_text(SHORT_OF_MEMORY, encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CPU), str(script), str(recipe)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank}: memory: the longest batch of the run, 4 rows" in done.stdout
    proposal = "per_device_train_batch_size: 2 and training_args.gradient_accumulation_steps: 2 (tried: it fits, and a"
    assert done.stdout.count(f"{proposal} step still learns of 8 rows)") == 2


@pytest.mark.slow
def test_a_launcher_that_starts_fewer_processes_than_asked_is_noticed(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert)
    silent = launch(recipe, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    assert silent.returncode != 0
    assert "2 processes were asked for, 1 started" in silent.stderr
    assert not (tmp_path / "run" / "adapter").exists()
