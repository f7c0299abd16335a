"""Checkpoints are written at once or not at all, found whole or not used, and none goes before a newer one is there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from lora_ft.errors import AdapterError, InputError, Interrupted, RunError
from lora_ft.train import checkpoint_folder, resumable, run_lock
from lora_ft.train.agreement import Agreement
from lora_ft.train.checkpoint_folder import prune, write_checkpoint
from lora_ft.train.checkpoints import Start, digest_of, read_checkpoint, where_to_start
from lora_ft.train.interrupt import SAME_S, Interruption, Stopped
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe


def write(run: Path, step: int, *, best_step: int | None = None) -> Path:
    """A checkpoint of two files."""

    def fill(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
        (folder / "optimizer.pt").write_bytes(b"moments" * 100)
        (folder / "recipe.yaml").write_text(
            (run.parent / "resolved.yaml").read_text(encoding="utf-8"), encoding="utf-8"
        )

    target = run / f"checkpoint-{step}"
    write_checkpoint(target, fill, step=step, best_step=best_step, run={"world_size": 1})
    return target


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path) -> Any:
    from lora_ft.recipe.write import resolved_yaml

    made = read(write_recipe(tmp_path, tiny_bert))
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(made), encoding="utf-8")
    return made


def start(recipe: Any, *, resume: bool = False, auto_resume: bool = True) -> Start:
    return where_to_start(recipe, resume=resume, auto_resume=auto_resume, overwrite=False)


def test_the_newest_whole_checkpoint_is_the_start_and_its_record_comes_back(tmp_path: Path, recipe: Any) -> None:
    for step in (8, 16, 9):
        write(tmp_path / "run", step, best_step=8)
    found = start(recipe).checkpoint
    assert found is not None
    assert (found.step, found.best_step, found.folder.name) == (16, 8, "checkpoint-16")
    assert found.run == {"world_size": 1}
    assert found.has_optimizer
    assert start(recipe).told == ()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"moments" * 99), "optimizer.pt is not what was written"),
        (lambda folder: flip(folder / "optimizer.pt"), "optimizer.pt is not what was written"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "checkpoint.json is missing: it was never finished"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json cannot be read"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "checkpoint.json cannot be read"),
        (lambda folder: changed(folder / "checkpoint.json"), "checkpoint.json was changed after it was written"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one_and_the_user_is_told(
    tmp_path: Path, recipe: Any, damage: Any, told: str
) -> None:
    write(tmp_path / "run", 8)
    damage(write(tmp_path / "run", 16))
    found = start(recipe)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 8
    assert found.told[0].startswith(f"damaged: checkpoint-16: {told}")
    assert len(found.told) == 1
    assert [path.name for path in found.damaged] == ["checkpoint-16"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def changed(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace('"world_size": 1', '"world_size": 2'), encoding="utf-8")


def test_whole_checkpoints_whose_best_one_is_damaged_are_neither_used_nor_given_up(tmp_path: Path, recipe: Any) -> None:
    flip(write(tmp_path / "run", 8) / "optimizer.pt")
    write(tmp_path / "run", 16, best_step=8)
    for how in ({"resume": True}, {"auto_resume": True}):
        with pytest.raises(AdapterError, match=r"checkpoint-16 is whole, but its best one is not: checkpoint-8: optim"):
            start(recipe, **how)


def test_a_checkpoint_of_another_version_is_no_damaged_one(tmp_path: Path, recipe: Any) -> None:
    record = write(tmp_path / "run", 8) / "checkpoint.json"
    content = json.loads(record.read_bytes())
    del content["sha256"]
    content["format"] = 7
    record.write_text(json.dumps({**content, "sha256": digest_of(content)}), encoding="utf-8")
    with pytest.raises(InputError, match=r"has format 7, this version of lora_ft reads 1\. Go on with the version"):
        start(recipe)


def test_without_a_word_checkpoints_of_an_earlier_run_are_neither_used_nor_lost(tmp_path: Path, recipe: Any) -> None:
    write(tmp_path / "run", 8)
    with pytest.raises(AdapterError, match=r"newest: checkpoint-8\)\. Add --resume to go on from there"):
        start(recipe, auto_resume=False)
    assert read_checkpoint(tmp_path / "run" / "checkpoint-8").step == 8


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(None, 4, [4, 8, 12, 16]), (2, 4, [4, 16]), (1, 4, [4, 16]), (2, 16, [12, 16]), (3, None, [8, 12, 16])],
)
def test_the_newest_and_the_best_checkpoint_outlive_the_limit(
    tmp_path: Path, recipe: Any, keep: int | None, best: int | None, left: list[int]
) -> None:
    for step in (4, 8, 12, 16):
        write(tmp_path / "run", step)
    (tmp_path / "checkpoint-4.bak").mkdir()
    prune(tmp_path / "run", keep=keep, newest=16, best_step=best)
    names = sorted(int(path.name.rpartition("-")[2]) for path in (tmp_path / "run").iterdir())
    assert names == left


def test_the_best_one_of_a_checkpoint_that_stays_stays_too(tmp_path: Path, recipe: Any) -> None:
    """Or nothing could go on where the newest, a new best one, is damaged."""
    for step, best in ((4, 4), (8, 4), (12, 4), (16, 16)):
        write(tmp_path / "run", step, best_step=best)
    prune(tmp_path / "run", keep=2, newest=16, best_step=16)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-12",
        "checkpoint-16",
        "checkpoint-4",
    ]
    flip(tmp_path / "run" / "checkpoint-16" / "optimizer.pt")
    found = start(recipe).checkpoint
    assert found is not None
    assert found.step == 12


@pytest.mark.parametrize("at", ["adapter_model.safetensors", "optimizer.pt", "recipe.yaml"])
def test_a_full_disk_costs_nothing_but_the_checkpoint(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 2})
    whole = write_checkpoint

    def full(target: Path, fill: Any, **others: Any) -> None:
        def fills(folder: Path) -> None:
            fill(folder)
            if target.name == "checkpoint-32":
                (folder / at).write_bytes(b"")
                raise OSError(errno.ENOSPC, "No space left on device")

        whole(target, fills, **others)

    monkeypatch.setattr(resumable, "write_checkpoint", full)
    with pytest.raises(RunError, match=r"cannot be written: No space left on device \([\d.]+ MB are free there\)\. "
                                       r"checkpoint-16 is whole: make room and go on"):  # fmt: skip
        train(read(file), RunOptions())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-16"]
    monkeypatch.undo()
    assert train(read(file), RunOptions(resume=True)).manifest is not None


def test_signals_that_come_together_are_one_and_a_later_one_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append("at once"))
    try:
        with Interruption() as interruption, interruption.deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert interruption.received is signal.SIGTERM
            assert not ended
            later = time.monotonic() + SAME_S
            monkeypatch.setattr("lora_ft.train.interrupt.time.monotonic", lambda: later)
            signal.raise_signal(signal.SIGTERM)
            assert ended == ["at once"]
        assert interruption.ended("here").exit_code == 143
    finally:
        signal.signal(signal.SIGTERM, before)


STUCK = """
import ctypes
from lora_ft.train import interrupt
interrupt.SAME_S = 0.2
with interrupt.Interruption() as interruption, interruption.deferred():
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(lock)
    print("stuck", flush=True)
    library.pthread_mutex_lock(lock)
