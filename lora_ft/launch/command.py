"""Choice -> the exact command of `accelerate launch`, as words and as a line to copy."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ft.errors import InputError
from lora_ft.launch.choice import Choice
from lora_ft.launch.machine import Place

FOLDER = Path("launch") / "accelerate"
AGENT = {
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "240",
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
}
"""What torch's agent reads (torch 2.13): seconds between the SIGTERM that it hands on and its SIGKILL, 30 by itself,
which would end a checkpoint after a long step; and signals that it hands on: else it dies of SIGUSR1 alone."""


@dataclass(frozen=True)
class Command:
    """A command and what it adds to the environment.

    Attributes:
        words: The words, the interpreter first.
        environment: Variables that it needs beside those that are there.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def line(self) -> str:
        """For a shell."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*added, shlex.join(self.words)])


def launch_command(
    choice: Choice, place: Place, *, interpreter: str, train_words: Sequence[str], environment: Mapping[str, str]
) -> Command:
    """Puts the command together.

    `python -m accelerate.commands.launch` is `accelerate launch` of this Python and no other; and it does without
    accelerate's other commands, which import timm where it is installed: that fails beside a CPU torch (1.15).

    Args:
        choice: Configuration and processes.
        place: The machines.
        interpreter: The Python that runs this.
        train_words: What follows `lora_ft train`.
        environment: Of this process; what it says of time-outs and threads stays.

    Returns:
        The command.
    """
    words = [interpreter, "-m", "accelerate.commands.launch", "--config_file", str(configuration_file(choice))]
    words += ["--num_processes", str(choice.processes * place.nodes)]
    words += ["--num_machines", str(place.nodes), "--machine_rank", str(place.rank)]
    if place.nodes > 1:
        words += ["--main_process_ip", place.head, "--main_process_port", str(place.port)]
    if choice.threads is not None and "OMP_NUM_THREADS" not in environment:
        words += ["--num_cpu_threads_per_process", str(choice.threads)]
    added = {name: value for name, value in AGENT.items() if name not in environment}
    return Command(words=(*words, "-m", "lora_ft", "train", *train_words), environment=added)


def configuration_file(choice: Choice) -> Path:
    """The file of a choice.

    Raises:
        InputError: The user's own file is not there, or this installation lacks ours.
    """
    if isinstance(choice.configuration, Path):
        if not choice.configuration.is_file():
            raise InputError(
                f"launch: --config {choice.configuration}: there is no such file. Expected one of accelerate's"
                " configurations, such as launch/accelerate/ddp.yaml; leave it out to let the machine decide"
            )
        return choice.configuration
    file = FOLDER / f"{choice.configuration}.yaml"
    checkout = Path(__file__).parents[2] / file
    if checkout.is_file():
        return checkout
    installed = importlib.metadata.files("lora-ft") or []
    for entry in installed:
        if Path(entry).parts[-3:] == file.parts:
            return Path(str(entry.locate())).resolve()
    raise InputError(f"launch: this installation of lora-ft has no {file}. Install it again, or give --config FILE")
