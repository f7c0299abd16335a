"""Has layers below the lowest one that is trained compute each row once, where a run allows it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object

from lora_ft.assemble.prefix_run import TOKENS, PrefixRun, Unknowable
from lora_ft.data.feature_cache import rows_digest
from lora_ft.models.fingerprint import fingerprint
from lora_ft.models.hidden_rows import HiddenFile, HiddenFolder, HiddenRows, mapped, starts_of
from lora_ft.models.prefix import Reached, find_prefix
from lora_ft.train.first_batch import same_chance
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.same_run import rows_a_step
from lora_ft.train.world import weights_digest

logger = logging.getLogger(__name__)

WORD = "prefix_cache"
FORMAT = 1
LIBRARIES = ("torch", "transformers", "peft", "accelerate")
GB = 1e9
VOLATILE = frozenset(
    ("_name_or_path", "transformers_version", "id2label", "label2id", "num_labels", "problem_type", "dtype")
)
"""Of a config: what decides nothing below a head."""
ONCE = ("train", "validation")
"""The splits that are read more than once in a run; others are kept for other runs alone."""


def know_prefix(trainer: ResumableTrainer, *, kept_in: Path | None) -> None:
    """Runs the rows through the layers below the lowest one that is trained, or reads what another run kept of it.

    Afterwards training and evaluations pass over these layers. Where that cannot be, all is as it was, and
    `trainer.ran` says why.

    Args:
        trainer: The trainer, before its first step.
        kept_in: The folder where what they computed is kept for other runs; None: nowhere.
    """
    started = time.perf_counter()
    try:
        with same_chance(trainer.args.device):
            shelf = _Shelf(trainer, kept_in)
            runs = _runs(trainer, kept=kept_in is not None)
            found = {split: shelf.hidden(run) for split, run in runs.items()}
    except Unknowable as why:
        trainer.ran[WORD] = f"off: {why.reason}"
        return
    trainer.known = {split: run.known(found[split]) for split, run in runs.items()}
    trainer.collate.tells_rows = True
    trainer.add_callback(LookedAtAgain(trainer, runs, shelf))
    prefix, rows = runs["train"].prefix, sum(len(hidden) for hidden in found.values())
    size = sum(hidden.bytes for hidden in found.values())
    where = " and ".join(sorted(set(shelf.where.values())))
    trainer.ran[WORD] = {
        "layers": prefix.count, "of": len(prefix.layers), "rows": rows, "bytes": size, "in": where,
        "computed": shelf.computed, "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    logger.info(
        "prefix cache: %d of %d layers are computed once: %s rows, %.0f MB in %s, %s computed in %.1f s",
        prefix.count, len(prefix.layers), f"{rows:,}", size / 1e6, where, f"{shelf.computed:,}",
        time.perf_counter() - started,
    )  # fmt: skip


class LookedAtAgain(transformers.TrainerCallback):  # type: ignore[misc]
    """Computes a few rows again with each epoch, and throws away what is known where they are others.

    Args:
        trainer: The trainer.
        runs: How the rows of each split are computed.
        shelf: Where what is known lies.
    """

    def __init__(self, trainer: ResumableTrainer, runs: dict[str, PrefixRun], shelf: _Shelf) -> None:
        self.trainer = trainer
        self.runs = runs
        self.shelf = shelf

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Looks; no process waits for another, since passing over layers is a matter of each alone."""
        epoch = int(state.epoch)
        known = self.trainer.known.get("train")
        if known is None or not epoch:
            return
        with same_chance(args.device):
            same = self.runs["train"].agrees(known.hidden, number=epoch)
        if not same:
            logger.warning("prefix cache: rows of epoch %d are no longer what was kept of them: thrown away", epoch)
            self.trainer.known = {}
            self.trainer.ran[WORD] = f"thrown away in epoch {epoch}: rows were no longer what was kept of them"
            self.shelf.throw_away()


