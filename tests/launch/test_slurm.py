"""The batch script under bash, with a srun and a scontrol that write down how they were called."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.toy import write_recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
STEP = ["--ntasks-per-node=1", "--kill-on-bad-exit=0", "--wait=600", "lora-ft", "launch"]

SRUN = """#!{python}
import json, os, signal, subprocess, sys
words = sys.argv[1:]
with open("{log}", "a") as log:
    print(json.dumps(["srun", *words]), file=log)
mode = os.environ.get("FAKE_SRUN", "done")
if mode == "launch":  # as srun does: the command once on each node
    nodes = os.environ["SLURM_JOB_NUM_NODES"]
    for rank in range(int(nodes)):
        own = {{"SLURM_STEP_NUM_NODES": nodes, "SLURM_STEP_NUM_TASKS": nodes, "SLURM_PROCID": str(rank),
               "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"]}}
        command = [sys.executable, "-m", "lora_ft", *words[words.index("lora-ft") + 1:], "--dry-run"]
        subprocess.run(command, env={{**os.environ, **own}}, check=True)
elif mode == "fails":
    sys.exit(1)
elif mode == "waits":
    def end(number, frame):
        with open("{log}", "a") as log:
            print(json.dumps(["signal", signal.Signals(number).name]), file=log)
        sys.exit(int(os.environ.get("FAKE_CODE", "1")))
    signal.signal(signal.SIGTERM, end)
    open("{started}", "w").close()
    while True:
        signal.pause()
"""
SCONTROL = """#!{python}
import json, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print("gpu03\\ngpu07")
else:
    with open("{log}", "a") as log:
        print(json.dumps(["scontrol", *sys.argv[1:]]), file=log)
"""


@dataclass
class Cluster:
    """A PATH with the fakes, and what they wrote."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bin_folder = self.folder / "bin"
        bin_folder.mkdir()
        self.log, self.started = self.folder / "log", self.folder / "started"
        os.mkfifo(self.started)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("nvidia-smi", "#!/bin/sh\nexit 6\n")):
            program = bin_folder / name
            program.write_text(text.format(python=sys.executable, log=self.log, started=self.started), encoding="utf-8")
            program.chmod(0o755)
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM", "OMP", "PET_", "TORCH_ELASTIC"))
        }
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "4211"}

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def run(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *map(str, words)], env={**self.environment, **variables},
            cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def interrupted(self, number: signal.Signals, **variables: str) -> tuple[int, list[list[str]]]:
        """Runs a step that waits, sends the shell a signal once it does, and gives exit code and calls."""
        shell = subprocess.Popen(
            ["bash", str(SCRIPT), "a.yaml"], env={**self.environment, "FAKE_SRUN": "waits", **variables},
            cwd=self.folder, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            with self.started.open():  # waits until the step has opened the other end
                shell.send_signal(number)
            return shell.wait(30), self.calls()[1:]
        finally:
            with contextlib.suppress(ProcessLookupError):  # as it should be: nothing is left of the group
                os.killpg(shell.pid, signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_one_node_gets_one_launcher_and_the_words_untouched(cluster: Cluster) -> None:
    words = ["my runs/a.yaml", "training_args.learning_rate=3e-4", 'dataset.label_delimiter="|"', "x=$HOME a"]
    assert cluster.run(*words).returncode == 0
    assert cluster.calls() == [["srun", "--nodes=1", "--ntasks=1", *STEP, *words, "--auto-resume"]]


def test_two_nodes_meet_at_the_first_one_at_a_port_of_the_job(cluster: Cluster) -> None:
    assert cluster.run("a.yaml", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="gpu[03,07]").returncode == 0
    assert cluster.calls() == [
        ["srun", "--nodes=2", "--ntasks=2", *STEP, "a.yaml", "--auto-resume", "--head", "gpu03:19211"]
    ]


@pytest.mark.parametrize(("gpus", "configuration", "each"), [("8", "multi_node", 8), ("", "cpu_nodes", 1)])
def test_every_node_becomes_the_launcher_of_its_rank(
    cluster: Cluster, tiny_bert: Path, gpus: str, configuration: str, each: int
) -> None:
    recipe = write_recipe(cluster.folder, tiny_bert, training_args={"use_cpu": not gpus})
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[03,07]", "SLURM_CPUS_PER_TASK": "1"}
    hidden = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(8)))} if gpus else {}
    done = cluster.run(
        recipe, "training_args.seed=7", FAKE_SRUN="launch", SLURM_GPUS_ON_NODE=gpus, **variables, **hidden
    )
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in done.stdout.splitlines() if "accelerate.commands.launch" in line]
    for rank, words in enumerate(commands):
        threads = [] if gpus else ["--num_cpu_threads_per_process", "1"]
        assert words[3:] == [
            "-m", "accelerate.commands.launch", "--config_file", str(ROOT / f"launch/accelerate/{configuration}.yaml"),
            "--num_processes", str(2 * each), "--num_machines", "2", "--machine_rank", str(rank),
            "--main_process_ip", "gpu03", "--main_process_port", "19211", *threads,
            "-m", "lora_ft", "train", str(recipe), "training_args.seed=7", "--auto-resume",
        ]  # fmt: skip
    assert len(commands) == 2


