"""Two machines train what one does, and when one of them dies, the other ends and says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_ft.train.run import RunOptions, train
from tests.toy import read
from tests.train.machines import ADDRESSES, PORT, can_be_made, simulate
from tests.train.ranks import ROOT
from tests.train.test_worlds import check_same, reviews, sizes

CPU = ROOT / "launch" / "accelerate" / "cpu.yaml"
ENDS_WITHIN_S = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_be_made(), reason="no network namespaces can be made here")]


def launched(recipe: Path, machine: int) -> list[str]:
    """The command that a user types on one of two machines."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CPU), "--num_machines", "2",
        "--num_processes", "2", "--machine_rank", str(machine), "--main_process_ip", ADDRESSES[0],
        "--main_process_port", str(PORT), "--rdzv_backend", "static", "-m", "lora_ft", "train", str(recipe),
    ]  # fmt: skip


def test_two_machines_learn_what_one_does(tmp_path: Path, tiny_bert: Path) -> None:
    train(read(reviews(tmp_path / "one", tiny_bert, rows=37, training_args=sizes(1))), RunOptions())
    recipe = reviews(tmp_path / "two", tiny_bert, rows=37, training_args=sizes(2))
    commands = [launched(recipe, machine) for machine in (0, 1)]
    found = simulate({"commands": commands, "dies": None}, folder=tmp_path / "machines")
    assert found["codes"] == [0, 0], found["logs"]
    assert found["left"] == ["", ""]
    check_same(tmp_path / "one" / "run", tmp_path / "two" / "run")


@pytest.mark.parametrize("dies", [0, 1])
def test_when_a_machine_dies_the_other_ends_and_says_so(tmp_path: Path, tiny_bert: Path, dies: int) -> None:
    arguments = {**sizes(2), "num_train_epochs": 500}
    recipe = reviews(tmp_path / "two", tiny_bert, rows=37, training_args=arguments)
    commands = [launched(recipe, machine) for machine in (0, 1)]
    scenario = {"commands": commands, "dies": dies, "when": "checkpoint-*", "watched": str(recipe.parent / "run")}
    found = simulate(scenario, folder=tmp_path / "machines")
    lives = 1 - dies
    assert found["codes"][lives] not in (0, None), found["logs"][lives]
    assert found["seconds"] < ENDS_WITHIN_S
    assert f"process {lives} on machine-{lives} lost contact with the others (" in found["logs"][lives]
    assert "the same command with --auto-resume" in found["logs"][lives]
    assert "Traceback (most recent call last):\n" not in found["logs"][lives].partition("lost contact")[0]
    assert found["left"][lives] == "", "processes that are still there"
    assert not (recipe.parent / "run" / "adapter").exists()
    assert list((recipe.parent / "run").glob("checkpoint-*"))
