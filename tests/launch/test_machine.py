"""What is found of a machine: GPUs by a fake nvidia-smi, cores, the place among the nodes of Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_ft.errors import InputError
from lora_ft.launch.machine import (
    Gpu,
    Place,
    find_gpus,
    find_machine,
    first_host,
    others_compute,
    slurm_place,
    threads_of_a_process,
    usable_cores,
)

L40S = 46_068 * 1024 * 1024
STEP = {
    "SLURM_JOB_ID": "4211", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[03,07]", "SLURM_PROCID": "1",
}  # fmt: skip


def nvidia_smi(folder: Path, *lines: str, code: int = 0) -> dict[str, str]:
    """An environment whose nvidia-smi prints these lines."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(
        "\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in lines), f"exit {code}"]), encoding="utf-8"
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def two(tmp_path: Path) -> dict[str, str]:
    return nvidia_smi(tmp_path / "bin", "0, GPU-aa11, NVIDIA L40S, 46068", "1, GPU-bb22, NVIDIA L40S, 46068")


def test_gpus_and_their_memory_are_read_from_the_driver(two: dict[str, str]) -> None:
    assert find_gpus(two) == ((Gpu("NVIDIA L40S", L40S),) * 2, "")


@pytest.mark.parametrize(
    ("visible", "count"),
    [("1", 1), ("0,1", 2), ("GPU-bb22", 1), ("GPU-bb", 1), ("0,7,1", 1), ("MIG-1c,MIG-2d", 2), ("", 0), ("-1", 0)],
)
def test_cuda_visible_devices_is_respected_as_cuda_reads_it(two: dict[str, str], visible: str, count: int) -> None:
    gpus, remark = find_gpus({**two, "CUDA_VISIBLE_DEVICES": visible})
    assert len(gpus) == count
    assert bool(remark) == (count == 0), "no GPU where there are some: says why"


def test_a_driver_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    broken = nvidia_smi(tmp_path, "NVIDIA-SMI has failed because it could not talk to the driver", code=9)
    gpus, remark = find_gpus(broken)
    assert gpus == ()
    assert "could not talk to the driver" in remark
    assert find_gpus({"PATH": str(tmp_path / "empty")}) == ((), "there is no nvidia-smi")


def test_slurm_counts_gpus_where_the_driver_lists_none(tmp_path: Path) -> None:
    slurm = {"PATH": str(tmp_path), "SLURM_GPUS_ON_NODE": "4"}
    assert find_gpus(slurm)[0] == (Gpu("GPU", None),) * 4
    assert len(find_gpus({**slurm, "CUDA_VISIBLE_DEVICES": "2,3"})[0]) == 2


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("max 100000", 2), ("150000 100000", 1)])
def test_a_container_may_have_fewer_cores_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota, encoding="utf-8")
    assert usable_cores({}, root=tmp_path) == cores
    assert usable_cores({"SLURM_CPUS_PER_TASK": "1"}, root=tmp_path) == 1


def test_a_container_of_the_first_kind_may_have_fewer_cores_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    folder = tmp_path / "sys/fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n", encoding="utf-8")
    for quota, cores in (("350000", 3), ("-1", 8)):
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n", encoding="utf-8")
        assert usable_cores({}, root=tmp_path) == cores


def test_processes_of_a_machine_share_its_cores_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert threads_of_a_process({}, root=tmp_path) == 6
    assert threads_of_a_process({"LOCAL_WORLD_SIZE": "2"}, root=tmp_path) == 3
    assert threads_of_a_process({"LOCAL_WORLD_SIZE": "16"}, root=tmp_path) == 1
    assert threads_of_a_process({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "5"}, root=tmp_path) is None


def test_threads_sleep_where_others_compute_on_the_same_cores() -> None:
    assert others_compute(1.0, threads=2, cores=2)
    assert not others_compute(0.3, threads=2, cores=2)
    assert not others_compute(3.0, threads=4, cores=8)
    assert not others_compute(9.0, threads=1, cores=2), "one thread waits for none"


def test_slurms_step_gives_the_place_of_this_node() -> None:
    assert slurm_place(STEP) == Place(nodes=2, rank=1, head="gpu03", port=19_211)
    assert slurm_place({**STEP, "SLURM_JOB_ID": "4212"}).port == 19_212, "two jobs on one node do not meet"
    assert slurm_place({}) == Place()
    one = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert slurm_place(one) == Place(), "a step of one node of a larger job"


def test_a_launcher_that_would_wait_for_ever_or_run_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"Slurm's job has 2 nodes, and this is not one of its steps\. .*srun"):
        slurm_place({"SLURM_JOB_NUM_NODES": "2"})
    with pytest.raises(InputError, match=r"step has 8 tasks on 2 nodes.*--ntasks-per-node=1"):
        slurm_place({**STEP, "SLURM_STEP_NUM_TASKS": "8"})


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("gpu[03-07,11],login1", "gpu03"),
        ("n1,n2", "n1"),
        ("a100-[1-2]", "a100-1"),
        ("r[1-2]c", "r1c"),
        ("cpu-7", "cpu-7"),
    ],
)
def test_the_first_host_of_slurms_short_form(listed: str, first: str) -> None:
    assert first_host(listed) == first


def test_what_the_user_says_of_the_nodes_wins(two: dict[str, str]) -> None:
    said = Place(nodes=3, rank=2, head="h", port=1)
    machine = find_machine({**two, **STEP}, place=said)
    assert machine.place == said
    assert len(machine.gpus) == 2
