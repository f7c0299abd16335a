"""What this machine has for a run: GPUs and their memory, CPU cores, and its place among the nodes of a job; no torch.

$ nvidia-smi --query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits
0, GPU-5f2c1a9e-0d6c-4a52-9f64-6a0d8a5c7f01, NVIDIA L40S, 46068
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from lora_ft.errors import InputError

QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
NVIDIA_SMI_S = 60
MIB = 1 << 20
FIRST_PORT, PORTS = 15_000, 15_000
"""Ports of jobs lie below 32,768, where Linux begins to give ports away by itself."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that a run may use.

    Attributes:
        name: As the driver calls it.
        bytes: Its memory; None where that cannot be seen.
    """

    name: str
    bytes: int | None


@dataclass(frozen=True)
class Place:
    """Where this machine stands among those of a run.

    Attributes:
        nodes: How many machines there are.
        rank: Which one this is, from 0.
        head: The machine of rank 0, as the others reach it; empty where there is one machine.
        port: Where it listens; 0 where there is one machine: any free one.
    """

    nodes: int = 1
    rank: int = 0
    head: str = ""
    port: int = 0


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        gpus: The GPUs that a run may use, in the driver's order.
        cores: The CPU cores that it may use.
        place: Where the machine stands among those of the run.
        remark: What the user should know of how the GPUs were found; empty: nothing.
    """

    gpus: tuple[Gpu, ...]
    cores: int
    place: Place = Place()
    remark: str = ""


def find_machine(environment: Mapping[str, str], *, place: Place | None = None, root: Path = Path("/")) -> Machine:
    """Looks at GPUs, cores and the scheduler's variables.

    Args:
        environment: The environment variables.
        place: What the user said of the nodes; None: what Slurm says.
        root: Where `/sys` is; for tests.

    Returns:
        The machine.

    Raises:
        InputError: Slurm's job has several nodes, and this process cannot be the only launcher of one of them.
    """
    gpus, remark = find_gpus(environment)
    return Machine(
        gpus=gpus,
        cores=usable_cores(environment, root=root),
        place=slurm_place(environment) if place is None else place,
        remark=remark,
    )


