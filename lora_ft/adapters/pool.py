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
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.adapters.convolutions import CONVOLUTIONS
from lora_ft.adapters.pool_pass import Pass, Stack, add_lora, answer_heads, plan
from lora_ft.adapters.pool_store import PoolLimits, PoolStore
from lora_ft.adapters.pool_tensors import PoolTensors, read_tensors
from lora_ft.errors import InputError, RunError

logger = logging.getLogger(__name__)

ADAPTED = (nn.Linear, Conv1D, *CONVOLUTIONS)
KEPT_STACK_BYTES = 64 * 1024**2
"""Up to here the stacked adapters of a pass are kept for the next one; more would be a second pool."""


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
        """Hooks the layers that adapters can be on, and keeps a second view of the modules without hooks.

        Args:
            model: The frozen base with its head.
            prove: Called before an adapter is first used, with the pool, its name and its folder: raises if it is not
                whole or not of this base, and says whether its rows can share a pass with others. It may use `rows`.
            limits: How much the pool may hold.
            one_at_a_time: Whether passes of several threads wait for each other: 8-bit layers keep a state, and some
                tasks change the model for the time of a call.
        """
        self.model = model.eval()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._untouched: nn.Module = copy.deepcopy(model, shared)
        self._store = PoolStore(
            read=self._read,
            prove=lambda name, folder: prove(self, name, folder),
            free_bytes=self._free_bytes,
            limits=limits or PoolLimits(),
        )
        self._turn: Any = threading.RLock() if one_at_a_time else nullcontext()
        self._quiet = threading.Condition()
        self._running = self._waiting = 0
        self._here = _Here()
        self._worker: ThreadPoolExecutor | None = None
        self._last_stack: tuple[tuple[weakref.ref[PoolTensors], ...], Stack] | None = None
        self._hooked: dict[str, torch.utils.hooks.RemovableHandle] = {}
        self._listen(name for name, module in model.named_modules() if isinstance(module, ADAPTED))

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
        self._store.add(name, folder, pin=pin)

    def remove(self, name: str) -> None:
        """Forgets an adapter; waits for one that is just being loaded.

        Raises:
            InputError: It is not known, or in use.
        """
        self._store.remove(name)
        self._last_stack = None

    def names(self) -> list[str]:
        """All known adapters, in the order they were added."""
        return self._store.names()

    def loaded(self) -> list[str]:
        """Those in memory, the least recently used first."""
        return self._store.loaded()

    def loaded_bytes(self) -> int:
        """What the adapters in memory take."""
        return self._store.loaded_bytes()

    def folder(self, name: str) -> Path:
        """Where an adapter lies.

        Raises:
            InputError: It is not known.
        """
        return self._store.entry(name).folder

    def pin(self, name: str, *, pinned: bool = True) -> None:
        """Keeps an adapter in memory whatever else is asked for, or no longer.

        Raises:
            InputError: It is not known.
        """
        self._store.entry(name).pinned = pinned

    def prefetch(self, names: Iterable[str]) -> Future[None]:
        """Loads adapters in the background, one after the other; `result()`, outside of `rows`, waits for them.

        Raises:
            InputError: One is not known.
        """
        wanted = list(names)
        for name in wanted:
            self._store.entry(name)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapter-pool")
        return self._worker.submit(self._prefetch, wanted)

    def by_row(self, name: str) -> bool:
        """Whether rows of an adapter can share a pass with others; loads it if it was not proved yet.

        Raises:
            InputError: It is not known, or cannot be loaded.
            RunError: It is not proved yet, and a pass is open in this thread.
        """
        entry = self._store.entry(name)
        if entry.identity is None:
            if self._here.now is not None:  # whoever loads may wait for this very pass
                raise RunError(f"pool: {name!r} is not loaded, and a pass is open in this thread. Ask for it before.")
            self._store.ready(name)
        return entry.by_row

    def room(self) -> int | None:
        """How many different adapters one pass may have beside the pinned ones; None: any number."""
        return self._store.room()

    def on_trial(self, name: str) -> Any:
        """A context in which an adapter can be used before it is proved; for `prove` alone.

        Raises:
            AdapterError: It cannot be pooled, or there is no room for it.
            AdapterRefused: It does not fit the base.
        """
        return self._store.on_trial(name)

    def close(self) -> None:
        """Waits for passes that run, takes the hooks off the base, and forgets everything.

        Raises:
            RunError: A pass is open in this thread.
        """
        if self._here.now is not None:
            raise RunError("pool: closed inside of rows. Close it when the rows are answered.")
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        with self._quiet:
            self._quiet.wait_for(lambda: not self._running)
            for handle in self._hooked.values():
                handle.remove()
            self._hooked.clear()
        self._store.clear()
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
            RunError: A pass is open in this thread already.
        """
        if self._here.now is not None:
            raise RunError("pool: rows inside of rows: a thread has one pass at a time. Ask for all rows at once.")
        wanted = [name for name in dict.fromkeys(names) if name is not None]
        with self._store.lease(wanted) as tensors, self._turn:
            self._refuse_lonely(names, wanted)
            now = plan([(name, tensors[name] if name is not None else None) for name in names], stack=self._stack)
            with self._quiet:
                self._quiet.wait_for(lambda: not self._waiting)
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

    def _refuse_lonely(self, names: Sequence[str | None], wanted: Sequence[str]) -> None:
        """Refuses company for adapters that cannot have it."""
        lonely = [name for name in wanted if not self._store.entry(name).by_row] if len(set(names)) > 1 else []
        if lonely:
            raise InputError(
                f"pool: {lonely[0]!r} adapts a layer that computes once for a whole batch, so it cannot share a pass. "
                "Ask for its rows alone."
            )

    def _prefetch(self, names: Sequence[str]) -> None:
        for name in names:
            self._store.ready(name)

    def _read(self, folder: Path) -> PoolTensors:
        tensors = read_tensors(folder, self.model, untouched=self._untouched)
        self._listen(tensors.heads)
        return tensors

    def _free_bytes(self) -> int:
        """Memory that is left on the device of the base, what torch holds in reserve included."""
        device = next(self.model.parameters()).device
        if device.type != "cuda":
            return int(psutil.virtual_memory().available)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve

    def _stack(self, adapters: Sequence[PoolTensors]) -> Stack:
        """Adapters side by side; the last ones are kept, as the next batch may be of the same."""
        if len(adapters) == 1:
            return Stack(adapters)
        last, key = self._last_stack, tuple(weakref.ref(one) for one in adapters)
        if last is not None and last[0] == key:  # equal if they are the same, and still there
            return last[1]
        stack = Stack(adapters)
        self._last_stack = (key, stack) if stack.flat.nbytes <= KEPT_STACK_BYTES else None
        return stack

    def _listen(self, modules: Iterable[str]) -> None:
        """Hooks modules that have no hook yet; waits until no pass runs, and lets no new one begin meanwhile."""
        new = [name for name in modules if name not in self._hooked]
        if not new:
            return
        with self._quiet:
            self._waiting += 1
            try:
                self._quiet.wait_for(lambda: not self._running)
                for name in new:
                    module = self.model.get_submodule(name)
                    self._hooked[name] = module.register_forward_hook(self._hook(name), with_kwargs=True)
            finally:
                self._waiting -= 1
                self._quiet.notify_all()

    def _hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> Any:
            now = self._here.now
            if now is None or name not in now.touched:
                return None
            x = args[0] if args else next(iter(kwargs.values()))
            return answer_heads(now, name, args=args, kwargs=kwargs, out=add_lora(now, module, name, x=x, out=out))

        return hook
