"""The number of processes asked for is read from the launcher's own command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.train.launcher import asked_world_size

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
    ],
)
def test_the_launchers_command_line_tells(argv: list[str], asked: int | None) -> None:
    assert asked_world_size(argv) == asked
