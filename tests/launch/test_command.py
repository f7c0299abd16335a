"""The command: what accelerate gets, for which machine, from which configuration, also from an installed wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from lora_ft.errors import InputError
from lora_ft.launch.choice import Choice
from lora_ft.launch.command import AGENT, Command, configuration_file, launch_command
from lora_ft.launch.machine import Place
from lora_ft.train.launcher import asked_world_size

ROOT = Path(__file__).parents[2]
WORDS = ["my runs/a.yaml", "dataset.label_delimiter=|", "--auto-resume"]
HERE = Place()
TWO_NODES = Place(nodes=2, rank=1, head="gpu03", port=19_211)


def made(choice: Choice, place: Place = HERE, **environment: str) -> Command:
    return launch_command(choice, place, interpreter="/opt/my env/python", train_words=WORDS, environment=environment)


def test_torchs_agent_reads_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.launcher.api import LaunchConfig
    from torch.distributed.run import get_args_parser

    for name, value in made(Choice("cpu", 1, 1, "")).environment.items():
        monkeypatch.setenv(name, value)
    assert get_args_parser().parse_args(["x.py"]).signals_to_handle.endswith(",SIGUSR1")
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 240


def test_accelerate_reads_the_command_as_it_was_meant() -> None:
    words = made(Choice("multi_node", 8, None, ""), TWO_NODES).words
    assert words[:3] == ("/opt/my env/python", "-m", "accelerate.commands.launch")
    arguments = launch_command_parser().parse_args(list(words[3:]))
    assert (arguments.num_processes, arguments.num_machines, arguments.machine_rank) == (16, 2, 1)
    assert (arguments.main_process_ip, arguments.main_process_port) == ("gpu03", 19_211)
    assert arguments.module
    assert (arguments.training_script, arguments.training_script_args) == ("lora_ft", ["train", *WORDS])
    assert asked_world_size(words) == 16, "each process knows how many there have to be"


def test_the_line_can_be_copied_into_a_shell() -> None:
    command = made(Choice("cpu", 2, 3, ""))
    script = f"python3() {{ :; }}; set -- {command.line.split(' ', 2)[2]}; printf '%s\\n' \"$@\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.splitlines()) == command.words
    variables = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    assert command.line.startswith(f"{variables} '/opt/my env/python' -m accelerate")


def test_what_the_environment_says_of_threads_and_time_stays() -> None:
    assert "--num_cpu_threads_per_process" in made(Choice("cpu", 1, 4, "")).words
    own = made(Choice("cpu", 1, 4, ""), OMP_NUM_THREADS="1", **dict.fromkeys(AGENT, "30"))
    assert "--num_cpu_threads_per_process" not in own.words
    assert own.environment == {}


def test_a_configuration_of_ones_own_must_be_there(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    with pytest.raises(InputError, match=r"--config .*own\.yaml: there is no such file"):
        configuration_file(Choice(own, 1, None, ""))
    own.write_text("", encoding="utf-8")
    assert configuration_file(Choice(own, 1, None, "")) == own


def test_an_installed_wheel_brings_the_configurations_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("lora_ft", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path), str(source)],
                   check=True, capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    apart = ["--ignore-installed", "--prefix", str(tmp_path / "prefix")]  # else pip removes the one that runs here
    subprocess.run([*pip, "install", "--no-deps", "--no-index", *apart, str(wheel)], check=True, capture_output=True)
    paths = {"base": str(tmp_path / "prefix"), "platbase": str(tmp_path / "prefix")}
    packages = sysconfig.get_path("purelib", "posix_prefix", vars=paths)
    code = (
        "from lora_ft.launch.command import *; from lora_ft.launch.choice import Choice;"
        "print(configuration_file(Choice('fsdp2', 1, None, '')))"
    )
    environment = {**os.environ, "PYTHONPATH": packages}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
                          check=True)  # fmt: skip
    still_installed = "import importlib.metadata as metadata; metadata.version('lora-ft')"
    subprocess.run([sys.executable, "-c", still_installed], cwd=tmp_path, check=True)
    found = Path(done.stdout.strip())
    assert found.is_relative_to(tmp_path / "prefix")
    assert found.read_bytes() == (ROOT / "launch" / "accelerate" / "fsdp2.yaml").read_bytes()
