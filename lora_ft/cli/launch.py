"""The verb `launch`: picks accelerate's configuration from the machine, prints the command, and becomes it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lora_ft.cli.environment import finished_already, read_checked, refuse_contradiction
from lora_ft.errors import InputError
from lora_ft.launch.machine import Place, slurm_place

PASSED_ON = ("overwrite", "resume", "auto_resume", "modules", "no_feature_cache")
"""Options of `train` that `launch` has too, and gives to it."""


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE ...]")
@click.option("--dry-run", is_flag=True, help="Print the command, and run nothing.")
@click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes on each machine; by default one for each GPU, or one."
)
@click.option("--config", type=click.Path(path_type=Path), help="Your own configuration of accelerate.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many machines; by default as Slurm says.")
@click.option("--node-rank", type=click.IntRange(min=0), help="Which of them this is, from 0.")
@click.option("--head", metavar="HOST:PORT", help="Where the machine of rank 0 is reached.")
@click.option("--overwrite", is_flag=True, help="As in `train`.")
@click.option("--resume", is_flag=True, help="As in `train`.")
@click.option("--auto-resume", is_flag=True, help="As in `train`.")
@click.option("--modules", is_flag=True, help="As in `train`.")
@click.option("--no-feature-cache", is_flag=True, help="As in `train`.")
def launch(
    recipe: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    nproc: int | None,
    config: Path | None,
    nodes: int | None,
    node_rank: int | None,
    head: str | None,
    **passed_on: bool,
) -> None:
    """Train RECIPE by `accelerate launch`, configured for this machine (GPUs, their memory, nodes)."""
    checked = read_checked(recipe, overrides)
    go_on = {name: passed_on[name] for name in ("overwrite", "resume", "auto_resume")}
    refuse_contradiction("launch", **go_on)
    from lora_ft.launch.choice import choose
    from lora_ft.launch.command import launch_command
    from lora_ft.launch.machine import find_machine
    from lora_ft.launch.weights import weight_bytes

    machine = find_machine(os.environ, place=said_place(nodes, node_rank, head))
    choice = choose(
        checked,
        machine,
        base_bytes=weight_bytes(checked, os.environ) if machine.gpus else None,
        processes=nproc,
        configuration=config,
    )
    flags = [f"--{name.replace('_', '-')}" for name in PASSED_ON if passed_on[name]]
    if not dry_run and finished_already(checked, **go_on):
        return
    command = launch_command(
        choice,
        machine.place,
        interpreter=sys.executable,
        train_words=[str(recipe), *overrides, *flags],
        environment=os.environ,
    )
    click.echo(f"why: {choice.why}", err=True)
    click.echo(command.line)
    if dry_run:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command.words[0], list(command.words), {**os.environ, **command.environment})


def said_place(nodes: int | None, node_rank: int | None, head: str | None) -> Place | None:
    """What the command line says of the machines; None: nothing.

    Args:
        nodes: `--nodes`.
        node_rank: `--node-rank`.
        head: `--head`.

    Raises:
        InputError: Only a part of it was said (Slurm says the rest of `--head`), or it contradicts itself.
    """
    if nodes is None and node_rank is None and head is None:
        return None
    if nodes == 1:
        return Place()
    given = (("--nodes", nodes), ("--node-rank", node_rank), ("--head", head))
    said = [f"{name} {value}" for name, value in given if value is not None]
    host, _, port = (head or "").rpartition(":")
    if nodes is None and node_rank is None:
        slurm = slurm_place(os.environ)
        nodes, node_rank = (slurm.nodes, slurm.rank) if slurm.nodes > 1 else (None, None)
    if nodes is None or node_rank is None or not host or not port.isdigit():
        raise InputError(
            f"launch: {' '.join(said)}: expected --nodes, --node-rank and --head HOST:PORT. Each machine gets the same "
            "command but for --node-rank: 0, 1, ..."
        )
    if node_rank >= nodes:
        raise InputError(f"launch: --node-rank {node_rank}: of {nodes} machines, expected 0 to {nodes - 1}")
    return Place(nodes=nodes, rank=node_rank, head=host, port=int(port))
