"""Which adapters of a pool are in memory: loaded once, the least recently used out first, never one that is in use."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_ft.adapters.pool_folder import Identity, identity_of
from lora_ft.adapters.pool_tensors import PoolTensors, expected_bytes
from lora_ft.adapters.verify import resolve_adapter
from lora_ft.errors import AdapterError, InputError, closest

NAME = re.compile(r"[^/\\\x00-\x1f]+")


@dataclass(frozen=True)
class PoolLimits:
    """How much a pool may hold; None: no limit but the memory that is there.

    Attributes:
        max_adapters: Adapters.
        max_bytes: Bytes of their tensors.
    """

    max_adapters: int | None = None
    max_bytes: int | None = None


@dataclass(eq=False)
class Entry:
    """One known adapter.

    Attributes:
        folder: Where it lies.
        identity: Of the folder when it was proved; None: not yet, or being loaded.
        by_row: Whether it can share a pass with others; found out by its proof.
        tensors: Its tensors; None while it is not loaded.
        bytes: What they take, or took when they were loaded; 0: never yet.
        pinned: Whether it may not go.
        leases: Passes that it is in just now.
    """

    folder: Path
    identity: Identity | None = None
    by_row: bool = True
    tensors: PoolTensors | None = None
    bytes: int = 0
    pinned: bool = False
    leases: int = 0


class PoolStore:
    """Known adapters, and those of them in memory.

    Attributes:
        changed: Told whenever an adapter is no longer in use; its lock guards everything here.
        loading: Held by the one thread that loads; taken before the other lock.
    """

    def __init__(
        self,
        *,
        read: Callable[[Path], PoolTensors],
        prove: Callable[[str, Path], bool],
        free_bytes: Callable[[], int],
        limits: PoolLimits,
    ) -> None:
        """Stores what it is given.

        Args:
            read: Reads the tensors of a folder.
            prove: Called with name and folder before an adapter is first used, and again when its folder has changed.
            free_bytes: How much memory is left where the tensors go.
            limits: How much may be in memory.
        """
        self._read, self._prove, self._free_bytes, self._limits = read, prove, free_bytes, limits
        self._entries: dict[str, Entry] = {}
        self._loaded: OrderedDict[str, Entry] = OrderedDict()
        self._mine: list[Entry] = []
        self.changed = threading.Condition(threading.RLock())
        self.loading = threading.RLock()

    def add(self, name: str, folder: Path, *, pin: bool) -> None:
        """Makes an adapter known.

        Raises:
            InputError: The name is taken, empty, or has characters of a path.
            AdapterError: There is no adapter.
        """
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise InputError(f"pool: {name!r} cannot be the name of an adapter. Expected one without / and \\.")
        found = resolve_adapter(folder)
        with self.changed:
            if name in self._entries:
                raise InputError(
                    f"pool: there is an adapter {name!r} already ({self._entries[name].folder}). Choose another name, "
                    "or remove that one first."
                )
            self._entries[name] = Entry(folder=found, pinned=pin)

    def remove(self, name: str) -> None:
        """Forgets an adapter; waits for one that is just being loaded.

        Raises:
            InputError: It is not known, or in use.
        """
        with self.loading, self.changed:
            if self.entry(name).leases:
                raise InputError(f"pool: {name!r} is in use. Remove it when its rows are answered.")
            del self._entries[name]
            self._unload(name)

    def clear(self) -> None:
        """Forgets everything."""
        with self.changed:
            self._entries.clear()
            self._loaded.clear()

    def entry(self, name: str) -> Entry:
        """What is known of an adapter.

        Raises:
            InputError: It is not known.
        """
        with self.changed:
            if name not in self._entries:
                near = closest(name, list(self._entries))
                raise InputError(f"pool: there is no adapter {name!r}.{near} It has {len(self._entries)}.")
            return self._entries[name]

    def names(self) -> list[str]:
        """All known adapters, in the order they were added."""
        with self.changed:
            return list(self._entries)

    def loaded(self) -> list[str]:
        """Those in memory, the least recently used first."""
        with self.changed:
            return list(self._loaded)

    def loaded_bytes(self) -> int:
        """What the adapters in memory take."""
        with self.changed:
            return sum(entry.bytes for entry in self._loaded.values())

    def room(self) -> int | None:
        """How many different adapters one pass may have beside the pinned ones; None: any number."""
        most, limit = self._limits.max_adapters, self._limits.max_bytes
        with self.changed:
            pinned = [entry.bytes for entry in self._entries.values() if entry.pinned]
            largest = max((entry.bytes for entry in self._entries.values()), default=0)
        rooms = [most - len(pinned)] if most is not None else []
        rooms += [(limit - sum(pinned)) // largest] if limit is not None and largest else []
        return max(1, min(rooms)) if rooms else None

    @contextmanager
    def lease(self, names: Sequence[str]) -> Iterator[Mapping[str, PoolTensors]]:
        """The tensors of some adapters, none of which goes while they are in use.

        All are taken at once, or one thread loads what is missing while the others wait: two requests that each hold
        half of what the other one needs cannot be.
        """
        leased = self._take_all(names)
        try:
            if leased is None:
                leased = []
                with self.loading:
                    self._load_all(names, into=leased)
            yield {name: _tensors(entry) for name, entry in zip(names, leased, strict=True)}
        finally:
            with self.changed:
                for entry in leased or ():
                    entry.leases -= 1
                self.changed.notify_all()

    def ready(self, name: str) -> None:
        """Loads an adapter that is not in memory; proves it first where its folder is not the one proved before."""
        with self.loading:
            entry = self.entry(name)
            if entry.tensors is not None:
                return
            identity = identity_of(entry.folder)
            proved, entry.identity = entry.identity == identity, None
            if not proved:
                entry.by_row = True
                entry.by_row = self._prove(name, entry.folder)
            if entry.tensors is None:
                self._load(name, entry)
            if identity_of(entry.folder) != identity:
                with self.changed:
                    self._unload(name)
                raise AdapterError(f"{entry.folder}: was changed while it was loaded. Ask for it again.")
            entry.identity = identity

    @contextmanager
    def on_trial(self, name: str) -> Iterator[None]:
        """Loads an adapter for its proof; it goes again if the proof fails.

        Raises:
            AdapterError: It cannot be pooled, or there is no room for it.
            AdapterRefused: It does not fit the base.
        """
        self._load(name, self.entry(name))
        passed = False
        try:
            yield
            passed = True
        finally:
            if not passed:
                with self.changed:
                    self._unload(name)

    def _take_all(self, names: Sequence[str]) -> list[Entry] | None:
        """Keeps proved adapters from going, if all of them are in memory."""
        with self.changed:
            entries = [self.entry(name) for name in names]
            if any(entry.tensors is None or entry.identity is None for entry in entries):
                return None
            for name, entry in zip(names, entries, strict=True):
                entry.leases += 1
                self._loaded.move_to_end(name)
            return entries

    def _load_all(self, names: Sequence[str], *, into: list[Entry]) -> None:
        """Takes one after the other, loading what is missing."""
        before = len(self._mine)
        try:
            for name in names:
                self.ready(name)
                with self.changed:
                    entry = self.entry(name)
                    entry.leases += 1
                    self._loaded.move_to_end(name)
                    into.append(entry)
                    self._mine.append(entry)
        finally:
            del self._mine[before:]

    def _load(self, name: str, entry: Entry) -> None:
        """Makes room and reads the tensors."""
        with self.changed:
            self._make_room(name, expected_bytes(entry.folder))
        tensors = self._read(entry.folder)
        with self.changed:
            entry.tensors, entry.bytes = tensors, tensors.bytes
            self._loaded[name] = entry

    def _make_room(self, name: str, size: int) -> None:
        """Lets the least recently used go until another one fits; waits for adapters that other threads use."""
        most, limit = self._limits.max_adapters, self._limits.max_bytes
        if limit is not None and size > limit:
            raise AdapterError(
                f"pool: {name!r} takes {size / 1e6:.2f} MB, the pool may hold {limit / 1e6:.2f} MB. Raise max_bytes."
            )
        while (most is not None and len(self._loaded) >= most) or (
            limit is not None and self.loaded_bytes() + size > limit
        ):
            idle = next((one for one, entry in self._loaded.items() if not entry.leases and not entry.pinned), None)
            if idle is not None:
                self._unload(idle)
            elif any(entry.leases > self._mine.count(entry) and not entry.pinned for entry in self._loaded.values()):
                self.changed.wait()
            else:
                raise AdapterError(
                    f"pool: no room for {name!r}: all {len(self._loaded)} adapters in memory are pinned or wanted by "
                    f"the same batch (limits: {most} adapters, {limit} bytes). Raise a limit, unpin one, or ask for "
                    "fewer at once."
                )
        free = self._free_bytes()
        if size > free:
            raise AdapterError(
                f"pool: {name!r} takes {size / 1e6:.2f} MB, {free / 1e6:.2f} MB of memory are free. Set max_bytes or "
                "max_adapters, so that others go first."
            )

    def _unload(self, name: str) -> None:
        gone = self._loaded.pop(name, None)
        if gone is not None:
            gone.tensors = None


def _tensors(entry: Entry) -> PoolTensors:
    assert entry.tensors is not None, "a leased entry has tensors"
    return entry.tensors
