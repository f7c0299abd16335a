"""A folder of adapters -> one base that answers each row by its own adapter, all of them in the same batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from lora_ft.adapters.manifest import Centroid, Manifest
from lora_ft.adapters.merge import DROPPED
from lora_ft.adapters.pool import AdapterPool
from lora_ft.adapters.pool_folder import PoolFolder
from lora_ft.adapters.pool_pass import NotByRow, Pass, Segment
from lora_ft.adapters.pool_store import PoolLimits
from lora_ft.adapters.probe import check_probe
from lora_ft.adapters.verify import CONFIG, REQUIRED, WEIGHTS_INT8, refuse_other_base, verify_files
from lora_ft.assemble.answer import join_rows, numpy_answer, on_device
from lora_ft.assemble.encode import EncodedRows, encode_rows, has_targets
from lora_ft.assemble.saved import QUANTIZATION_CONFIGS, OpenOptions, find_base
from lora_ft.errors import AdapterRefused, InputError
from lora_ft.models.fingerprint import Fingerprint, differences, fingerprint
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import Precision, autocast_context, cast_frozen_linears, plan_precision
from lora_ft.tasks.base import Task, load_task
from lora_ft.tasks.parts.problem import Problem

logger = logging.getLogger(__name__)

READ_APART = (
    "max_length", "truncation", "stride", "threshold", "thresholds", "null_threshold", "n_best", "max_answer_length",
)  # fmt: skip
"""Settings that are read adapter by adapter, when its rows are encoded and when their answers are decoded."""


@dataclass(frozen=True)
class Member:
    """What a pool knows of one adapter beside its tensors.

    Attributes:
        problem: What it was trained for.
        centroid: Of its training rows, or None.
        mixes_with: Adapters with the same word here can share a batch: one processor, one way to collate and generate.
        columns: Input columns of its training rows.
        unread: An input that peft's wrapper kept from the base when it was trained, or None.
    """

    problem: Problem
    centroid: Centroid | None
    mixes_with: str
    columns: tuple[str, ...]
    unread: str | None = None


@dataclass
class PooledAdapters:
    """Many adapters on one base, ready to answer.

    Attributes:
        task: Their task.
        pool: Their tensors.
        precision: What the base computes in.
        quantization: `nf4`, `fp4`, `int8`, or None.
        base: Fingerprint of the base.
        options: How the pool was opened.
        members: What is known of those that were proved.
        processors: Processors by the checksums of their files: hundreds of adapters share one.
    """

    task: Task
    pool: AdapterPool = field(init=False)
    precision: Precision
    quantization: str | None
    base: Fingerprint
    options: OpenOptions
    members: dict[str, Member] = field(default_factory=dict)
    processors: dict[str, Any] = field(default_factory=dict)

    def member(self, name: str) -> Member:
        """What is known of an adapter; it is proved first if it was not yet.

        Raises:
            InputError: It is not known.
            AdapterRefused: It is damaged, of another base, or does not answer as it did.
        """
        if name not in self.members:
            self.pool.by_row(name)
        return self.members[name]

    def prove(self, pool: AdapterPool, name: str, folder: Path) -> bool:
        """Verifies a folder, its base and its probe, and says whether its rows can share a pass with others.

        The probe is answered in one batch with rows of the bare base, as it will be later; where that does not give
        the recorded answers, alone.

        Raises:
            AdapterRefused: With the first reason found.
        """
        manifest = verify_files(folder)
        reasons = differences(Fingerprint(**manifest.base.fingerprint), self.base)
        refuse_other_base(manifest, reasons)
        if manifest.task != self.task.name:
            raise AdapterRefused(f"{folder}: its task is {manifest.task}, that of the pool {self.task.name}.")
        member = self._describe(manifest, folder)
        with pool.on_trial(name):
            by_row = self._answers_in_company(pool, name, manifest, member)
            if not by_row:
                self._check_probe(pool, name, manifest, member, company=False)
        self.members[name] = member
        return by_row

    def _answers_in_company(self, pool: AdapterPool, name: str, manifest: Manifest, member: Member) -> bool:
        try:
            self._check_probe(pool, name, manifest, member, company=True)
        except (NotByRow, AdapterRefused) as reason:
            logger.info("pool: rows of %s get passes of their own: %s", name, reason)
            return False
        return True

    def _check_probe(self, pool: AdapterPool, name: str, manifest: Manifest, member: Member, *, company: bool) -> None:
        """Compares the answers to the probe with the recorded ones."""

        def forward(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            batch = {key: value for key, value in batch.items() if key != member.unread}
            rows = len(next(iter(batch.values())))
            names: list[str | None] = [None] * rows + [name] * rows if company else [name] * rows
            given = {key: torch.cat([value, value]) for key, value in batch.items()} if company else dict(batch)
            with pool.rows(names) as now:
                outputs = self.task.forward(model, now.arrange(given), member.problem)
                own = next(answers for segment, answers in now.split(outputs) if segment.name == name)
            return self.task.probe_values(own, batch)

        check_probe(
            pool.model, manifest.probe, forward=forward, precision=self.precision.name, quantization=self.quantization
        )

    def _describe(self, manifest: Manifest, folder: Path) -> Member:
        """What is kept of a manifest."""
        key = processor_key(manifest)
        if key not in self.processors:
            self.processors[key] = load_processor(
                folder, classes=self.task.processor_classes, trust_remote_code=self.options.trust_remote_code
            )
        problem = Problem(
            problem_type=manifest.problem_type,
            labels=manifest.labels,
            processor=self.processors[key],
            settings=manifest.settings,
            generation=manifest.run.get("generation_config", {}),
            preparation=manifest.preparation,
            loss=manifest.run.get("loss", {}),
            seed=manifest.seed,
        )
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        unread = DROPPED.get(str(config.get("task_type")))
        return Member(
            problem=problem,
            centroid=manifest.centroid,
            mixes_with=json.dumps([key, unread, *shared_by_rows(problem)], sort_keys=True),
            columns=tuple(manifest.run.get("columns", ())),
            unread=unread,
        )

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        *,
        batch_size: int = 32,
        advance: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """One prediction for each row, each by its own adapter, in the order of the rows.

        Args:
            rows: Under our column names; with targets they are measured, without they are answered.
            names: The adapter of each row.
            batch_size: Features a batch.
            advance: Called with the number of features done.

        Raises:
            InputError: There is not one known adapter for each row, or a row has none of the task's inputs.
            AdapterRefused: One cannot be used.
        """
        self._refuse_misfits(rows, names)
        owners: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            owners.setdefault(name, []).append(number)
        own = {name: datasets.Dataset.from_list([dict(rows[n]) for n in numbers]) for name, numbers in owners.items()}
        found = self.predict_tables(own, batch_size=batch_size, advance=advance)
        predictions: list[dict[str, Any]] = [{}] * len(rows)
        for name, numbers in owners.items():
            for number, prediction in zip(numbers, found[name], strict=True):
                predictions[number] = prediction
        return predictions

    def _refuse_misfits(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        """Refuses rows that cannot be sorted by adapter or read."""
        if len(rows) != len(names):
            raise InputError(f"pool: {len(rows)} rows and {len(names)} names of adapters. Give one name for each row")
        inputs = [column.name for column in self.task.inputs()]
        for number, (row, name) in enumerate(zip(rows, names, strict=True), start=1):
            if not isinstance(name, str):
                raise InputError(
                    f"pool: row {number}: {name!r} is no name of an adapter. Known: {self.pool.names()[:5]}"
                )
            if not isinstance(row, Mapping) or not any(column in row for column in inputs):
                raise InputError(f"pool: row {number}: {row!r:.80}. Expected a mapping with {' or '.join(inputs)}")

    def predict_tables(
        self,
        tables: Mapping[str, datasets.Dataset],
        *,
        batch_size: int = 32,
        advance: Callable[[int], None] | None = None,
    ) -> dict[str, list[dict[str, Any]]]:
        """As `predict`, for rows that are sorted by adapter already.

        Args:
            tables: Name of an adapter -> its rows.
            batch_size: Features a batch; rows of several adapters share them all the same.
            advance: Called with the number of features done.

        Returns:
            Name of an adapter -> one prediction for each of its rows, in their order.

        Raises:
            InputError: The rows are to be measured, and the task needs the answers of the bare base for that.
        """
        if self.task.asks_bare_base and any(has_targets(table, self.task) for table in tables.values()):
            raise InputError(
                f"pool: {self.task.name} is measured against the bare base, which a pool does not answer beside the "
                "adapters. Evaluate each adapter alone; a pool answers their prompts"
            )
        features = {
            name: encode_rows(table, task=self.task, problem=self.member(name).problem)
            for name, table in tables.items()
        }
        parts: dict[str, dict[int, Any]] = {name: {} for name in tables}
        for batch in self._batches(features, batch_size):
            self._answer(batch, features, parts)
            if advance is not None:
                advance(len(batch))
        return {
            name: join_rows(parts[name], features[name], table, task=self.task, problem=self.member(name).problem)
            for name, table in tables.items()
        }

    def _batches(self, features: Mapping[str, EncodedRows], batch_size: int) -> Iterator[list[tuple[str, int]]]:
        """Adapter and number of features of like length; at most as many adapters in one as the pool can hold."""
        groups: dict[str, list[tuple[int, str, int]]] = {}
        for name, encoded in features.items():
            alone = "" if self.pool.by_row(name) else name
            word = f"{self.member(name).mixes_with} {alone} {has_labels(encoded)}"
            lengths = encoded["length"][:]
            groups.setdefault(word, []).extend((length, name, index) for index, length in enumerate(lengths))
        room = self.pool.room() or len(features)
        for rows in groups.values():
            names = list(dict.fromkeys(name for _, name, _ in rows))
            for start in range(0, len(names), room):  # each adapter is loaded once, however small the pool is
                together = set(names[start : start + room])
                chosen = sorted((one for one in rows if one[1] in together), key=lambda one: -one[0])
                for first in range(0, len(chosen), batch_size):
                    yield [(name, index) for _, name, index in chosen[first : first + batch_size]]

    def _answer(
        self,
        batch: Sequence[tuple[str, int]],
        features: Mapping[str, EncodedRows],
        parts: Mapping[str, dict[int, Any]],
    ) -> None:
        """Answers one batch in one pass and decodes each adapter's part by its own labels and settings."""
        task, names = self.task, [name for name, _ in batch]
        encoded = [features[name][index] for name, index in batch]
        problem = self.member(names[0]).problem
        given = on_device(task.collator(problem)(encoded), torch.device(self.precision.device))
        given = {name: value for name, value in given.items() if name != self.member(names[0]).unread}
        with self.pool.rows(names) as now, autocast_context(self.precision):
            arranged = now.arrange(given)
            for segment, found in self._found(now, arranged, problem):
                assert segment.name is not None, "every row has an adapter"
                own = self.member(segment.name).problem
                decoded = task.decode(numpy_answer(found), [encoded[row] for row in segment.rows], own)
                parts[segment.name].update(zip((batch[row][1] for row in segment.rows), decoded, strict=True))

    def _found(
        self, now: Pass, arranged: Mapping[str, Any], problem: Problem
    ) -> Iterator[tuple[Segment, Mapping[str, torch.Tensor]]]:
        """What `Task.answer` makes of each adapter's rows."""
        if self.task.generation_fields:
            yield from now.split(self.task.answer(self.pool.model, arranged, problem, outputs=None))
            return
        untold = {name: value for name, value in arranged.items() if name != "labels"}  # no loss is asked for
        outputs = self.task.forward(self.pool.model, untold, problem)
        for (segment, own), (_, inputs) in zip(now.split(outputs), now.split(arranged), strict=True):
            member = self.member(str(segment.name))
            yield segment, self.task.answer(self.pool.model, inputs, member.problem, outputs=own)


