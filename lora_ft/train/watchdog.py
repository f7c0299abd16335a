"""Ranks that hang or are gone: who stands where, told in one message before the collectives' own time-out.

Each process posts a line every second to the store at which all met, by a connection of its own:

    {"rank": 1, "host": "n7", "pid": 812, "marks": 96, "where": "step 31, reduction", "still_s": 0.4, "stack": ""}
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch

from lora_ft.train.standing import Standing

BEAT_S = 1.0
GRACE_S = 5.0
"""So long the main thread may take to end by itself once another process has failed."""
MARGIN_S = 60.0
"""So much earlier than torch's time-out a hanging process is told, or a quarter of a shorter one."""
STORE_S = 10.0
ANSWER_S = 5.0
SHOWN_FRAMES = 6
WAITS = ("torch/distributed/", "torch/nn/parallel/distributed.py", "torch/autograd/graph.py")
"""In whose functions a process waits for the others, where no call lies within: collectives, and DDP's."""


@dataclass(frozen=True)
class Seen:
    """What a process said of itself last.

    Attributes:
        rank: Its number.
        host: Its machine.
        pid: Its process there.
        space: The space of process numbers that `pid` is of.
        beat: How often it has spoken.
        marks: How far it has come, in marks.
        where: Where it stands.
        still_s: Seconds since it last moved.
        waits: Whether it waits for the others.
        stack: Of its main thread, the innermost call last; empty while it moves.
        ended: Whether it has left in order.
    """

    rank: int
    host: str
    pid: int
    space: str
    beat: int = 0
    marks: int = 0
    where: str = ""
    still_s: float = 0.0
    waits: bool = False
    stack: str = ""
    ended: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Failure:
    """What the first process that failed said.

    Attributes:
        rank: Its number.
        name: With its machine and process.
        told: Its message.
    """

    rank: int
    name: str
    told: str


