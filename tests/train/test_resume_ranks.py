"""Two processes that one of them was told to stop end after the same step, and go on to the very same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe
from tests.train.ranks import run_ranks

HARD = {
    "num_train_epochs": 3, "logging_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
    "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 5, "save_steps": 10, "learning_rate": 5e-3,
    "save_total_limit": 2,
}  # fmt: skip


def experiment(folder: Path, base: Path) -> Path:
    chance: dict[str, Any] = {"peft_config": {"lora_dropout": 0.1}, "model": {"dropout": 0.1}}
    return write_recipe(folder, base, training_args=HARD, **chance)


def curve(run: Path) -> list[dict[str, float]]:
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [
        {key: value for key, value in entry.items() if not key.endswith(("runtime", "per_second"))} for entry in history
    ]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Path, list[list[dict[str, Any]]]]:
    """An uninterrupted run and one stopped in its second epoch, by its second rank."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [
        {"do": "train", "recipe": experiment(folder / "whole", tiny_bert)},
        {"do": "stop and go on", "recipe": experiment(folder / "cut", tiny_bert), "rank": 1, "step": 13},
    ]
    return folder, run_ranks(jobs, world=2, folder=folder / "said")


def test_all_ranks_end_after_the_same_step_whichever_got_the_signal(said: tuple[Path, list[Any]]) -> None:
    _, (first, second) = said
    assert first[1]["told"].startswith("143 another process got a signal: ended after step 15 of 33: a checkpoint was")
    assert second[1]["told"].startswith("143 SIGTERM: ended after step 15 of 33: a checkpoint was saved in")


def test_two_processes_go_on_to_the_very_same_losses_and_adapter(said: tuple[Path, list[Any]]) -> None:
    folder, _ = said
    whole, cut = folder / "whole" / "run", folder / "cut" / "run"
    assert curve(cut) == curve(whole)
    expected, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, cut))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor), name


def test_one_process_goes_on_with_what_two_began_where_a_step_is_as_large(
    said: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder, _ = said
    run = folder / "whole" / "run"
    (run / "adapter").rename(tmp_path / "adapter")
    again = read(folder / "whole" / "recipe.yaml", "training_args.gradient_accumulation_steps=6")
    assert train(again, RunOptions(resume=True)).manifest is not None
