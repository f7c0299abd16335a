"""How many processes the launcher was asked for, read from its own command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser


def asked_world_size(launcher_argv: Sequence[str], *, told: str | None = None) -> int | None:
    """Reads the number of processes from the command line of `accelerate launch` or `torchrun`.

    `accelerate launch --cpu --num_processes 2` starts a single process and says nothing (accelerate 1.15), and
    that process sees nothing of the request: only the launcher's own command line tells.

    Args:
        launcher_argv: The parent process's command line, such as
            `["python", ".../accelerate", "launch", "--num_processes", "2", "-m", "lora_ft", ...]`.
        told: `WORLD_SIZE`, which speaks where the command line does not: under other launchers.

    Returns:
        The number asked for on all machines together, or None if nobody said.
    """
    argv = list(launcher_argv)
    asked = _asked_of_accelerate(argv)
    if asked is None:
        asked = _asked_of_torchrun(argv)
    return int(told) if asked is None and told and told.isdigit() else asked


def _asked_of_torchrun(argv: list[str]) -> int | None:
    """Processes times machines, where both are numbers: `--nproc_per_node gpu` and `--nnodes 1:4` are none."""
    named = [index for index, word in enumerate(argv) if Path(word).name == "torchrun"]
    modules = [
        index for index, word in enumerate(argv) if word in ("torch.distributed.run", "torch.distributed.launch")
    ]
    if not modules and (not named or named[0] > 1):
        return None
    from torch.distributed.run import get_args_parser

    arguments, _ = get_args_parser().parse_known_args(argv[(modules or named)[0] + 1 :])
    least, _, most = str(arguments.nnodes).partition(":")  # 1:1 where nothing is said
    each = str(arguments.nproc_per_node)
    return int(least) * int(each) if most in ("", least) and least.isdigit() and each.isdigit() else None


def _asked_of_accelerate(argv: list[str]) -> int | None:
    """`--num_processes`, or what the configuration says."""
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