class Watchdog:
    """Watches over this process and the others; two daemon threads, as the one that asks the store may get no answer.

    Args:
        standing: Where this process stands.
        rank: Its number.
        world_size: How many there are.
        timeout_s: After so many seconds torch ends a collective.
        advice: What the user is told to do, after a message.
    """

    def __init__(
        self, standing: Standing, *, rank: int, world_size: int, timeout_s: float, advice: Callable[[], str]
    ) -> None:
        self.standing, self.world_size, self.advice = standing, world_size, advice
        self.own = Seen(rank, socket.gethostname(), os.getpid(), _space())
        self.others: dict[int, Seen] = {}
        self.first: Failure | None = None
        self.beat_s = min(BEAT_S, timeout_s / 20)
        self.most_s = timeout_s - min(MARGIN_S, timeout_s / 4)
        self._heard: dict[int, float] = {}  # when each of the others last said something new
        self._claiming: str | None = None
        self._store_gone = False
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._main = threading.main_thread().ident or 0
        self._moved, self._last = time.monotonic(), (0, 0)

    def start(self) -> None:
        """Begins; the process group must be there."""
        store = torch.distributed.distributed_c10d._get_default_store()  # torch (2.13) has no public name for it
        self._store, self._claims = store.clone(), store.clone()  # type: ignore[attr-defined]  # as torch 2.13 has it
        for one in (self._store, self._claims):
            one.set_timeout(timedelta(seconds=STORE_S))
        run = store.add(f"lora_ft/runs/{self.own.rank}", 1)  # one process group may see several runs
        self._keys = [f"lora_ft/{run}/at/{rank}" for rank in range(self.world_size)]
        self._failed = f"lora_ft/{run}/failed"
        self._post(ended=False)
        for work in (self._talk, self._watch):
            self._threads.append(threading.Thread(target=work, name=f"lora_ft{work.__name__}", daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Ends, and tells the others that this process leaves in order."""
        self._stopped.set()
        for thread in self._threads:  # one that still asks the store when Python ends would take the process with it
            thread.join(timeout=2 * STORE_S)
        self._within(lambda: self._post(ended=True, store=self._claims))

    def claim(self, told: str) -> Failure | None:
        """Says that this process failed; what another one said before, or None if this was the first.

        The first waits until the others have heard it: process 0 may hold the store.

        Args:
            told: The whole message.
        """
        mine = Failure(self.own.rank, self.own.name, told)
        self._within(lambda: self._claim(mine))
        return None if self.first in (None, mine) else self.first

    def _claim(self, mine: Failure) -> None:
        said = self._claims.compare_set(self._failed, "", json.dumps(asdict(mine)))
        self.first = Failure(**json.loads(said))
        if self.first != mine:
            return
        dead = self.gone()
        deaf = {self.own.rank} if dead is None else {self.own.rank, dead.rank}
        others = [f"{self._failed}/{rank}" for rank in range(self.world_size) if rank not in deaf]
        until = time.monotonic() + 3 * self.beat_s
        while others and time.monotonic() < until and not self._claims.check(others):
            time.sleep(self.beat_s / 10)

    def _within(self, ask: Callable[[], None]) -> None:
        """Asks the store something, for some seconds: that of a machine which is gone never answers (torch 2.13)."""

        def work() -> None:
            try:
                ask()
            except torch.distributed.DistError:
                self._store_gone = True

        thread = threading.Thread(target=work, name="lora_ft_ask", daemon=True)
        thread.start()
        thread.join(ANSWER_S)

    def why(self, *, most_s: float) -> Failure | Seen | None:
        """What another process failed of, or one that is gone; None if nothing is known after some seconds.

        Args:
            most_s: How long to wait for it.
        """
        until, since = time.monotonic() + most_s, time.monotonic()
        while time.monotonic() < until:
            gone = self.gone()
            if gone is None:
                since = time.monotonic()
            # one that left in order has said so, and it is heard within a beat
            if self.first is not None or time.monotonic() - since > 2 * self.beat_s:
                return self.first or gone
            time.sleep(self.beat_s / 4)
        return None

    def gone(self) -> Seen | None:
        """A process of this machine that is no more and had not left in order."""
        here = [one for one in self.others.values() if one.space == self.own.space and not one.ended]
        return next((one for one in here if not _lives(one.pid)), None)

    def _post(self, *, ended: bool, store: Any = None) -> None:
        frame = sys._current_frames().get(self._main)
        still = time.monotonic() - self._moved
        stack = _stack(frame) if still > self.most_s / 3 else ""
        said = {
            **asdict(self.own), "beat": time.monotonic_ns(), "marks": self.standing.marks,
            "where": self.standing.where, "still_s": still, "waits": _waits(frame), "stack": stack, "ended": ended,
        }  # fmt: skip
        (store or self._store).set(self._keys[self.own.rank], json.dumps(said))

    def _talk(self) -> None:
        """Tells and asks, once a beat."""
        while not self._stopped.wait(self.beat_s):
            try:
                self._post(ended=False)
                if self._claiming is not None:
                    self.claim(self._claiming)
                    self._claiming = None
                if self.first is None and self._store.check([self._failed]):
                    self.first = Failure(**json.loads(self._store.get(self._failed)))
                    self._store.set(f"{self._failed}/{self.own.rank}", "heard")
                if len(self.others) < self.world_size - 1 or time.monotonic() - self._moved > self.most_s / 3:
                    self._listen()
                elif (gone := self.gone()) is not None:
                    self._hear(gone.rank)  # it may have left in order
            except torch.distributed.DistError:
                self._store_gone = True
                return  # process 0 or the launcher holds the store and is gone; the watching thread sees to the rest

    def _listen(self) -> None:
        for rank, key in enumerate(self._keys):
            if rank != self.own.rank and self._store.check([key]):
                self._hear(rank)

    def _hear(self, rank: int) -> None:
        seen = Seen(**json.loads(self._store.get(self._keys[rank])))
        known = self.others.get(rank)
        if known is None or known.beat != seen.beat:
            self._heard[rank] = time.monotonic()
        self.others[rank] = seen

    def _watch(self) -> None:
        """Looks whether the main thread moves, and ends the process where it, or another process, is lost."""
        lost_at: float | None = None
        while not self._stopped.wait(self.beat_s):
            frame = sys._current_frames().get(self._main)
            now = (self.standing.marks, _place(frame))
            if now != self._last:
                self._last, self._moved = now, time.monotonic()
            gone = self.gone()
            if self.first is not None or gone is not None:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > GRACE_S:
                    self._end("" if gone is None else f"{gone.name} ended without a word. {self.advice()}")
            else:
                lost_at = None
            if time.monotonic() - self._moved > self.most_s:
                time.sleep(2 * self.beat_s)  # the others stand still as long, and say so
                self._end(self.hanging())

    def hanging(self) -> str:
        """The message on a run in which nothing moves: who stands furthest behind, where, and where the others are."""
        now = time.monotonic()
        mine = Seen(
            **{
                **asdict(self.own), "marks": self.standing.marks, "where": self.standing.where,
                "still_s": now - self._moved, "waits": _waits(sys._current_frames().get(self._main)),
                "stack": _stack(sys._current_frames().get(self._main)),
            }
        )  # fmt: skip
        silent = {rank: now - heard for rank, heard in self._heard.items()}
        return hanging_told({**self.others, self.own.rank: mine}, silent=silent, beat_s=self.beat_s) + self.advice()

    def _end(self, told: str) -> None:
        """Says it, or that another one has, and ends the process; the launcher ends the others."""
        self._claiming = told or None
        until = time.monotonic() + 6 * self.beat_s
        while self._claiming is not None and not self._store_gone and time.monotonic() < until:
            time.sleep(self.beat_s / 10)
        if self._stopped.is_set():
            return
        if self.first is not None and self.first.rank != self.own.rank:
            told = f"ended as well: see rank {self.first.rank}"
        elif self._store_gone and self.own.rank and self.gone() is None:
            told = "ended as well: rank 0 or the launcher has ended before"
        os.write(2, f"[rank {self.own.rank}] {told}\n".encode())
        os._exit(1)


def hanging_told(seen: Mapping[int, Seen], *, silent: Mapping[int, float], beat_s: float) -> str:
    """What is told of a run that hangs, without advice.

    Args:
        seen: What each process said last.
        silent: Seconds since each of the others last said something.
        beat_s: They speak so often.
    """
    mute = {rank for rank, seconds in silent.items() if seconds > 4 * beat_s + 1}
    order = sorted(seen.values(), key=lambda one: (one.rank not in mute, one.waits, one.marks, -one.still_s))
    behind = order[0]
    if behind.rank in mute:
        told = f"{behind.name} does not answer any more: it was stopped, or its machine is gone; it stood at "
        told += f"{behind.where or 'its beginning'} {silent[behind.rank]:.0f} s ago"
    else:
        told = f"{behind.name} has made no progress for {behind.still_s:.0f} s; it stands at {behind.where}"
    lines = [f"hanging: {told}", *(f"  {line}" for line in behind.stack.splitlines())]
    lines += [f"  {one.name}: {one.where}{', waits for the others' if one.waits else ''}" for one in order[1:9]]
    return "\n".join(lines) + "\n"


def _stack(frame: FrameType | None) -> str:
    """The innermost calls of a thread, a line each."""
    calls = traceback.extract_stack(frame)[-SHOWN_FRAMES:] if frame is not None else []
    return "\n".join(f"{Path(call.filename).name}:{call.lineno} {call.name}: {call.line}" for call in calls)


def _waits(frame: FrameType | None) -> bool:
    """Whether the innermost call of a thread is one that waits for other processes."""
    return frame is not None and any(part in frame.f_code.co_filename for part in WAITS)


def _place(frame: FrameType | None) -> int:
    """A number that changes when a thread moves on."""
    places = []
    while frame is not None:
        places.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return hash(tuple(places))


def _lives(pid: int) -> bool:
    """Whether a process is there, and is not only waiting for its parent to notice its end."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _space() -> str:
    """What tells apart process numbers of machines and of containers."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space.stat().st_ino if space.exists() else ''}"