"""


def test_a_second_signal_ends_a_process_whose_main_thread_waits_in_a_library() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == "stuck\n"
        stuck.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            stuck.wait(timeout=1)
        stuck.send_signal(signal.SIGTERM)
        assert stuck.wait(timeout=10) == 143


def test_a_signal_before_the_first_step_ends_what_is_being_done() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Stopped, match="SIGUSR1"), Interruption():
        try:
            signal.raise_signal(signal.SIGUSR1)
        except Exception:  # noqa: BLE001  # what libraries do, and must not stop it
            pytest.fail("swallowed")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enters() -> None:
        with Interruption():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enters)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_forked_worker_ignores_ctrl_c_and_dies_of_a_sigterm() -> None:
    with Interruption() as interruption, interruption.deferred():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert interruption.received is None


def test_processes_agree_by_the_sum_of_the_step() -> None:
    agreement = Agreement()
    assert not agreement.said
    agreement.add(torch.tensor(0))
    assert not agreement.said
    agreement.add(torch.tensor(2))
    assert agreement.said


def test_data_preparation_that_is_interrupted_says_so(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ft.train.run.prepare", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM: ended before a step was made; nothing was changed") as told:
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions())
    assert told.value.exit_code == 143
    assert not (tmp_path / "run").exists()


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path, recipe: Any) -> None:
    run = tmp_path / "run"
    flip(write(run, 16) / "optimizer.pt")
    write(run, 8)
    for left in (".checkpoint-24.tmp-1-ab", ".checkpoint-4.gone", ".adapter.tmp-1-ab"):
        (run / left).mkdir()
    (run / "checkpoint-notes.txt").write_text("mine", encoding="utf-8")
    (run / "checkpoint-8.bak").mkdir()
    checkpoint_folder.begin_run_folder(start(recipe), run)
    names = ["checkpoint-8", "checkpoint-8.bak", "checkpoint-notes.txt", "damaged-checkpoint-16"]
    assert sorted(path.name for path in run.iterdir()) == names
    assert json.loads((run / "checkpoint-8" / "checkpoint.json").read_bytes())["step"] == 8


def test_two_runs_do_not_share_a_folder_and_a_run_leaves_no_lock(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.1)
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1})
    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run" / ".lock"):
        (tmp_path / "run" / ".lock").write_text("process 7 on n3", encoding="utf-8")
        with pytest.raises(AdapterError, match=r"another run trains into this folder \(process 7 on n3\)"):
            train(read(file), RunOptions())
    assert train(read(file), RunOptions()).manifest is not None
    assert not list((tmp_path / "run").glob(".*"))