def has_labels(encoded: EncodedRows) -> bool:
    """Whether features are to be measured: such ones are collated with their labels."""
    return len(encoded) > 0 and "labels" in encoded[0]


def shared_by_rows(problem: Problem) -> list[Any]:
    """What all rows of one batch have in common: how they are collated, and how their answers are generated."""
    read_apart = set(READ_APART) if problem.settings.get("padding") != "max_length" else set()
    settings = {name: value for name, value in problem.settings.items() if name not in read_apart}
    seed = problem.seed if problem.generation.get("do_sample") else None
    return [problem.problem_type, settings, dict(problem.generation), seed]


def processor_key(manifest: Manifest) -> str:
    """The same word for adapters with the same files of a processor."""
    own = (*REQUIRED, WEIGHTS_INT8)
    files = {name: info.sha256 for name, info in sorted(manifest.files.items()) if name not in own}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def open_pool(folder: PoolFolder, options: OpenOptions, *, limits: PoolLimits | None = None) -> PooledAdapters:
    """Loads the base of a folder of adapters once; each adapter is verified and loaded when it is first asked for.

    Args:
        folder: What `read_pool` found.
        options: Where the base is and how it is loaded; as the first adapter was trained by default.
        limits: How many adapters, or bytes of them, may be in memory at a time.

    Returns:
        All of them on one base.

    Raises:
        AdapterRefused: The base is not that of the first adapter.
        ModelError: The base cannot be found or read.
    """
    first = next(iter(folder.folders.values()))
    manifest = verify_files(first)
    task = load_task(manifest.task)
    base_folder = find_base(manifest, options)
    found = fingerprint(base_folder, cache_dir=options.cache_dir)
    refuse_other_base(manifest, differences(Fingerprint(**manifest.base.fingerprint), found))
    quantization_config = (
        manifest.run["quantization_config"]
        if options.quantization == "as-trained"
        else QUANTIZATION_CONFIGS[options.quantization]
    )
    wish = manifest.run["dtype"]
    precision = plan_precision(device=options.device, dtype="float32" if wish == "float32" else None)
    processor = load_processor(first, classes=task.processor_classes, trust_remote_code=options.trust_remote_code)
    problem = Problem(manifest.problem_type, manifest.labels, processor, manifest.settings)
    transformers.set_seed(manifest.seed)
    base = load_base(
        base_folder,
        auto_class=task.model_class(manifest.problem_type),
        head=manifest.head,
        config=task.model_config(problem),
        precision=precision,
        quantization_config=quantization_config,
        dropout=0.0,
        attn_implementation=manifest.run["attn_implementation"],
        dtype=wish if precision.autocast or wish == "float32" else None,
        trust_remote_code=options.trust_remote_code,
    )
    cast_frozen_linears(base.model, precision)
    pooled = PooledAdapters(task=task, precision=precision, quantization=base.quantization, base=found, options=options)
    pooled.pool = AdapterPool(base.model, prove=pooled.prove, limits=limits, one_at_a_time=base.quantization == "int8")
    for name, place in folder.folders.items():
        pooled.pool.add(name, place)
    return pooled