def find_gpus(environment: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that a run may use, and a remark: empty, or why there are none where some might be expected.

    Args:
        environment: `CUDA_VISIBLE_DEVICES` narrows the list; `SLURM_GPUS_ON_NODE` counts where the driver does not say.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return (), f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs"
    listed, remark = _ask_driver(environment)
    allotted = environment.get("SLURM_GPUS_ON_NODE", "")
    if not listed and allotted.isdigit() and int(allotted):
        count = int(allotted) if visible is None else len(visible.split(","))
        return (Gpu("GPU", None),) * count, f"SLURM_GPUS_ON_NODE={allotted}; {remark}"
    if visible is None:
        return tuple(listed.values()), remark
    chosen = []
    for word in (word.strip() for word in visible.split(",")):
        names = [name for name in listed if word in name or (word.startswith("GPU-") and name[1].startswith(word))]
        if word.startswith("MIG-"):
            chosen.append(Gpu("MIG", None))  # a part of a GPU: nvidia-smi's table has the whole one's memory
        elif names:
            chosen.append(listed[names[0]])
        else:
            break  # CUDA itself sees none from the first unknown one on
    if not chosen:
        remark = remark or f"CUDA_VISIBLE_DEVICES={visible} names none of the {len(listed)} GPUs"
    return tuple(chosen), remark


def _ask_driver(environment: Mapping[str, str]) -> tuple[dict[tuple[str, str], Gpu], str]:
    """`{(index, uuid): GPU}` as nvidia-smi lists them, and why there are none."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return {}, "there is no nvidia-smi"
    try:
        done = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_S, env=dict(environment)
        )
    except subprocess.TimeoutExpired:
        return {}, f"nvidia-smi said nothing in {NVIDIA_SMI_S} s"
    if done.returncode != 0:
        told = (done.stdout + done.stderr).strip().splitlines()
        return {}, f"nvidia-smi failed ({told[0] if told else f'exit code {done.returncode}'})"
    gpus = {}
    for line in done.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdigit():
            index, uuid, name, memory = fields
            gpus[index, uuid] = Gpu(name, int(memory) * MIB if memory.isdigit() else None)
    return gpus, "" if gpus else "nvidia-smi lists no GPU"


def usable_cores(environment: Mapping[str, str], *, root: Path = Path("/")) -> int:
    """The CPU cores that a run may use: of the machine, of this process, of its container, of Slurm's task.

    accelerate counts those of the machine, and threads that share a core slow each other down many times.

    Args:
        environment: `SLURM_CPUS_PER_TASK` is looked at.
        root: Where `/sys/fs/cgroup` is; for tests.
    """
    limits = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    if sys.platform == "linux":
        limits.append(len(os.sched_getaffinity(0)))
    limits += _quotas(root / "sys/fs/cgroup")
    if environment.get("SLURM_CPUS_PER_TASK", "").isdigit():
        limits.append(int(environment["SLURM_CPUS_PER_TASK"]))
    return max(1, min(limits))


def threads_of_a_process(environment: Mapping[str, str], *, root: Path = Path("/")) -> int | None:
    """The threads that a process should compute with: its share of the cores; None where the user has said it.

    torch counts the cores that a process may run on, but neither what its container may use nor the other processes.

    Args:
        environment: `OMP_NUM_THREADS` is what the user said; `LOCAL_WORLD_SIZE` counts the processes of this machine.
        root: Where `/sys/fs/cgroup` is; for tests.
    """
    if environment.get("OMP_NUM_THREADS"):
        return None
    processes = environment.get("LOCAL_WORLD_SIZE", "")
    return max(1, usable_cores(environment, root=root) // max(1, int(processes) if processes.isdigit() else 1))


def others_compute(load_average: float, *, threads: int, cores: int) -> bool:
    """Whether threads of this process would wait for each other on cores that others use: they should sleep meanwhile.

    Two threads that spin beside others took 10.2 s for a step, two that sleep 0.84 (2 cores, load average 11).

    Args:
        load_average: Of the last minute.
        threads: Of this process.
        cores: That it may use.
    """
    return threads > 1 and load_average + threads > cores + 0.5


def _quotas(folder: Path) -> list[int]:
    """The whole cores of a container's quota in cgroup 2 (`150000 100000` or `max 100000`) and cgroup 1."""
    second, first = folder / "cpu.max", (folder / "cpu/cpu.cfs_quota_us", folder / "cpu/cpu.cfs_period_us")
    told = [second.read_text(encoding="utf-8").split()] if second.is_file() else []
    if all(file.is_file() for file in first):
        told.append([file.read_text(encoding="utf-8").strip() for file in first])
    return [int(words[0]) // int(words[1]) for words in told if len(words) == 2 and words[0].isdigit()]


def slurm_place(environment: Mapping[str, str]) -> Place:
    """Where Slurm has put this process among the nodes of its step.

    Args:
        environment: Slurm's variables, if any.

    Returns:
        The place; one node where there is no Slurm.

    Raises:
        InputError: The job has several nodes, but this is no step of one process a node.
    """
    nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_JOB_NUM_NODES") or 1)
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    how = (
        "Start one launcher on each node: srun --ntasks-per-node=1 lora-ft launch RECIPE, or submit "
        "launch/slurm/train.sbatch; for a run on this node alone: srun --nodes=1 --ntasks=1 lora-ft launch RECIPE"
    )
    if nodes > 1 and "SLURM_STEP_NUM_NODES" not in environment:
        raise InputError(f"launch: Slurm's job has {nodes} nodes, and this is not one of its steps. {how}")
    if tasks != nodes and "SLURM_STEP_NUM_TASKS" in environment:
        raise InputError(f"launch: Slurm's step has {tasks} tasks on {nodes} nodes, each would be a launcher. {how}")
    if nodes == 1:
        return Place()
    return Place(
        nodes=nodes,
        rank=int(environment["SLURM_PROCID"]),
        head=first_host(environment["SLURM_STEP_NODELIST"]),
        port=FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS,
    )


def first_host(listed: str) -> str:
    """The first host of Slurm's short form: `gpu[03-07,11],login1` -> `gpu03`.

    Args:
        listed: `SLURM_STEP_NODELIST`.
    """
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", listed)
    assert match is not None, "every part may be empty"
    return "".join(part or "" for part in match.groups())
