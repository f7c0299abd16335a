"""Several adapters of one base -> one base with all of them -> a new adapter folder, verified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from lora_ft.adapters.card import model_card
from lora_ft.adapters.folder import attach_saved, write_adapter
from lora_ft.adapters.manifest import BaseIdentity, Centroid, Manifest, installed_versions
from lora_ft.adapters.merge_plan import Plan, Source, check_together, shared_settings
from lora_ft.adapters.merge_weights import Combined, Sources, answering, attach_combined, attach_sources, combined
from lora_ft.adapters.probe import check_probe, make_probe
from lora_ft.adapters.verify import refuse_other_base, verify_files
from lora_ft.assemble.probe import probe_batch, probe_forward
from lora_ft.assemble.saved import QUANTIZATION_CONFIGS, OpenOptions, SavedAdapter, find_base
from lora_ft.errors import AdapterRefused
from lora_ft.models.config import load_config
from lora_ft.models.fingerprint import Fingerprint, differences, fingerprint
from lora_ft.models.load import Base, load_base, load_processor
from lora_ft.models.precision import cast_frozen_linears, plan_precision
from lora_ft.models.pretrained import find_label_modules
from lora_ft.models.processor import inner_tokenizer
from lora_ft.tasks.base import Task, load_task
from lora_ft.tasks.parts.problem import Problem


@dataclass(frozen=True)
class OpenSources:
    """Verified adapters side by side on one base.

    Attributes:
        sources: Their folders and manifests.
        attached: Their weights on the base.
        views: Each adapter as it would be opened alone, with labels and settings of the merged one; they share the
            model, so ask one only inside `asking`.
        base: The loaded base.
        quantization_config: What it was loaded with.
    """

    sources: tuple[Source, ...]
    attached: Sources
    views: tuple[SavedAdapter, ...]
    base: Base
    quantization_config: Mapping[str, Any] | None


def open_sources(sources: Sequence[Source], options: OpenOptions) -> OpenSources:
    """Loads the base of several adapters once and puts all of them on it; each one is verified there.

    Args:
        sources: What `read_sources` gave.
        options: Where the base is and how it is loaded; `as-trained` means without quantisation where they differ.

    Raises:
        AdapterRefused: They cannot be merged, belong to another base, or do not answer as they did.
        ModelError: The base cannot be found or read.
    """
    check_together(sources)
    first = sources[0].manifest
    settings = shared_settings(sources)
    task = load_task(first.task)
    folder = find_base(first, options)
    found = fingerprint(folder, cache_dir=options.cache_dir)
    for one in sources:
        refuse_other_base(one.manifest, differences(Fingerprint(**one.manifest.base.fingerprint), found))
    trust = options.trust_remote_code
    processors = [
        load_processor(one.folder, classes=task.processor_classes, trust_remote_code=trust) for one in sources
    ]
    _check_vocabularies(sources, processors)
    quantization_config = _quantization_config(sources, options)
    wish = _wanted_dtype(sources)
    precision = plan_precision(device=options.device, dtype="float32" if wish == "float32" else None)
    problem = Problem(first.problem_type, first.labels, processors[0], settings)
    fields = task.model_config(problem)
    auto_class = task.model_class(first.problem_type)
    transformers.set_seed(first.seed)
    base = load_base(
        folder, auto_class=auto_class, head=first.head, config=fields, precision=precision,
        quantization_config=quantization_config, dropout=0.0, attn_implementation=first.run["attn_implementation"],
        dtype=wish if precision.autocast or wish == "float32" else None, trust_remote_code=trust,
    )  # fmt: skip
    orders = [_order(first.labels, one.manifest.labels) for one in sources]
    labelled: set[str] = set()
    if any(orders):
        config = load_config(folder, fields=fields, dropout=0.0, trust_remote_code=trust)
        labelled = find_label_modules(folder, auto_class=auto_class, config=config, trust_remote_code=trust)
    attached = attach_sources(base.model, sources, orders=orders, labelled=sorted(labelled))
    cast_frozen_linears(attached.model, precision)
    views = tuple(
        SavedAdapter(
            one.folder, replace(one.manifest, labels=first.labels, settings=settings), task, processor,
            attached.model, precision,
        )
        for one, processor in zip(sources, processors, strict=True)
    )  # fmt: skip
    opened = OpenSources(tuple(sources), attached, views, base, quantization_config)
    for index, order in enumerate(orders):
        if order is None:  # else its recorded answers are in another order of labels
            _verify(opened, index)
    return opened


@contextmanager
def asking(opened: OpenSources, index: int) -> Iterator[SavedAdapter]:
    """One of the adapters alone, with its own head, ready to answer.

    Args:
        opened: The adapters.
        index: Which one.
    """
    with answering(opened.attached, index) as model:
        yield replace(opened.views[index], model=model)


@contextmanager
def asking_combined(opened: OpenSources, plan: Plan) -> Iterator[tuple[SavedAdapter, Combined]]:
    """A new adapter combined of the others, ready to answer, and what it is made of.

    Args:
        opened: The adapters.
        plan: How they are combined.
    """
    with combined(opened.attached, plan) as (model, new):
        yield replace(opened.views[0], model=model), new


def save_combined(
    target: Path, *, opened: OpenSources, new: Combined, merge: Mapping[str, Any], metrics: Mapping[str, Any],
    command: str, overwrite: bool,
) -> Manifest:  # fmt: skip
    """Writes a combined adapter as an adapter folder, and loads it back with plain peft to verify it.

    Args:
        target: The folder to be.
        opened: The adapters; used up.
        new: The combined one.
        merge: What goes into the manifest under `run["merge"]`.
        metrics: `{"validation": {...}}`, means over the domains; or empty.
        command: How it was called.
        overwrite: Whether an adapter at `target` may be replaced.

    Returns:
        The manifest as written.

    Raises:
        AdapterError: The folder may not or cannot be written; what was there is untouched.
        AdapterRefused: What was written does not load or answer as it was meant; what was there is untouched.
    """
    model = attach_combined(opened.attached, new)
    view = replace(opened.views[0], model=model)
    manifest = _describe(opened, view, merge=merge, metrics=metrics, command=command)
    generation = manifest.run.get("generation_config") or {}
    names = ", ".join(one.name for one in opened.sources)
    recipe = (opened.sources[0].folder / "recipe.yaml").read_text(encoding="utf-8")

    def check(folder: Path, written: Manifest) -> None:
        verify_files(folder)
        check_probe(
            attach_saved(model.unload(), folder, written),
            written.probe,
            forward=probe_forward(view.task, view.problem),
            precision=view.precision.name,
            quantization=opened.base.quantization,
        )

    return write_adapter(
        target,
        model=model,
        processor=view.processor,
        recipe_yaml=f"# merged of {names}; this is the recipe of the first, see run.merge in manifest.json\n{recipe}",
        manifest=manifest,
        metrics={"adapter": manifest.metrics, "merge": dict(merge)},
        card=model_card(
            manifest,
            auto_class=view.task.model_class(manifest.problem_type),
            config=view.task.model_config(view.problem),
        ),
        generation_config=transformers.GenerationConfig(**generation) if generation else None,
        overwrite=overwrite,
        option="--output",
        check=check,
    )


def _describe(
    opened: OpenSources, view: SavedAdapter, *, merge: Mapping[str, Any], metrics: Mapping[str, Any], command: str
) -> Manifest:
    """The manifest of the new adapter: the first one's, with all that the merge changes."""
    manifests = [one.manifest for one in opened.sources]
    base: BaseIdentity = manifests[0].base
    seconds = [float(one.run.get("seconds") or 0) for one in manifests]
    return replace(
        manifests[0],
        base=base,
        versions=installed_versions(),
        metrics={split: dict(values) for split, values in metrics.items()},
        learned=None,
        settings=dict(view.manifest.settings),
        precision=view.precision.name,
        quantization=opened.base.quantization,
        probe=make_probe(
            view.model,
            probe_batch(view.task, view.problem),
            forward=probe_forward(view.task, view.problem),
            precision=view.precision.name,
            quantization=opened.base.quantization,
        ),
        centroid=mean_centroid([one.centroid for one in manifests]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        run={
            **manifests[0].run,
            "seconds": round(sum(seconds), 1),
            "steps": sum(int(one.run.get("steps") or 0) for one in manifests),
            "command": command,
            "quantization_config": dict(opened.quantization_config) if opened.quantization_config else None,
            "dtype": _wanted_dtype(opened.sources),
            "rows": _added([one.run.get("rows") or {} for one in manifests]),
            "truncated": _added([one.run.get("truncated") or {} for one in manifests]),
            "baseline": {},
            "preparation": [count for one in manifests for count in one.run.get("preparation", [])],
            "merge": dict(merge),
        },
        tensors={},
        files={},
    )


def mean_centroid(centroids: Sequence[Centroid | None]) -> Centroid | None:
    """The centroid of the rows of all adapters together; None where one is not known.

    Args:
        centroids: Of each adapter, of the same base.
    """
    known = [one for one in centroids if one is not None]
    if len(known) != len(centroids):
        return None
    rows = np.array([one.rows for one in known], dtype=np.float64)[:, None]
    means = np.array([one.mean for one in known], dtype=np.float64)
    mean = (rows * means).sum(0) / rows.sum()
    return Centroid(mean=mean.tolist(), rows=int(rows.sum()))


def _verify(opened: OpenSources, index: int) -> None:
    """One adapter answers as it did when it was trained."""
    source, precision = opened.sources[index], opened.views[index].precision
    task: Task = opened.views[index].task
    with asking(opened, index) as adapter:
        try:
            check_probe(
                adapter.model,
                source.manifest.probe,
                forward=probe_forward(task, adapter.problem),
                precision=precision.name,
                quantization=opened.base.quantization,
            )
        except AdapterRefused as error:
            raise AdapterRefused(f"{source.folder}: {error}") from error


def _order(first: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Where each label of the first adapter lies in another one; None where they lie alike."""
    if tuple(first) == tuple(labels):
        return None
    return [list(labels).index(label) for label in first]


def _quantization_config(sources: Sequence[Source], options: OpenOptions) -> Mapping[str, Any] | None:
    """How the base is loaded: as asked, or as all were trained; never quantised where they differ."""
    if options.quantization != "as-trained":
        return QUANTIZATION_CONFIGS[options.quantization]
    recorded: list[Mapping[str, Any] | None] = [one.manifest.run["quantization_config"] for one in sources]
    return recorded[0] if all(one == recorded[0] for one in recorded) else None


def _wanted_dtype(sources: Sequence[Source]) -> str | None:
    """The type that all recipes ask for; float32 where they differ."""
    wishes = {one.manifest.run["dtype"] for one in sources}
    return wishes.pop() if len(wishes) == 1 else "float32"


def _check_vocabularies(sources: Sequence[Source], processors: Sequence[Any]) -> None:
    """One vocabulary for all: a speech head has a row for each letter of a tokenizer that was made of the rows."""
    tokenizers = [inner_tokenizer(one) for one in processors]
    first = tokenizers[0]
    for source, other in zip(sources[1:], tokenizers[1:], strict=True):
        if (first is None) != (other is None) or (
            first is not None and other is not None and first.get_vocab() != other.get_vocab()
        ):
            raise AdapterRefused(
                f"merge: {sources[0].name} and {source.name} have tokenizers with other words. Expected one "
                "vocabulary; train them with the same one."
            )


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The counts of each split, added up."""
    return {
        split: sum(int(one.get(split, 0)) for one in counts) for split in dict.fromkeys(k for c in counts for k in c)
    }
