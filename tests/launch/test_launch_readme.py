"""launch/README.md is true: its files exist, its commands are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from click.testing import CliRunner

from lora_ft.cli.main import cli
from tests.toy import write_recipe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "launch" / "README.md").read_text(encoding="utf-8")
TABLE = [line.split(" | ", 1)[1] for line in TEXT.splitlines() if line.startswith("| ") and "`" in line]
COMMANDS = [command for cell in TABLE for command in re.findall(r"`([^`]*\S \S[^`]*)`", cell) if "..." not in command]
OURS = [command for command in COMMANDS if "lora-ft launch" in command]


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"launch/[\w./]*\w\.\w+|launch/docker/Dockerfile\.\w+", TEXT)
    assert len(named) >= 10
    for name in (
        *named,
        *(f"launch/accelerate/{name}" for name in re.findall(r"`(\w+\.yaml)`", TEXT) if name != "my.yaml"),
    ):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("command", OURS)
def test_our_commands_do_what_they_say(
    command: str, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, tiny_bert).rename(tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(command) if "=" not in word]
    assert words[0] == "lora-ft"
    done = CliRunner().invoke(cli, [*words[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "accelerate.commands.launch" in done.output


def test_the_command_of_accelerate_is_understood() -> None:
    (command,) = (command for command in COMMANDS if command.startswith("accelerate launch"))
    arguments = launch_command_parser().parse_args(shlex.split(command)[2:])
    assert arguments.training_script_args == ["train", "my.yaml"]
    assert (ROOT / arguments.config_file).is_file()


def test_the_environment_of_sky_is_that_of_its_file() -> None:
    (command,) = (command for command in COMMANDS if command.startswith("sky "))
    given = re.findall(r"--env (\w+)=", command)
    text = (ROOT / "launch" / "sky" / "train.yaml").read_text(encoding="utf-8")
    assert given
    assert all(f"  {name}: " in text for name in given)


def test_there_is_a_command_for_every_folder() -> None:
    for folder in (ROOT / "launch").iterdir():
        assert not folder.is_dir() or f"launch/{folder.name}/" in " ".join(COMMANDS), folder.name
