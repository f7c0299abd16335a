"""Whether an adapter of plain peft fits a base, and how many labels its head has: by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_ft.adapters.foreign import HEADS_OF_PEFT, ForeignAdapter
from lora_ft.adapters.tensors import head_tensors
from lora_ft.adapters.verify import NO_OBJECT, WEIGHTS

Shape = tuple[int, ...]

GENERIC = re.compile(r"LABEL_\d+")
INNER = ("dense", "pre_classifier", "projector")
"""Layers of a head that lie before the one with a row for each label."""

EMBEDDING_MODULES = ("embed_tokens", "word_embeddings", "wte", "shared", "embed_in", "lm_head", "embed_out")


def fit_faults(adapter: ForeignAdapter, shapes: Mapping[str, Shape], *, base: str) -> Iterator[str]:
    """What of a LoRA does not fit the weights of a base.

    Modules of a kind that the files do not name are left to peft: transformers renames some weights as it loads them.

    Args:
        adapter: The adapter.
        shapes: Shape of each weight of the base, by the names in its files.
        base: The user's name of the base.
    """
    if adapter.peft_type not in ("LORA", "ADALORA"):
        return
    factors = {
        name.partition(".lora_A.")[0]: (info.shape, adapter.tensors[name.replace(".lora_A.", ".lora_B.")].shape)
        for name, info in adapter.tensors.items()
        if ".lora_A." in name and name.replace(".lora_A.", ".lora_B.") in adapter.tensors
    }
    found = {module: _stored(module.removeprefix("base_model.model."), shapes) for module in factors}
    kinds = {_kind(module) for module, shape in found.items() if shape is not None}
    lost = [module for module, shape in found.items() if shape is None and _kind(module) in kinds]
    where = adapter.folder / WEIGHTS
    if lost and not adapter.config.get("layer_replication"):  # peft makes those layers itself
        yield (
            f"{where}: {len(lost)} of {len(factors)} adapted modules are not in {base} (first: {lost[0]}): peft would "
            "drop them without a word. Give the base it was trained on with --base"
        )
    wrong = [
        f"{module} is made for {a[1]} -> {b[0]}, the base's is {list(shape)}"
        for module, (a, b) in factors.items()
        if (shape := found[module]) is not None and len(shape) == 2 and shape not in ((b[0], a[1]), (a[1], b[0]))
    ]
    if wrong:
        yield (
            f"{where}: {len(wrong)} of {len(factors)} adapted modules have other sizes than in {base}: {wrong[0]}. "
            "Give the base it was trained on with --base"
        )
    yield from _rank_faults(adapter, factors)
    yield from _embedding_faults(adapter, shapes, base=base)


def head_faults(adapter: ForeignAdapter, shapes: Mapping[str, Shape], *, head: Sequence[str], base: str) -> list[str]:
    """A head that was lost, so that peft would start it at random at every load, or answer with the base's.

    Args:
        adapter: The adapter.
        shapes: Shape of each weight of the base.
        head: Module names that hold the head in the families of the task; empty: the task has none of its own.
        base: The user's name of the base.
    """
    if not head or any(name in head or name.rpartition(".")[2] in head for name in adapter.head):
        return []
    always_saved = adapter.config.get("task_type") in HEADS_OF_PEFT
    own = any(_own_head(name, shapes) for name in head)
    if not always_saved and (own or adapter.head):
        return []  # the base's own head, or one that a family calls otherwise: the loaded base tells
    listed = adapter.config.get("modules_to_save")
    reason = (
        f"{base} has one, which is not the one that was trained"
        if own
        else f"{base} has none either, and peft would start it at random at every load"
    )
    return [
        f"{adapter.folder / WEIGHTS}: the head is missing: modules_to_save = {listed}, and no tensor of "
        f"{' or '.join(head)} is in it; {reason}. Where it was trained, save it again with the head in "
        "modules_to_save; else train again"
    ]


def head_rows(adapter: ForeignAdapter, shapes: Mapping[str, Shape], *, head: Sequence[str]) -> int | None:
    """How many labels the head has a row for: that of the adapter, else the base's own.

    Args:
        adapter: The adapter.
        shapes: Shape of each weight of the base.
        head: Module names that hold the head in the families of the task.

    Returns:
        The number; None where the names do not tell which tensor it is.
    """
    modules = [name for name in adapter.head if name in head or name.rpartition(".")[2] in head]
    own = {name: info.shape for name, info in adapter.tensors.items()}
    weights = _weights(own, modules) or ({} if adapter.head else _weights(shapes, head))
    plain = {name: shape for name, shape in weights.items() if not set(name.split(".")) & set(INNER)}
    classes = {name: shape for name, shape in plain.items() if "class" in name or "score" in name} or plain
    rows = {shape[0] - (NO_OBJECT in name) for name, shape in classes.items()}
    return rows.pop() if len(rows) == 1 else None


def named_labels(config: Mapping[str, Any], *, rows: int) -> tuple[str, ...]:
    """The labels of a config.json, where they are names and as many as the head has rows.

    Args:
        config: Its content.
        rows: Rows of the head.

    Returns:
        The labels in order; empty where there are none that would do.
    """
    named = config.get("id2label")
    if not isinstance(named, dict) or {str(key) for key in named} != {str(index) for index in range(rows)}:
        return ()
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    return () if all(GENERIC.fullmatch(label) for label in labels) else labels


def _rank_faults(adapter: ForeignAdapter, factors: Mapping[str, tuple[Shape, Shape]]) -> Iterator[str]:
    """Ranks in the file that the config does not name."""
    rank = adapter.config.get("r")
    if adapter.peft_type != "LORA" or not isinstance(rank, int):
        return
    pattern = adapter.config.get("rank_pattern")
    known = {rank, *(pattern.values() if isinstance(pattern, dict) else ())}
    odd = {module: a[0] for module, (a, _) in factors.items() if a[0] not in known}
    if odd:
        module, rows = next(iter(odd.items()))
        yield (
            f"{adapter.folder / WEIGHTS}: {len(odd)} modules have another rank than adapter_config.json says (first: "
            f"{module} has {rows}, r = {rank}). Config and weights are of two runs: copy both again"
        )


def _embedding_faults(adapter: ForeignAdapter, shapes: Mapping[str, Shape], *, base: str) -> Iterator[str]:
    """Embeddings that were trained in full, of another size than the base's."""
    for module in adapter.head:
        for name in head_tensors(adapter.tensors, module):
            if not name.endswith(".weight") or module.rpartition(".")[2] not in EMBEDDING_MODULES:
                continue
            shape = _stored(name.removeprefix("base_model.model.").removesuffix(".weight"), shapes)
            if shape is not None and shape != adapter.tensors[name].shape:
                yield (
                    f"{adapter.folder / WEIGHTS}: {name} is {list(adapter.tensors[name].shape)}, that of {base} is "
                    f"{list(shape)}: tokens were added before it was trained. Resize the base likewise, save it as a "
                    "folder of its own, and give that as --base"
                )


def _weights(shapes: Mapping[str, Shape], modules: Sequence[str]) -> dict[str, Shape]:
    """The matrices in some modules."""
    return {
        name: shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) >= 2 and any(f".{one}." in f".{name}" for one in modules)
    }


def _own_head(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether the base has weights of a module of this name."""
    return any(f".{name}." in f".{key}" for key in shapes)


def _stored(module: str, shapes: Mapping[str, Shape]) -> Shape | None:
    """The shape of a module's weight in the files of a base, which may name it from further in or out."""
    parts = module.split(".")
    for start in range(len(parts)):
        shape = shapes.get(".".join([*parts[start:], "weight"]))
        if shape is not None:
            return shape
    end = f".{module}.weight"
    return next((shape for name, shape in shapes.items() if name.endswith(end)), None)


def _kind(module: str) -> str:
    """A module without the numbers of its layers."""
    return re.sub(r"\.\d+\.", ".#.", module)
