"""Where what leaves the frozen layers lies in a run: in memory, in files that other runs read, or in one of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lora_ft.assemble.prefix_run import TOKENS, PrefixRun, Unknowable
from lora_ft.data.feature_cache import rows_digest
from lora_ft.models.fingerprint import Fingerprint, fingerprint
from lora_ft.models.hidden_rows import HiddenFile, HiddenFolder, HiddenRows, mapped, starts_of
from lora_ft.models.prefix import Reached
from lora_ft.train.told import told_by_each
from lora_ft.train.trainer import AdapterTrainer
from lora_ft.train.world import weights_digest

logger = logging.getLogger(__name__)

FORMAT = 1
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
GB = 1e9
VOLATILE = frozenset(
    ("_name_or_path", "transformers_version", "id2label", "label2id", "num_labels", "problem_type", "dtype")
)
"""Of a config: what decides nothing below a head."""


class Shelf:
    """Where the hidden states of a run lie: in memory, in files that other runs read, or in one of its own.

    Args:
        trainer: The trainer.
        folder: Where what other runs read is kept, or None.
        base: Fingerprint of the base, where there is a folder.
        share: `(i, n)`: this is the i-th of n processes of this machine.
    """

    def __init__(
        self, trainer: AdapterTrainer, *, folder: HiddenFolder | None, base: Fingerprint | None, share: tuple[int, int]
    ) -> None:
        lean, arguments = trainer.prepared.recipe.lean, trainer.args
        self.trainer = trainer
        self.folder = folder
        self.memory_bytes = int(lean.prefix_cache_ram_gb * GB) if arguments.world_size == 1 else 0
        self.disk_bytes = int(lean.prefix_cache_disk_gb * GB)
        self.computed = 0
        self.where: dict[str, str] = {}
        self._base = base
        self._share = share
        self._leads = share[0] == 0
        self._leader = int(arguments.process_index) - share[0]

    @classmethod
    def of(cls, trainer: AdapterTrainer, *, kept_in: Path | None) -> Shelf:
        """Opens it; the processes of a machine tell each other how many they are.

        Args:
            trainer: The trainer.
            kept_in: The folder for other runs, or None: no other run reads them, and nobody asks which base it was.
        """
        folder = base = None
        if kept_in is not None:
            most_bytes = int(trainer.prepared.recipe.lean.prefix_cache_disk_gb * GB)
            folder = HiddenFolder(kept_in / "prefix", most_bytes=most_bytes)
            base = fingerprint(trainer.prepared.base, cache_dir=kept_in)
        mine = int(trainer.args.local_process_index)
        first = int(trainer.args.process_index) - mine
        everybody = told_by_each(mine, world_size=trainer.args.world_size)
        after = [rank for rank, local in enumerate(everybody) if local == 0 and rank > first]
        here = (after[0] if after else len(everybody)) - first
        return cls(trainer, folder=folder, base=base, share=(mine, here))

    def hidden(self, run: PrefixRun) -> HiddenRows:
        """The hidden states of a split, read or computed.

        Raises:
            Unknowable: They cannot be known, or there is no room for them.
        """
        reached = run.try_out()
        key, shape = self._key(run, reached), (int(reached.hidden.shape[-1]), reached.hidden.dtype)
        found = self._read(run, key, shape) or self._computed(run, key, shape)
        if not self._everywhere(run.is_all(found)):
            self.where.pop(key)
            if self._leads and self.folder is not None:
                self.folder.drop(key)
            raise Unknowable("layers above read something else of these layers than hidden states")
        return found

    def throw_away(self) -> None:
        """Removes what other runs would read."""
        for key in self.where:
            if self.folder is not None:
                self.folder.drop(key)

    def _read(self, run: PrefixRun, key: str, shape: tuple[int, torch.dtype]) -> HiddenRows | None:
        """What another run kept, if it is whole and still what these layers compute."""
        folder = self.folder
        if folder is None or not self._everywhere(not self._leads or folder.is_whole(key)):
            return None
        try:
            found = folder.read(key, run.lengths, width=shape[0], dtype=shape[1])
        except OSError:  # another run has just removed it
            found = None
        if not self._everywhere(found is not None and run.agrees(found, number=len(self.where))):
            if self._leads:
                logger.warning("prefix cache: %s: not what these layers compute, made anew", folder.folder / key)
                folder.drop(key)
            self._told(None)
            return None
        assert found is not None
        return self._placed(key, found, run.lengths)

    def _computed(self, run: PrefixRun, key: str, shape: tuple[int, torch.dtype]) -> HiddenRows:
        """Computes them, and keeps them for others where that is wanted."""
        width, dtype = shape
        lengths = run.lengths
        size = sum(lengths) * width * dtype.itemsize
        folder = self.folder
        if folder is not None and not self._everywhere(not self._leads or folder.has_room(size)):
            folder = None
        self.computed += len(lengths)
        if size > self.memory_bytes:
            return self._in_file(run, key, folder, shape=shape, size=size)
        found = HiddenRows(torch.empty(sum(lengths), width, dtype=dtype), lengths)
        run.fill(found.put)
        if folder is not None:
            self._keep(found, key, folder)
        self.memory_bytes -= size
        self.where[key] = "memory"
        return found

    def _keep(self, found: HiddenRows, key: str, folder: HiddenFolder) -> None:
        """Writes what is in memory for other runs; a full disk costs no more than that."""
        try:
            file = folder.begin(found.bytes)
            try:
                with _opened(file, found.starts, token_bytes=found.values.shape[1] * found.values.itemsize) as stream:
                    for number in range(len(found)):
                        stream.put(number, found.row(number))
                folder.end(file, key, keep=self.where)
            finally:
                folder.abandon(file)  # where it has not become an entry
        except OSError as error:
            logger.info("prefix cache: %s: cannot be written: %s", folder.folder, error.strerror or error)

    def _in_file(
        self, run: PrefixRun, key: str, folder: HiddenFolder | None, *, shape: tuple[int, torch.dtype], size: int
    ) -> HiddenRows:
        """Computes them into a file; the processes of a machine share it, each computes a part."""
        own = self._of_leader(_own_folder() if folder is None and self._leads else None)
        target = folder or (None if own is None else HiddenFolder(own, most_bytes=self.disk_bytes))
        file = self._of_leader(_begun(target, size) if target is not None and self._leads else None)
        try:
            if not self._everywhere(file is not None) or file is None or target is None:
                raise Unknowable(f"{size / GB:.3g} GB of hidden states, for which there is no room")
            told = self._told(self._filled(run, file, token_bytes=shape[0] * shape[1].itemsize))
            for failed in told:
                if failed is not None:
                    raise Unknowable(failed)
            found = mapped(file, run.lengths, width=shape[0], dtype=shape[1])
            assert found is not None
            self._told(None)  # a file that is mapped may be renamed or removed
            if self._leads and folder is not None:
                _ended(folder, file, key, keep=self.where)
        finally:
            if self._leads and target is not None and file is not None:
                target.abandon(file)  # where it has not become an entry
            if self._leads and own is not None:
                shutil.rmtree(own, ignore_errors=True)
        self.where[key] = "a mapped file"
        return found

    def _filled(self, run: PrefixRun, file: Path, *, token_bytes: int) -> str | None:
        """Computes this process's part into a file; what went wrong, or None."""
        try:
            with _opened(file, starts_of(run.lengths), token_bytes=token_bytes) as stream:
                run.fill(stream.put, share=self._share)
        except Unknowable as why:
            return why.reason
        except OSError as error:
            return f"hidden states cannot be written: {error.strerror or error}"
        return None

    def _placed(self, key: str, found: HiddenRows, lengths: Sequence[int]) -> HiddenRows:
        """What was mapped, in memory if it may be there."""
        if found.bytes > self.memory_bytes:
            self.where[key] = "a mapped file"
            return found
        self.memory_bytes -= found.bytes
        self.where[key] = "memory"
        return HiddenRows(found.values.clone(), lengths)

    def _key(self, run: PrefixRun, reached: Reached) -> str:
        """SHA-256 over all that the hidden states of a split follow from."""
        recipe, model = self.trainer.prepared.recipe, run.model
        called = frozenset(reached.called)
        tensors = [
            (f"{name}.{own}", one)
            for name, module in model.named_modules()
            if name in called
            for own, one in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        ]
        config = model.get_base_model().config
        made_of = {
            "format": FORMAT,
            "base": self._base,
            "quantization": recipe.quantization_config,
            "weights": weights_digest(tensors, values=64),
            "modules": reached.called,
            "config": {name: value for name, value in config.to_dict().items() if name not in VOLATILE},
            "attention": config._attn_implementation,  # transformers (5.23) has no public name for it
            "precision": [run.precision.name, torch.device(run.precision.device).type],
            "computed by": _computed_by(torch.device(run.precision.device)),
            "hidden": [str(reached.hidden.dtype), int(reached.hidden.shape[-1])],
            "prefix": [run.prefix.name, run.prefix.count],
            "features": rows_digest(run.features),
            "batches": [run.task.name, run.training, TOKENS],
            "versions": {name: version(name) for name in LIBRARIES},
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=repr).encode()).hexdigest()

    def _everywhere(self, mine: bool) -> bool:
        """Whether it holds on all processes of all machines; they go the same way then, and ask each other the same."""
        return all(self._told(mine))

    def _of_leader(self, mine: Any) -> Any:
        """What the first process of this machine says."""
        return self._told(mine)[self._leader]

    def _told(self, mine: Any) -> list[Any]:
        """What each process says, in their order; said where all wait for each other, too."""
        return told_by_each(mine, world_size=self.trainer.args.world_size)