class _Shelf:
    """Where the hidden states of a run lie: in memory, in files that other runs read, or in one of its own.

    Args:
        trainer: The trainer.
        kept_in: The folder for other runs, or None.
    """

    def __init__(self, trainer: ResumableTrainer, kept_in: Path | None) -> None:
        lean, arguments = trainer.prepared.recipe.lean, trainer.args
        self.trainer = trainer
        self.memory_bytes = int(lean.prefix_cache_ram_gb * GB) if arguments.world_size == 1 else 0
        self.disk_bytes = int(lean.prefix_cache_disk_gb * GB)
        self.folder = HiddenFolder(kept_in / "prefix", most_bytes=self.disk_bytes) if kept_in is not None else None
        # without a folder no other run reads them
        self._base = fingerprint(trainer.prepared.base, cache_dir=kept_in) if kept_in is not None else None
        self.computed = 0
        self.where: dict[str, str] = {}
        everybody = self._all(int(arguments.local_process_index))
        self._leader = int(arguments.process_index) - int(arguments.local_process_index)
        after = [rank for rank, local in enumerate(everybody) if local == 0 and rank > self._leader]
        here = (after[0] if after else len(everybody)) - self._leader
        self._share = int(arguments.local_process_index), here
        self._leads = self._share[0] == 0

    def hidden(self, run: PrefixRun) -> HiddenRows:
        """The hidden states of a split, read or computed.

        Raises:
            Unknowable: They cannot be known, or there is no room for them.
        """
        reached = run.try_out()
        key, shape = self._key(run, reached), (int(reached.hidden.shape[-1]), reached.hidden.dtype)
        found = self._read(run, key, shape) or self._computed(run, key, shape)
        if not all(self._all(run.is_all(found))):
            self.where.pop(key)
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
        if folder is None or not self._of_leader(folder.is_whole(key) if self._leads else None):
            return None
        found = folder.read(key, run.lengths, width=shape[0], dtype=shape[1])
        if not all(self._all(found is not None and run.agrees(found, number=len(self.where)))):
            if self._leads:
                logger.warning("prefix cache: %s: not what these layers compute, made anew", folder.folder / key)
                folder.drop(key)
            self._all(None)
            return None
        assert found is not None
        return self._placed(key, found, run.lengths)

    def _computed(self, run: PrefixRun, key: str, shape: tuple[int, torch.dtype]) -> HiddenRows:
        """Computes them, and keeps them for others where that is wanted."""
        width, dtype = shape
        lengths = run.lengths
        size = sum(lengths) * width * dtype.itemsize
        folder = self.folder if self.folder is not None and self._of_leader(self.folder.has_room(size)) else None
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
        file = folder.begin(found.bytes)
        try:
            with _opened(file, found.starts, token_bytes=found.values.shape[1] * found.values.itemsize) as stream:
                for number in range(len(found)):
                    stream.put(number, found.row(number))
            folder.end(file, key, keep=self.where)
        except OSError as error:
            logger.info("prefix cache: %s: cannot be written: %s", folder.folder, error.strerror or error)
            folder.abandon(file)

    def _in_file(
        self, run: PrefixRun, key: str, folder: HiddenFolder | None, *, shape: tuple[int, torch.dtype], size: int
    ) -> HiddenRows:
        """Computes them into a file; the processes of a machine share it, each computes a part."""
        own = self._of_leader(tempfile.mkdtemp(prefix="lora_ft-prefix-") if folder is None and self._leads else None)
        target = folder or HiddenFolder(Path(own), most_bytes=self.disk_bytes)
        lengths, failed = run.lengths, None
        try:
            if not self._of_leader(target.has_room(size)):
                raise Unknowable(f"{size / GB:.1f} GB of hidden states, for which there is no room")
            file = Path(self._of_leader(str(target.begin(size)) if self._leads else None))
            try:
                with _opened(file, starts_of(lengths), token_bytes=shape[0] * shape[1].itemsize) as stream:
                    run.fill(stream.put, share=self._share)
            except Unknowable as why:
                failed = why.reason
            except OSError as error:
                failed = f"{target.folder}: cannot be written: {error.strerror or error}"
            told = next((one for one in self._all(failed) if one is not None), None)
            if told is not None:
                if self._leads:
                    target.abandon(file)
                raise Unknowable(told)
            found = mapped(file, lengths, width=shape[0], dtype=shape[1])
            self._all(None)  # a file that is mapped may be renamed or removed
            if self._leads and folder is not None:
                folder.end(file, key, keep=self.where)
            assert found is not None
        finally:
            if own is not None and self._leads:
                shutil.rmtree(own, ignore_errors=True)
        self.where[key] = "a mapped file"
        return found

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
            "hidden": [str(reached.hidden.dtype), int(reached.hidden.shape[-1])],
            "prefix": [run.prefix.name, run.prefix.count],
            "features": rows_digest(run.features),
            "batches": [run.task.name, run.training, TOKENS],
            "versions": {name: version(name) for name in LIBRARIES},
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=repr).encode()).hexdigest()

    def _all(self, mine: Any) -> list[Any]:
        """What each process says, in their order."""
        said: list[Any] = gather_object([mine]) if self.trainer.args.world_size > 1 else [mine]
        return said

    def _of_leader(self, mine: Any) -> Any:
        """What the first process of this machine says."""
        return self._all(mine)[self._leader]


def _runs(trainer: ResumableTrainer, *, kept: bool) -> dict[str, PrefixRun]:
    """How the rows of each split are computed.

    Raises:
        Unknowable: They cannot be passed over any layer in this run.
    """
    prepared, arguments = trainer.prepared, trainer.args
    task, problem = prepared.task, prepared.problem
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.get_base_model().config.to_dict()
    reasons = {
        "lean.prefix_cache is false": not prepared.recipe.lean.prefix_cache,
        "the weights are cut into shards": trainer.in_step,
        "rows are made anew each time they are read": task.lazy,
        "rows are drawn anew each time they are put together": task.collates_by_chance(problem),
        "training_args.torch_compile": bool(arguments.torch_compile),
        "training_args.neftune_noise_alpha": arguments.neftune_noise_alpha is not None,
        "the base has an encoder and a decoder": bool(config.get("is_encoder_decoder")),
        "layers share keys and values": bool(config.get("num_kv_shared_layers")),
        "every row is read once, and nothing is kept": not kept and _epochs(trainer) <= 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise Unknowable(reason)
    prefix = find_prefix(model)
    if prefix is None:
        raise Unknowable("no layer lies below the lowest one that is trained")
    return {
        split: PrefixRun(
            model=model, prefix=prefix, features=prepared.features[split], task=task, problem=problem,
            training=split == "train", precision=trainer.precision,
        )
        for split in ("train", *trainer.splits) if kept or split in ONCE
    }  # fmt: skip


def _epochs(trainer: ResumableTrainer) -> float:
    """How often the run reads its rows."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return int(arguments.max_steps) * rows_a_step(arguments) / len(trainer.train_dataset)
    return float(arguments.num_train_epochs)


@contextmanager
def _opened(file: Path, starts: Sequence[int], *, token_bytes: int) -> Iterator[HiddenFile]:
    """A file to put rows into."""
    stream = HiddenFile(file, starts, token_bytes=token_bytes)
    try:
        yield stream
    finally:
        stream.close()
