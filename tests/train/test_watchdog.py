"""Who stands furthest behind in a run that hangs, and that a slow process is not taken for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_ft.train.standing import Standing
from lora_ft.train.watchdog import Seen, Watchdog, hanging_told


def seen(rank: int, *, marks: int = 9, waits: bool = False, still_s: float = 20.0, stack: str = "") -> Seen:
    return Seen(
        rank, f"n{rank}", 100 + rank, "n", marks=marks, where=f"step 3, mark {marks}", still_s=still_s, waits=waits,
        stack=stack,
    )  # fmt: skip


def test_the_process_that_has_done_least_is_named_with_its_stack() -> None:
    ranks = {0: seen(0, marks=12), 1: seen(1, marks=11, stack="model.py:7 forward: slow()"), 2: seen(2, marks=12)}
    first, second, *others = hanging_told(ranks, silent={1: 0.5, 2: 0.5}, beat_s=1.0).splitlines()
    told = "hanging: rank 1 (n1, pid 101) has made no progress for 20 s; it stands at step 3, mark 11"
    assert (first, second) == (told, "  model.py:7 forward: slow()")
    assert [line.split(" (")[0] for line in others] == ["  rank 0", "  rank 2"]


def test_of_processes_that_have_done_as_much_one_that_does_not_wait_for_others_is_behind() -> None:
    told = hanging_told({0: seen(0, waits=True, still_s=30), 1: seen(1)}, silent={1: 0.5}, beat_s=1.0)
    assert told.startswith("hanging: rank 1 ")
    assert "rank 0 (n0, pid 100): step 3, mark 9, waits for the others" in told


def test_a_process_that_no_longer_speaks_is_behind_whatever_it_said_last() -> None:
    told = hanging_told({0: seen(0, marks=3), 1: seen(1, marks=5)}, silent={1: 25.0}, beat_s=1.0)
    assert told.startswith("hanging: rank 1 (n1, pid 101) does not answer any more: it was stopped, or its machine")
    assert "it stood at step 3, mark 5 25 s ago" in told


def test_where_a_process_stands_names_step_and_batch_of_the_last_mark() -> None:
    standing = Standing()
    assert standing.where == "preparing"
    standing.at("forward and backward", step=7)
    standing.takes({"input_ids": torch.zeros(4, 11)})
    assert (standing.where, standing.batch) == ("step 8, forward and backward", "4 rows x 11 tokens")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_work_without_a_mark_is_progress_and_one_call_that_lasts_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    ended = threading.Event()

    def end(dog: Watchdog, message: str) -> None:
        told.append(message)
        dog._stopped.set()
        ended.set()

    monkeypatch.setattr(Watchdog, "_end", end)
    dog = Watchdog(Standing(), rank=0, world_size=1, timeout_s=2.0, advice=lambda: "advice")
    dog.start()
    until, counted = time.monotonic() + 2.5, 0
    while time.monotonic() < until:
        counted += sum(number % 7 for number in range(1000))
        counted -= len([number for number in range(1000) if number % 3])
    assert not told
    assert ended.wait(timeout=30)
    assert told[0].startswith("hanging: rank 0 (") and "no progress for" in told[0]
    assert "ended.wait(timeout=30)" in told[0] and told[0].endswith("\nadvice")
    dog.stop()
