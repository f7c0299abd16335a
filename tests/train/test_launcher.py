"""The number of processes asked for is read from the launcher's own command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.train.launcher import asked_world_size
from tests.toy import write_recipe

CPU = Path(__file__).parents[2] / "launch" / "accelerate" / "cpu.yaml"


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        (["bash"], None),
        (
            [
                "python",
                "/x/bin/accelerate",
                "launch",
                "--cpu",
                "--num_processes",
                "2",
                "-m",
                "lora_ft",
                "train",
                "r",
            ],
            2,
        ),
        (["python", "/x/bin/accelerate-launch", "--num_processes=3", "-m", "lora_ft", "train", "r.yaml"], 3),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "4", "-m", "lora_ft"], 4),
        (
            [
                "python",
                "/x/bin/accelerate",
                "launch",
                "--config_file",
                str(CPU),
                "-m",
                "lora_ft",
                "train",
                "r",
            ],
            2,
        ),
        (["python", "/x/bin/accelerate", "config"], None),
        (["python", "/x/bin/torchrun", "--nproc_per_node", "2", "-m", "lora_ft", "train", "r"], 2),
        (["/x/bin/torchrun", "--nnodes=2", "--nproc-per-node=4", "-m", "lora_ft", "train", "r"], 8),
        (["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "lora_ft"], 3),
        (["python", "/x/bin/torchrun", "--nnodes", "1:4", "--nproc-per-node", "2", "-m", "lora_ft"], None),
        (["python", "/x/bin/torchrun", "--nproc-per-node", "gpu", "-m", "lora_ft"], None),
        (["bash", "-c", "cat torchrun"], None),
    ],
)
def test_the_launchers_command_line_tells(argv: list[str], asked: int | None) -> None:
    assert asked_world_size(argv) == asked


def test_world_size_speaks_where_the_command_line_does_not() -> None:
    assert asked_world_size(["slurmstepd"], told="4") == 4
    assert asked_world_size(["python", "/x/bin/torchrun", "--nproc_per_node", "2", "-m", "lora_ft"], told="4") == 2
    assert asked_world_size(["bash"], told=None) is None


def test_a_task_of_slurm_that_knows_of_no_others_is_refused_before_torch(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert)
    command = [sys.executable, "-X", "importtime", "-m", "lora_ft", "train", str(recipe)]
    told = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    done = subprocess.run(command, env={**told, "SLURM_NTASKS": "4"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train: Slurm has 4 tasks (SLURM_NTASKS), and none knows of the others" in done.stderr
    assert "| torch\n" not in done.stderr
    assert not (tmp_path / "run").exists()
