"""`lora-ft launch` from outside: what it refuses, what it prints, what it becomes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lora_ft.cli.launch import PASSED_ON
from lora_ft.cli.main import cli
from tests.cli.calls import ROOT, Run, refused
from tests.launch.test_machine import STEP, nvidia_smi
from tests.toy import write_recipe


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """On a machine without a driver and without Slurm."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "CUDA", "OMP_NUM", "TORCH_ELASTIC", "PET_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", code=6)["PATH"])
    return partial(run, "launch")


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path) -> Path:
    return write_recipe(tmp_path, tiny_bert)


@pytest.fixture
def gpu_recipe(tmp_path: Path, tiny_bert: Path) -> Path:
    return write_recipe(tmp_path, tiny_bert, training_args={"use_cpu": False})


def test_what_is_wrong_is_refused_before_torch(recipe: Path) -> None:
    wrong = (
        ["peft_config.lora_alfa=4"],
        ["--overwrite", "--auto-resume"],
        ["--config", "none.yaml"],
        ["--nodes", "2", "--head", "host:29500"],
        ["--nodes", "2", "--node-rank", "2", "--head", "host:29500"],
        ["--nodes", "2", "--node-rank", "1", "--head", "host"],
        ["--resume"],
    )
    told = refused(*(["launch", recipe, *words] for words in wrong))
    for text, words in zip(
        told,
        (
            "Did you mean 'lora_alpha'?", "Give one of them", "--config none.yaml: there is no such file",
            "--nodes 2 --head host:29500: expected --nodes, --node-rank", "of 2 machines, expected 0 to 1",
            "--head host: expected --nodes, --node-rank and --head HOST:PORT", "no checkpoint to resume from",
        ),
        strict=True,
    ):  # fmt: skip
        assert words in text


def test_a_dry_run_prints_the_command_and_the_reason_and_writes_nothing(run: Run, recipe: Path, tmp_path: Path) -> None:
    code, out, err = run(recipe, "training_args.learning_rate=3e-4", "--nproc", 2, "--modules", "--dry-run")
    assert code == 0
    assert err.startswith("why: training_args.use_cpu: 2 processes on ")
    words = shlex.split(out)
    assert words[0] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240"
    assert words[2:6] == [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    assert words[6] == str(ROOT / "launch" / "accelerate" / "cpu.yaml")
    assert words[words.index("--num_processes") + 1] == "2"
    assert words[words.index("lora_ft") :] == [
        "lora_ft", "train", str(recipe), "training_args.learning_rate=3e-4", "--modules"
    ]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_gpus_and_the_size_of_the_base_decide(
    run: Run, gpu_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, err = run(gpu_recipe, "--dry-run")
    assert "no GPU to use (nvidia-smi failed (exit code 6))" in err
    assert "/cpu.yaml" in out
    lines = [f"{index}, GPU-{index}, NVIDIA L40S, 46068" for index in range(4)]
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "gpus", *lines)["PATH"])
    _, out, err = run(gpu_recipe, "--dry-run")
    assert "4 GPUs (NVIDIA L40S); the base takes about 0.0 GB, less than 80% of a GPU's 48.3 GB" in err
    assert "/ddp.yaml --num_processes 4 --num_machines 1 --machine_rank 0 -m lora_ft" in out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "/one_gpu.yaml --num_processes 1 " in run(gpu_recipe, "--dry-run")[1]


def test_nodes_are_slurms_unless_said(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert "--machine_rank 1 --main_process_ip gpu03 --main_process_port 19211 " in run(recipe, "--dry-run")[1]
    assert "--main_process_ip ib3 --main_process_port 7 " in run(recipe, "--dry-run", "--head", "ib3:7")[1]
    said = run(recipe, "--dry-run", "--nodes", 4, "--node-rank", 0, "--head", "h:5")[1]
    assert "--num_processes 4 --num_machines 4 --machine_rank 0 --main_process_ip h --main_process_port 5 " in said
    assert "/cpu.yaml" in run(recipe, "--dry-run", "--nodes", 1, "--node-rank", 0, "--head", "h:5")[1]
    assert "/cpu.yaml" in run(recipe, "--dry-run", "--nodes", 1)[1], "this node alone"


def test_every_option_of_train_can_be_passed_on(run: Run, recipe: Path) -> None:
    of_train = {parameter.name for parameter in cli.commands["train"].params if parameter.param_type_name == "option"}
    assert of_train == set(PASSED_ON)
    for name in PASSED_ON:
        if name != "resume":  # there is nothing to go on from
            option = f"--{name.replace('_', '-')}"
            assert run(recipe, option, "--dry-run")[1].rstrip().endswith(f" {option}")


def test_it_becomes_the_launcher(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *words: became.append(words))
    _, out, _ = run(recipe)
    ((program, words, environment),) = became
    assert program == words[0] == sys.executable
    assert shlex.split(out)[2:] == words
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "240"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.slow
def test_two_processes_train_save_on_sigterm_and_go_on_to_the_end(recipe: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "lora_ft",
        "launch",
        str(recipe),
        "training_args.num_train_epochs=40",
        "--nproc",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([*words, "--auto-resume"], env=environment, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    for line in first.stderr:
        if "a checkpoint after the step" in line:
            break
    first.send_signal(signal.SIGTERM)
    told = first.stderr.read()
    assert first.wait(120) != 0, told
    assert "a checkpoint was saved" in told
    assert list((tmp_path / "run").glob("checkpoint-*/checkpoint.json"))
    again = partial(subprocess.run, [*words, "--auto-resume"], env=environment, capture_output=True, text=True)
    assert "adapter: " in again().stdout
    assert "finished already: " in again().stdout
