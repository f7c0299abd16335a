"""SIGINT, SIGTERM and SIGUSR1: the run ends in order at the next safe point; a second signal ends it at once."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from lora_ft.errors import Interrupted

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_S = 2.0
"""Signals so near to the first are the same one: a launcher hands on what a terminal or Slurm has sent already."""


class Stopped(KeyboardInterrupt):
    """A signal where there is nothing to save; like Ctrl-C it passes by whatever catches errors.

    Args:
        number: The signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Interruption:
    """Takes the signals of a run over, and gives them back at its end.

    Outside of `deferred` a signal ends what is being done, as Ctrl-C does: there is nothing to save yet. Within, it is
    only remembered, and whoever reaches a safe point asks for it.

    Attributes:
        received: The first signal that came; None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._deferred = self._unheard = False
        self._before: dict[signal.Signals, Any] = {}
        self._told, self._told_before = -1, -1
        self._process = os.getpid()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self._listen()
            for number in SIGNALS:
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals wait for a safe point."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Within, signals are dropped: the run is ending, and a launcher that sees another process end sends one."""
        self._unheard = True
        try:
            yield
        finally:
            self._unheard = False

    @property
    def waited_s(self) -> float:
        """Seconds since the signal came."""
        return time.monotonic() - self._at

    def ended(self, told: str) -> Interrupted:
        """The error that ends the run, with the exit code of its signal.

        Args:
            told: Where the run stands, and how to go on.
        """
        name = self.received.name if self.received is not None else "another process got a signal"
        return Interrupted(f"{name}: {told}", exit_code=exit_code(self.received))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, whose end is its parent's business
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self._unheard:
            return
        if self.received is not None:
            if self.waited_s >= SAME_S:
                self._give_back()
                signal.raise_signal(number)
            return
        self.received, self._at = signal.Signals(number), time.monotonic()
        if not self._deferred:
            raise Stopped(self.received)
        if logger.isEnabledFor(logging.INFO):
            # written past Python's buffers: a handler may run in the middle of a print
            told = f"{self.received.name}: ends at the next safe point, nothing will be lost; once more ends at once\n"
            os.write(2, told.encode())

    def _listen(self) -> None:
        """Has a thread of its own hear signals too: the main thread hears none while it waits in a library's code."""
        heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        self._told_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_the_second, args=(heard,), name="lora_ft_signals", daemon=True).start()

    def _give_back(self) -> None:
        if self._before:
            signal.set_wakeup_fd(self._told_before)
            os.close(self._told)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _end_at_the_second(heard: int) -> None:
    """Ends the process where a signal comes `SAME_S` after the first or later, and the main thread does not see to it.

    Args:
        heard: The end of a pipe that Python writes a byte to for each signal, whatever the main thread does; it is
            closed as soon as nobody is to be ended any more.
    """
    first: float | None = None
    while number := os.read(heard, 1):
        if number[0] not in SIGNALS:
            continue
        first = first or time.monotonic()
        if time.monotonic() - first >= SAME_S:
            told, _, _ = select.select([heard], [], [], SAME_S)
            if told and not os.read(heard, 1):
                break  # the main thread heard it, and has given the signals back
            os._exit(exit_code(signal.Signals(number[0])))
    os.close(heard)


def exit_code(number: signal.Signals | None) -> int:
    """128 + the signal, as shells have it; SIGUSR1, with which schedulers announce the end, counts as SIGTERM."""
    return 128 + (signal.SIGINT if number is signal.SIGINT else signal.SIGTERM)