def test_each_task_of_an_array_takes_its_own_recipe_and_all_overrides(cluster: Cluster) -> None:
    words = ["a.yaml", "b.yml", "training_args.seed=7"]
    assert cluster.run(*words, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="4210").returncode == 0
    assert cluster.calls()[0][4:] == ["--kill-on-bad-exit=0", "--wait=600", "lora-ft", "launch", "b.yml", words[2],
                                      "--auto-resume"]  # fmt: skip


def test_each_task_of_an_array_takes_its_own_line_of_a_list(cluster: Cluster) -> None:
    lines = ["a.yaml", "'my b.yaml' training_args.seed=7 'dataset.label_delimiter=\"|\"'"]
    (cluster.folder / "list").write_text("\n".join(lines), encoding="utf-8")
    assert cluster.run("--list", "list", "offline=true", SLURM_ARRAY_TASK_ID="1").returncode == 0
    assert cluster.calls()[0][8:] == [
        "my b.yaml", "training_args.seed=7", 'dataset.label_delimiter="|"', "offline=true", "--auto-resume"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "task", "told"),
    [
        ([], "", "expected RECIPE"),
        (["training_args.seed=7"], "", "expected RECIPE"),
        (["a.yaml", "b.yaml"], "", "2 recipes: expected one, or --array=0-1"),
        (["a.yaml", "b.yaml"], "2", "array task 2 of 2 recipes: expected --array=0-1"),
        (["--list", "none"], "0", "--list none: there is no such file"),
        (["--list", "list"], "", "--list list: it is for arrays"),
        (["--list", "list"], "5", "--list list: array task 5 has no line 6"),
    ],
)
def test_a_wrong_command_line_ends_before_a_step(cluster: Cluster, words: list[str], task: str, told: str) -> None:
    (cluster.folder / "list").write_text("a.yaml\n", encoding="utf-8")
    done = cluster.run(*words, **({"SLURM_ARRAY_TASK_ID": task} if task else {}))
    assert done.returncode == 2
    assert f"train.sbatch: {told}" in done.stderr
    assert not cluster.log.exists()


def test_when_time_runs_out_the_step_is_ended_and_the_job_queued_again(cluster: Cluster) -> None:
    assert cluster.interrupted(signal.SIGUSR1) == (1, [["signal", "SIGTERM"], ["scontrol", "requeue", "4211"]])


def test_of_an_array_only_this_task_is_queued_again(cluster: Cluster) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "4210"}
    assert cluster.interrupted(signal.SIGUSR1, **array)[1] == [["signal", "SIGTERM"], ["scontrol", "requeue", "4210_0"]]


def test_a_run_that_ended_just_in_time_is_not_queued_again(cluster: Cluster) -> None:
    assert cluster.interrupted(signal.SIGUSR1, FAKE_CODE="0") == (0, [["signal", "SIGTERM"]])


def test_a_job_that_is_cancelled_or_preempted_is_not_queued_by_us(cluster: Cluster) -> None:
    assert cluster.interrupted(signal.SIGTERM) == (1, [["signal", "SIGTERM"]])


def test_a_run_that_fails_is_not_queued_again(cluster: Cluster) -> None:
    assert cluster.run("a.yaml", FAKE_SRUN="fails").returncode == 1
    assert [call[0] for call in cluster.calls()] == ["srun"]