def _computed_by(device: torch.device) -> list[Any]:
    """What decides in which order a device adds up."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.get_float32_matmul_precision()]
    return [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


@contextmanager
def _opened(file: Path, starts: Sequence[int], *, token_bytes: int) -> Iterator[HiddenFile]:
    """A file to put rows into."""
    stream = HiddenFile(file, starts, token_bytes=token_bytes)
    try:
        yield stream
    finally:
        stream.close()


def _own_folder() -> Path | None:
    """A temporary folder; None where there can be none."""
    try:
        return Path(tempfile.mkdtemp(prefix="lora_ft-prefix-"))
    except OSError as error:
        logger.info("prefix cache: no temporary folder: %s", error.strerror or error)
        return None


def _begun(folder: HiddenFolder, size: int) -> Path | None:
    """An empty file in a folder; None where there is no room."""
    try:
        return folder.begin(size) if folder.has_room(size) else None
    except OSError as error:
        logger.info("prefix cache: %s: cannot be written: %s", folder.folder, error.strerror or error)
        return None


def _ended(folder: HiddenFolder, file: Path, key: str, *, keep: Collection[str]) -> None:
    """Keeps a file that was filled for other runs; a full disk costs no more than that."""
    try:
        folder.end(file, key, keep=keep)
    except OSError as error:
        logger.info("prefix cache: %s: cannot be written: %s", folder.folder, error.strerror or error)
