"""What ends a run from outside it is one message, with an exit code, and leaves no half-written adapter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import SafetensorError

from lora_ft.adapters import folder as adapter_folder
from lora_ft.cli.main import by_process
from lora_ft.data.filled import FilledRows
from lora_ft.errors import DataError, RunError
from lora_ft.train.failures import in_short, lost_contact, worker_told
from lora_ft.train.run import RunOptions, train
from lora_ft.train.trainer import AdapterTrainer
from tests.toy import read, write_recipe
from tests.train.failing import run_failing

ROOT = Path(__file__).parents[2]
CPU = ROOT / "launch" / "accelerate" / "cpu.yaml"
SAVED = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "no", "num_train_epochs": 1}
GOES_ON = "the newest whole checkpoint is checkpoint-4: the same command with --auto-resume goes on from it"


def failed(folder: Path, base: Path, **arguments: Any) -> str:
    """The message of a run of one process; nothing of an adapter is left."""
    recipe = write_recipe(folder, base, training_args={**SAVED, **arguments}, checks={"worst-batch-first": False})
    with pytest.raises(RunError) as caught:
        train(read(recipe), RunOptions())
    assert not list((folder / "run").glob("adapter")) + list((folder / "run").glob(".adapter*"))
    return str(caught.value)


def test_too_little_memory_in_the_middle_of_a_run_says_how_large_the_batch_was_and_what_needs_less(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = AdapterTrainer.compute_loss

    def compute_loss(trainer: AdapterTrainer, *arguments: Any, **named: Any) -> Any:
        if trainer.state.global_step == 5:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you")
        return whole(trainer, *arguments, **named)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", compute_loss)
    told = failed(tmp_path, tiny_bert)
    assert told.startswith("memory: too small at step 6, forward and backward, a batch of 8 rows x ")
    assert re.search(r" tokens \(.*this process holds [\d.]+ .*of the machine's ", told), told
    assert "per_device_train_batch_size: 4 and training_args.gradient_accumulation_steps: 2 (a step still" in told
    assert "processor.max_length below 32" in told and told.endswith(GOES_ON)


def test_a_disk_that_is_full_when_the_adapter_is_written_is_one_message(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors: Any, file: Path, **named: Any) -> None:
        Path(file).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(adapter_folder, "save_file", save_file)
    told = failed(tmp_path, tiny_bert)
    assert "the disk is full (" in told and "MB are free there): make room. No adapter was written; " in told
    assert "checkpoint-16: the same command with --auto-resume" in told


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bad_row() -> None:
    raise DataError("row 5 of the split: sound.wav breaks off after 3 s")


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (
            kill_worker,
            ". Most often memory was short: set training_args.dataloader_num_workers to less, or to 0. No ad",
        ),
        (bad_row, "a row could not be read: row 5 of the split: sound.wav breaks off after 3 s. Mend or remove it. "),
    ],
)
def test_a_worker_that_fails_is_told_in_a_line(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[[], None], told: str
) -> None:
    whole, within = FilledRows.__getitems__, torch.utils.data.get_worker_info

    def getitems(rows: FilledRows, keys: Any) -> Any:
        if within() is not None:
            does()
        return whole(rows, keys)

    monkeypatch.setattr(FilledRows, "__getitems__", getitems)
    said = failed(tmp_path, tiny_bert, dataloader_num_workers=1)
    assert told in said and "\n" not in said
    assert said.startswith("a ")  # worker that reads rows ended, or row could not be read


def test_what_torch_says_of_a_worker_is_cut_to_its_last_line() -> None:
    long = "Caught UnidentifiedImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):"
    error = OSError(f'{long}\n  File "x.py", line 3\nPIL.UnidentifiedImageError: cannot identify image file b.png\n')
    told = "a row could not be read: UnidentifiedImageError: cannot identify image file b.png. Mend or remove it"
    assert worker_told(error) == told


def test_errors_of_gloo_are_known_from_others() -> None:
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3012"
    assert lost_contact(RuntimeError(gloo)) and lost_contact(torch.distributed.DistNetworkError("gone"))
    assert not lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert in_short("disk full: make room. Go on\nand on") == "disk full: make room"


def test_of_several_processes_one_says_all_and_the_others_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, same = DataError("rows.csv: no rows\nexpected: text, label"), RunError("disk full")
    assert by_process(str(wrong), wrong) == "rows.csv: no rows\nexpected: text, label"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert by_process(str(wrong), wrong) == "[rank 3] rows.csv: no rows\nexpected: text, label"
    assert by_process(str(same), same) == "[rank 3] disk full"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert by_process(str(wrong), wrong) == "[rank 3] rows.csv: no rows"
    same.told_by = 0
    assert by_process(str(same), same) == "[rank 3] ended as well: see rank 0"


def two(folder: Path, base: Path, *names: str) -> dict[str, dict[str, Any]]:
    """What runs of two processes said that fail in one way each."""
    arguments = {**SAVED, "num_train_epochs": 2, "per_device_train_batch_size": 4, "ddp_timeout": 6}
    jobs = [
        {"name": name, "world": 2, "recipe": write_recipe(
            folder / name, base, training_args=arguments, checks={"worst-batch-first": False}
        )}
        for name in names
    ]  # fmt: skip
    found = run_failing(jobs, folder=folder / "logs")
    for name in names:
        assert not list((folder / name / "run").glob("*adapter*")), name
        assert all("Traceback" not in log for log in found[name]["logs"]), found[name]["logs"]
        assert found[name]["codes"][0] == 1, found[name]
    return found


def last_lines(log: str) -> list[str]:
    """What a rank said once it had failed."""
    return log[log.rindex("[rank ") :].strip().splitlines()


def test_a_process_that_is_killed_or_hangs_ends_the_other_with_one_message(tmp_path: Path, tiny_bert: Path) -> None:
    found = two(tmp_path, tiny_bert, "killed", "hanging")
    killed, pid = found["killed"], found["killed"]["pids"][1]
    assert killed["codes"] == [1, -9] and killed["after_s"] < 5
    (told,) = last_lines(killed["logs"][0])
    assert told.startswith("[rank 0] rank 1 (") and f", pid {pid}) ended without a word while rank 0 was at " in told
    assert told.endswith(GOES_ON)
    hanging = found["hanging"]
    assert hanging["codes"] == [1, 1] and 3 < hanging["after_s"] < 20
    both = "".join(hanging["logs"])
    assert both.count("] hanging: rank 1 (") == 1, both  # the other may quote it in its line
    assert "it stands at step 6, forward and backward\n" in both and "sleep_in_a_layer: time.sleep(1000)" in both
    assert both.count(GOES_ON) == 1


@pytest.mark.slow
def test_one_message_of_the_process_that_failed_and_a_line_of_the_other(tmp_path: Path, tiny_bert: Path) -> None:
    begins = {"nan": "loss: not finite at or shortly before step 6", "memory": "memory: too small at step 6, ",
              "disk": "events.out.tfevents: the disk is full ("}  # fmt: skip
    found = two(tmp_path, tiny_bert, *begins, "stopped")
    for name, begin in begins.items():
        assert found[name]["codes"] == [1, 1] and found[name]["after_s"] < 5
        (short,), (whole,) = map(last_lines, found[name]["logs"])
        assert whole.startswith(f"[rank 1] {begin}"), whole
        assert short.startswith("[rank 0] ended, because rank 1 (") and f" ended: {begin}" in short, short
    stopped = last_lines(found["stopped"]["logs"][0])
    assert (
        stopped[0].startswith("[rank 0] hanging: rank 1 (") and "does not answer any more: it was stopped" in stopped[0]
    )


@pytest.mark.slow
def test_under_a_launcher_the_others_say_why_and_no_process_is_left(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, training_args={**SAVED, "num_train_epochs": 400})
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CPU), "-m", "lora_ft"]
    started = subprocess.Popen(
        [*command, "train", str(recipe)], env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    launcher = psutil.Process(started.pid)
    assert started.stdout is not None
    said = [next(line for line in started.stdout if "on SIGINT, SIGTERM or SIGUSR1" in line)]
    ranks = [one for one in launcher.children(recursive=True) if one.environ().get("RANK") == "1"]
    processes = launcher.children(recursive=True)
    ranks[0].kill()
    out, _ = started.communicate(timeout=60)
    said.append(out)
    assert started.returncode not in (0, None)
    assert "".join(said).count(f"pid {ranks[0].pid}) ended without a word while rank 0 was at ") == 1, out
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert gone and not alive
