"""Many adapters on one frozen base: each row of a batch is answered by its own, exactly as if it were alone.

    pool = AdapterPool(model, prove=..., limits=PoolLimits(max_adapters=64))
    pool.add("books", Path("runs/books/adapter"))
    with pool.rows(["books", "dvd", "books", None]) as now:      # None: the bare base
        outputs = model(**now.arrange(batch))
    logits = now.restore(outputs["logits"])                      # in the order asked

Nothing of the base is changed: forward hooks add what each row's adapter adds. A switch is a lookup.
"""

from __future__ import annotations

import copy
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import nn

from lora_ft.adapters.pool_pass import Pass, Stack, add_lora, answer_heads, plan
from lora_ft.adapters.pool_tensors import PoolTensors, read_tensors
from lora_ft.adapters.verify import resolve_adapter
from lora_ft.errors import AdapterError, InputError, RunError, closest

logger = logging.getLogger(__name__)

NAME = re.compile(r"[^/\\\x00-\x1f]+")

Identity = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change in ns and inode of every file of a folder."""


@dataclass(frozen=True)
class PoolLimits:
    """How much a pool may hold; None: no limit but the memory that is there.

    Attributes:
        max_adapters: Adapters.
        max_bytes: Bytes of their tensors.
    """

    max_adapters: int | None = None
    max_bytes: int | None = None


@dataclass
class _Entry:
    """One known adapter.

    Attributes:
        folder: Where it lies.
        identity: Of the folder when it was proved; None: not yet.
        by_row: Whether it can share a pass with others; found out by its proof.
        tensors: Its tensors; None while it is not loaded.
        bytes: What they take, or took when they were loaded; 0: never yet.
        pinned: Whether it may not go.
        users: Passes that it is in just now.
    """

    folder: Path
    identity: Identity | None = None
    by_row: bool = True
    tensors: PoolTensors | None = None
    bytes: int = 0
    pinned: bool = False
    users: int = 0


class _Here(threading.local):
    """The pass of this thread."""

    now: Pass | None = None


class AdapterPool:
    """Adapters of one base, loaded when they are first asked for; the least recently used go first.

    Safe to use from several threads at once: each has its own pass.

    Attributes:
        model: The base, in eval mode; rows are answered by it inside of `rows`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prove: Callable[[AdapterPool, str, Path], bool],
        limits: PoolLimits | None = None,
        one_at_a_time: bool = False,
    ) -> None:
        """Stores what it is given, and keeps a second view of the modules without hooks.

        Args:
            model: The frozen base with its head.
            prove: Called before an adapter is first used, with the pool, its name and its folder: raises if it is not
                whole or not of this base, and says whether its rows can share a pass with others. It may use `rows`.
            limits: How much the pool may hold.
            one_at_a_time: Whether passes of several threads wait for each other (8-bit layers keep a state).
        """
        self.model = model.eval()
        self._prove = prove
        self._limits = limits or PoolLimits()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._untouched: nn.Module = copy.deepcopy(model, shared)
        self._entries: dict[str, _Entry] = {}
        self._loaded: OrderedDict[str, _Entry] = OrderedDict()
        self._hooked: dict[str, torch.utils.hooks.RemovableHandle] = {}
        self._last_stack: tuple[tuple[int, ...], Stack] | None = None
        self._lock = threading.RLock()
        self._loading = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._running = 0
        self._turn: Any = threading.RLock() if one_at_a_time else nullcontext()
        self._here = _Here()
        self._worker: ThreadPoolExecutor | None = None

    def __enter__(self) -> AdapterPool:
        """The pool itself; it is closed at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the hooks off the base."""
        self.close()

    # What is in it

    def add(self, name: str, folder: Path, *, pin: bool = False) -> None:
        """Makes an adapter known; it is read, proved and loaded when it is first used, or by `prefetch`.

        Args:
            name: What rows call it by.
            folder: An adapter folder, or the run folder that holds `adapter/`.
            pin: Whether it may never go.

        Raises:
            InputError: The name is taken, empty, or has characters of a path.
            AdapterError: There is no adapter.
        """
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise InputError(f"pool: {name!r} cannot be the name of an adapter. Expected one without / and \\.")
        found = resolve_adapter(folder)
        with self._lock:
            if name in self._entries:
                raise InputError(
                    f"pool: there is an adapter {name!r} already ({self._entries[name].folder}). Choose another name, "
                    "or remove that one first."
                )
            self._entries[name] = _Entry(folder=found, pinned=pin)

    def remove(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            InputError: It is not known, or in use.
        """
        with self._lock:
            entry = self._entry(name)
            if entry.users:
                raise InputError(f"pool: {name!r} is in use. Remove it when its rows are answered.")
            del self._entries[name]
            self._unload(name)

    def names(self) -> list[str]:
        """All known adapters, in the order they were added."""
        with self._lock:
            return list(self._entries)

    def loaded(self) -> list[str]:
        """Those in memory, the least recently used first."""
        with self._lock:
            return list(self._loaded)

    def loaded_bytes(self) -> int:
        """What the adapters in memory take."""
        with self._lock:
            return sum(_tensors(entry).bytes for entry in self._loaded.values())

    def folder(self, name: str) -> Path:
        """Where an adapter lies.

        Raises:
            InputError: It is not known.
        """
        with self._lock:
            return self._entry(name).folder

    def pin(self, name: str, *, pinned: bool = True) -> None:
        """Keeps an adapter in memory whatever else is asked for, or no longer.

        Raises:
            InputError: It is not known.
        """
        with self._lock:
            self._entry(name).pinned = pinned

    def prefetch(self, names: Iterable[str]) -> Future[None]:
        """Loads adapters in the background, one after the other; `result()` waits for them.

        Raises:
            InputError: One is not known.
        """
        wanted = list(names)
        with self._lock:
            for name in wanted:
                self._entry(name)
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapter-pool")
            return self._worker.submit(self._prefetch, wanted)

    def by_row(self, name: str) -> bool:
        """Whether rows of an adapter can share a pass with others; loads it if it was not proved yet.

        Raises:
            InputError: It is not known, or cannot be loaded.
        """
        with self._lock:
            entry = self._entry(name)
            if entry.identity is not None:
                return entry.by_row
        with self._loading:
            self._ready(name)
        with self._lock:
            return self._entry(name).by_row

    def room(self) -> int | None:
        """How many different adapters one pass may have beside the pinned ones; None: any number."""
        most, limit = self._limits.max_adapters, self._limits.max_bytes
        with self._lock:
            pinned = [entry.bytes for entry in self._entries.values() if entry.pinned]
            largest = max((entry.bytes for entry in self._entries.values()), default=0)
        rooms = [most - len(pinned)] if most is not None else []
        rooms += [(limit - sum(pinned)) // largest] if limit is not None and largest else []
        return max(1, min(rooms)) if rooms else None

    def close(self) -> None:
        """Takes the hooks off the base, and forgets everything."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for handle in self._hooked.values():
                handle.remove()
            self._hooked.clear()
            self._entries.clear()
            self._loaded.clear()
            self._last_stack = None

    # Its use

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[Pass]:
        """While it is open, the base answers each row of a batch by its own adapter (in this thread).

        A single name stands for all rows of any batch.

        Args:
            names: For each row the name of its adapter, or None for the bare base.

        Yields:
            The pass: `arrange` puts a batch into its order, `restore` and `split` take answers apart.

        Raises:
            InputError: A name is not known, or the adapters do not fit into the pool together.
            AdapterRefused: An adapter is damaged, or not of this base.
        """
        if self._here.now is not None:
            raise RunError("pool: rows inside of rows: a thread has one pass at a time. Ask for all rows at once.")
        wanted = [name for name in dict.fromkeys(names) if name is not None]
        if len(set(names)) > 1:
            lonely = [name for name in wanted if not self.by_row(name)]
            if lonely:
                raise InputError(
                    f"pool: {lonely[0]!r} adapts a layer that computes once for a whole batch, so it cannot share a "
                    "pass. Ask for its rows alone."
                )
        with self._lease(wanted) as tensors, self._turn:
            now = plan([(name, tensors[name] if name is not None else None) for name in names], stack=self._stack)
            with self._lock:
                self._running += 1
            self._here.now = now
            try:
                with torch.no_grad():
                    yield now
            finally:
                self._here.now = None
                with self._quiet:
                    self._running -= 1
                    self._quiet.notify_all()

    # How it works

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            near = closest(name, list(self._entries))
            raise InputError(f"pool: there is no adapter {name!r}.{near} It has {len(self._entries)}.")
        return self._entries[name]

    def _prefetch(self, names: Sequence[str]) -> None:
        for name in names:
            self._ready(name)

    @contextmanager
    def _lease(self, names: Sequence[str]) -> Iterator[Mapping[str, PoolTensors]]:
        """The tensors of some adapters, none of which goes while they are in use."""
        leased: list[_Entry] = []
        tensors: dict[str, PoolTensors] = {}
        try:
            for name in names:
                entry = self._take(name)
                if entry is None:
                    with self._loading:
                        self._ready(name)
                        entry = self._take(name, on_trial=True)
                assert entry is not None, "what is ready can be taken"
                leased.append(entry)
                tensors[name] = _tensors(entry)
            yield tensors
        finally:
            with self._lock:
                for entry in leased:
                    entry.users -= 1

    def _take(self, name: str, *, on_trial: bool = False) -> _Entry | None:
        """Keeps a proved adapter from going, if it is in memory."""
        with self._lock:
            entry = self._entry(name)
            if entry.tensors is None or (entry.identity is None and not on_trial):
                return None
            entry.users += 1
            self._loaded.move_to_end(name)
            return entry

    def _ready(self, name: str) -> None:
        """Loads an adapter that is not in memory; proves it first where its folder is not the one proved before."""
        with self._lock:
            if self._entry(name).tensors is not None:
                return
        if self._here.now is not None:  # new layers wait until no pass runs: this one would wait for itself
            raise RunError(f"pool: {name!r} is not loaded, and a pass is open in this thread. Ask for it before.")
        with self._loading:
            with self._lock:
                entry = self._entry(name)
                if entry.tensors is not None:
                    return
            identity = identity_of(entry.folder)
            proved, entry.identity = entry.identity == identity, None
            if not proved:
                entry.by_row = self._prove(self, name, entry.folder)
            if entry.tensors is None:
                self._load(name, entry)
            if identity_of(entry.folder) != identity:
                with self._lock:
                    self._unload(name)
                raise AdapterError(f"{entry.folder}: was changed while it was loaded. Ask for it again.")
            entry.identity = identity

    @contextmanager
    def on_trial(self, name: str) -> Iterator[None]:
        """Loads an adapter for its proof; it goes again if the proof fails. To be used by `prove` alone.

        Raises:
            AdapterError: It cannot be pooled, or there is no room for it.
            AdapterRefused: It does not fit the base.
        """
        with self._lock:
            entry = self._entry(name)
        self._load(name, entry)
        passed = False
        try:
            yield
            passed = True
        finally:
            if not passed:
                with self._lock:
                    self._unload(name)

    def _load(self, name: str, entry: _Entry) -> None:
        """Reads the tensors, makes room for them, and sees to it that their layers are listened to."""
        tensors = read_tensors(entry.folder, self.model, untouched=self._untouched)
        with self._lock:
            self._make_room(name, tensors.bytes)
        self._listen([part.module for part in tensors.layout], tensors.heads)
        with self._lock:
            entry.tensors = tensors
            entry.bytes = tensors.bytes
            self._loaded[name] = entry

    def _make_room(self, name: str, size: int) -> None:
        """Lets the least recently used adapters go until another one fits."""
        most, limit = self._limits.max_adapters, self._limits.max_bytes
        if limit is not None and size > limit:
            raise AdapterError(
                f"pool: {name!r} takes {size / 1e6:.2f} MB, the pool may hold {limit / 1e6:.2f} MB. Raise max_bytes."
            )
        while (most is not None and len(self._loaded) >= most) or (
            limit is not None and self.loaded_bytes() + size > limit
        ):
            idle = next((one for one, entry in self._loaded.items() if not entry.users and not entry.pinned), None)
            if idle is None:
                raise AdapterError(
                    f"pool: no room for {name!r}: all {len(self._loaded)} adapters in memory are pinned or in use "
                    f"(limits: {most} adapters, {limit} bytes). Raise a limit, unpin one, or ask for fewer at once."
                )
            self._unload(idle)
        device = next(self.model.parameters()).device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if size > free:
            raise AdapterError(
                f"pool: {name!r} takes {size / 1e6:.2f} MB, {free / 1e6:.2f} MB of memory are free. Set max_bytes or "
                "max_adapters, so that others go first."
            )

    def _unload(self, name: str) -> None:
        gone = self._loaded.pop(name, None)
        if gone is not None:
            gone.tensors = None
            self._last_stack = None

    def _stack(self, adapters: Sequence[PoolTensors]) -> Stack:
        """Adapters side by side; the last ones are kept, as the next batch may be of the same."""
        if len(adapters) == 1:
            return Stack(adapters)
        key = tuple(id(one) for one in adapters)
        with self._lock:
            if self._last_stack is not None and self._last_stack[0] == key:
                return self._last_stack[1]
        stack = Stack(adapters)
        with self._lock:
            self._last_stack = (key, stack)
        return stack

    def _listen(self, modules: Iterable[str], heads: Iterable[str]) -> None:
        """Hooks modules that no adapter had before; waits until no pass runs, for that changes them."""
        new = {name: self._lora_hook(name) for name in modules if name not in self._hooked}
        new |= {name: self._head_hook(name) for name in heads if name not in self._hooked}
        if not new:
            return
        with self._quiet:
            self._quiet.wait_for(lambda: not self._running)
            for name, hook in new.items():
                module = self.model.get_submodule(name)
                self._hooked[name] = module.register_forward_hook(hook, with_kwargs=True)

    def _lora_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> Any:
            now = self._here.now
            if now is None:
                return None
            x = args[0] if args else next(iter(kwargs.values()))
            return add_lora(now, module, name, x=x, out=out)

        return hook

    def _head_hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> Any:
            del module
            now = self._here.now
            return None if now is None else answer_heads(now, name, args=args, kwargs=kwargs, out=out)

        return hook


def identity_of(folder: Path) -> Identity:
    """What tells a changed folder from an unchanged one without reading it.

    Raises:
        AdapterError: It is gone.
    """
    try:
        found = [(file, file.lstat()) for file in sorted(folder.rglob("*"))]
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be read: {error}. Was it moved?") from error
    if not found:
        raise AdapterError(f"{folder}: is gone, or empty. Was it moved?")
    return tuple((file.name, info.st_size, info.st_mtime_ns, info.st_ino) for file, info in found)


def _tensors(entry: _Entry) -> PoolTensors:
    assert entry.tensors is not None, "a loaded entry has tensors"
    return entry.tensors
