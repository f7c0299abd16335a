"""How many processes the launcher was asked for, read from its own command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser


def asked_world_size(launcher_argv: Sequence[str]) -> int | None:
    """Reads the number of processes from the command line of `accelerate launch`.

    `accelerate launch --cpu --num_processes 2` starts a single process and says nothing (accelerate 1.15), and
    that process sees nothing of the request: only the launcher's own command line tells.

    Args:
        launcher_argv: The parent process's command line, such as
            `["python", ".../accelerate", "launch", "--num_processes", "2", "-m", "lora_ft", ...]`.

    Returns:
        The number asked for on all machines together, or None if the parent is no launcher or nobody said.
    """
    argv = list(launcher_argv)
    named = [index for index, word in enumerate(argv) if Path(word).name in ("accelerate", "accelerate-launch")]
    modules = [index for index, word in enumerate(argv) if word == "accelerate.commands.launch"]
    if modules:
        rest = argv[modules[0] + 1 :]
    elif named and Path(argv[named[0]]).name == "accelerate-launch":
        rest = argv[named[0] + 1 :]
    elif named and argv[named[0] + 1 : named[0] + 2] == ["launch"]:
        rest = argv[named[0] + 2 :]
    else:
        return None
    arguments, _ = launch_command_parser().parse_known_args(rest)
    if arguments.num_processes is not None:
        return int(arguments.num_processes)
    file = arguments.config_file or (default_config_file if Path(default_config_file).is_file() else None)
    if file is None:
        return None
    return int(load_config_from_file(file).num_processes)
