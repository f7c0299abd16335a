"""What a merge was asked for, and whether these adapters can be merged at all; decided without torch."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.verify import CONFIG, resolve_adapter, verify_files, weights_file
from lora_ft.errors import AdapterError, AdapterRefused, InputError, closest

MERGED = "merged.json"
"""The record in a folder that holds a base with an adapter folded in."""

METHODS = {
    "cat": "the weighted sum of the deltas, exactly; the ranks add up",
    "svd": "that sum, cut to one adapter's rank",
    "linear": "A and B summed by the square roots of the weights: not the sum of the deltas",
    "ties": "TIES on A and on B",
    "ties_svd": "TIES on the deltas, cut to one adapter's rank",
    "dare_linear": "DARE on A and on B, summed",
    "dare_linear_svd": "DARE on the deltas, summed, cut to one adapter's rank",
    "dare_ties": "DARE on A and on B, then TIES' signs",
    "dare_ties_svd": "DARE on the deltas, then TIES' signs, cut to one adapter's rank",
    "magnitude_prune": "the largest values of A and of B, summed",
    "magnitude_prune_svd": "the largest values of the deltas, summed, cut to one adapter's rank",
}
"""peft's own names of its `combination_type`, each with what it does."""

PRUNING = ("ties", "dare", "magnitude_prune")
DENSITY = 0.5

NEUTRAL = frozenset(
    [
        *("alpha_pattern", "base_model_name_or_path", "auto_mapping", "exclude_modules", "fan_in_fan_out"),
        *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
        *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"),
        *("revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
    ]
)
"""Fields of a LoRA config that A, B, scaling and head say everything about; all others change what a layer computes."""

FACTOR = re.compile(r"^base_model\.model\.(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?$")


@dataclass(frozen=True)
class Plan:
    """How several adapters become one.

    Attributes:
        method: One of `METHODS`.
        weights: One for each adapter.
        density: Share of the values that TIES, DARE and pruning keep; None for the other methods.
        seed: Of what DARE drops.
        rank: Rank of the methods that end in `svd`; None: the largest of the adapters.
    """

    method: str
    weights: tuple[float, ...]
    density: float | None = None
    seed: int = 0
    rank: int | None = None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "weights": list(self.weights)}


@dataclass(frozen=True)
class Source:
    """One of the adapters that are merged.

    Attributes:
        name: What it is called in tables.
        folder: Its folder.
        manifest: What it says of itself.
        config: Its `adapter_config.json`.
        ranks: Rank of each adapted module, by the module's name in the base.
    """

    name: str
    folder: Path
    manifest: Manifest
    config: Mapping[str, Any]
    ranks: Mapping[str, int] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """As it is recorded: the folder, and the checksums of its tensors and of its config."""
        files = self.manifest.files
        return {
            "name": self.name,
            "folder": str(self.folder),
            "sha256": {name: files[name].sha256 for name in (weights_file(self.folder).name, CONFIG)},
            "created": self.manifest.created,
        }


def read_sources(folders: Sequence[Path]) -> list[Source]:
    """Reads and verifies the files of adapter folders.

    Args:
        folders: Adapter folders, or run folders that hold `adapter/`.

    Raises:
        AdapterError: A folder is absent, named twice, or damaged.
    """
    resolved = [resolve_adapter(folder) for folder in folders]
    twice = [one for index, one in enumerate(resolved) if one.resolve() in [two.resolve() for two in resolved[:index]]]
    if twice:
        raise AdapterError(
            f"merge: {twice[0]} is given twice. Give each adapter once, and a larger weight in --weights."
        )
    manifests = [verify_files(folder) for folder in resolved]
    names = _names(resolved)
    sources = []
    for name, folder, manifest in zip(names, resolved, manifests, strict=True):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = ((FACTOR.match(tensor), info.shape) for tensor, info in manifest.tensors.items())
        ranks = {match[1]: shape[0] for match, shape in found if match is not None and match[2] == "A"}
        sources.append(Source(name, folder, manifest, config, ranks))
    return sources


def check_together(sources: Sequence[Source]) -> None:
    """Makes sure that adapters may become one: LoRA, of one base, one task, the same labels, and nothing but A and B.

    Args:
        sources: Two adapters or more.

    Raises:
        AdapterRefused: They may not; the first reason that was found.
    """
    first = sources[0]
    for one in sources:
        _check_kind(one)
    for other in sources[1:]:
        _check_pair(first, other)


def check_plan(plan: Plan, sources: Sequence[Source]) -> None:
    """Makes sure that a method can do with these adapters what was asked.

    Args:
        plan: What was asked for.
        sources: The adapters.

    Raises:
        InputError: A wrong method, number of weights, weight, density or rank; with what would be right.
        AdapterRefused: The method wants adapters of one rank.
    """
    check_method(plan.method)
    count = len(sources)
    if len(plan.weights) != count:
        raise InputError(
            f"--weights: {len(plan.weights)} given for {count} adapters. Give one for each, in their order"
        )
    if not all(math.isfinite(weight) for weight in plan.weights) or not any(plan.weights):
        raise InputError(f"--weights = {list(plan.weights)}: expected finite numbers that are not all 0")
    if any(one.manifest.head for one in sources) and sum(plan.weights) <= 0:
        raise InputError(
            f"--weights = {list(plan.weights)}: the trained heads are averaged by them, so their sum must be above 0"
        )
    if prunes(plan.method) != (plan.density is not None):
        what = "needs --density" if prunes(plan.method) else "prunes nothing. Leave --density out"
        raise InputError(f"--method {plan.method}: it {what}")
    if plan.density is not None and not 0 < plan.density <= 1:
        raise InputError(f"--density = {plan.density:g}: expected a share above 0, up to 1")
    if plan.rank is not None and not (plan.method.endswith("svd") and plan.rank > 0):
        raise InputError(f"--rank = {plan.rank}: expected a rank above 0, and a --method that ends in svd")
    if wants_one_rank(plan.method) and not one_rank(sources):
        ranks = "; ".join(f"{one.name}: {_span(one.ranks)}" for one in sources)
        instead = "cat or svd" if plan.method == "linear" else f"{plan.method}_svd"
        raise AdapterRefused(
            f"--method {plan.method}: it adds up A and B, and these have different ranks ({ranks}). "
            f"Choose --method {instead}."
        )


def check_method(method: str) -> None:
    """Refuses a method that there is not, with the nearest name."""
    if method not in METHODS:
        raise InputError(
            f"--method {method}: there is no such method.{closest(method, METHODS)} "
            f"Expected one of {', '.join(METHODS)}"
        )


def prunes(method: str) -> bool:
    """Whether a method keeps only a share of the values."""
    return method.startswith(PRUNING)


def wants_one_rank(method: str) -> bool:
    """Whether a method adds up A with A and B with B, which must then have one shape."""
    return method != "cat" and not method.endswith("svd")


def one_rank(sources: Sequence[Source]) -> bool:
    """Whether every module has the same rank in all adapters, and each adapter one rank for all modules."""
    return len({rank for one in sources for rank in one.ranks.values()}) == 1


def parse_weights(text: str) -> tuple[float, ...]:
    """`0.5,0.5` -> `(0.5, 0.5)`.

    Raises:
        InputError: Something between the commas is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--weights {text}: expected numbers with commas between, 0.5,0.3,0.2") from error


def check_checkpoint_target(target: Path, *, overwrite: bool, needed_bytes: int) -> None:
    """Makes sure that a merged base may be written: to a new folder, an empty one, or over another merged one.

    Args:
        target: The folder to be.
        overwrite: Whether a merged base there may be replaced; anything else never is.
        needed_bytes: What will be written.

    Raises:
        AdapterError: It may not, the folder above it cannot be written to, or the disk is too full.
    """
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise AdapterError(f"--output {target}: {above} cannot be written to. Choose another folder.")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise AdapterError(f"--output {target}: exists and is no folder. Choose another one.")
    if target.is_dir() and any(target.iterdir()):
        if not (target / MERGED).is_file():
            raise AdapterError(
                f"--output {target}: exists and was not written by lora-ft; it is never deleted. Choose another one."
            )
        if not overwrite:
            raise AdapterError(
                f"--output {target}: there is a merged base already. Choose another folder, or give --overwrite."
            )
    free = shutil.disk_usage(above).free
    if free < needed_bytes:
        raise AdapterError(
            f"--output {target}: the merged base takes {needed_bytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. "
            "Make room, or choose a folder on another disk."
        )


def checkpoint_bytes(manifest: Manifest) -> int:
    """Bytes that a base with this adapter folded in takes at most: its weights, the adapter's files, a little more."""
    files = sum(info.bytes for info in manifest.files.values())
    return int(manifest.base.fingerprint.get("bytes", manifest.base.bytes)) + files + 1_000_000


def shared_settings(sources: Sequence[Source]) -> dict[str, Any]:
    """The `processor` settings of the merged adapter: the longest `max_length`, the rest as all have it.

    Raises:
        AdapterRefused: Another setting differs.
    """
    first = dict(sources[0].manifest.settings)
    for one in sources[1:]:
        other = one.manifest.settings
        differing = [key for key in {**first, **other} if key != "max_length" and first.get(key) != other.get(key)]
        if differing:
            key = differing[0]
            tuned = key == "thresholds"
            word = "decision.threshold" if tuned else f"processor.{key}"
            remedy = "with the same number, or without one" if tuned else "with the same setting"
            raise AdapterRefused(
                f"merge: {word} is {first.get(key)!r} in {sources[0].name} and {other.get(key)!r} in "
                f"{one.name}: one adapter can have one alone. Train them {remedy}."
            )
        if "max_length" in first and "max_length" in other:
            first["max_length"] = max(first["max_length"], other["max_length"])
    return first


def _check_kind(one: Source) -> None:
    """A LoRA that is nothing but A, B, a scaling and a head."""
    kind = one.manifest.peft_type
    if kind != "LORA":
        raise AdapterRefused(
            f"merge: {one.name} is {kind}; peft combines LORA adapters alone. Each can be merged into its base instead."
        )
    more = sorted(
        key for key, value in one.config.items() if key not in NEUTRAL and value not in (None, False, {}, [], "none")
    )
    if more:
        why = {
            "use_dora": "DoRA scales the whole weight, so its change is no product of A and B",
            "bias": "the biases that were trained beside A and B would be lost",
            "lora_bias": "the biases of B would be lost",
        }.get(more[0], "peft combines A and B alone, and this would be lost")
        raise AdapterRefused(
            f"merge: {one.name} has {more[0]} = {one.config[more[0]]!r}: {why}. Expected plain LoRA or rsLoRA; "
            "each can be merged into its base alone."
        )
    if not one.ranks:
        raise AdapterRefused(f"merge: {one.name} has no LoRA tensors, only a head. Expected an adapter with A and B.")


def _check_pair(first: Source, other: Source) -> None:
    """Two adapters of one base, one task, and heads that mean the same."""
    ours, theirs = first.manifest, other.manifest
    for what, mine, its in (
        ("task", ours.task, theirs.task),
        ("problem type", ours.problem_type, theirs.problem_type),
    ):
        if mine != its:
            raise AdapterRefused(
                f"merge: {first.name} is of {what} {mine}, {other.name} of {its}. Expected adapters of one {what}."
            )
    digests = [(one.base.fingerprint.get("weights"), one.base.fingerprint.get("tokenizer")) for one in (ours, theirs)]
    if digests[0] != digests[1]:
        raise AdapterRefused(
            f"merge: {first.name} was trained on {ours.base.name}, {other.name} on another base, "
            f"{theirs.base.name}: their fingerprints differ. Expected adapters of one base."
        )
    if set(ours.labels) != set(theirs.labels) or len(ours.labels) != len(theirs.labels):
        raise AdapterRefused(
            f"merge: heads with different labels cannot be merged: {first.name} has {list(ours.labels)}, "
            f"{other.name} has {list(theirs.labels)}. Expected the same labels, in any order; keep such adapters side "
            "by side in a pool."
        )
    if ours.preparation != theirs.preparation:
        raise AdapterRefused(
            f"merge: {first.name} prepares texts by {_steps(ours)}, {other.name} by {_steps(theirs)}: one adapter can "
            "prepare them in one way alone. Train them with the same section `preparation`."
        )
    saved = [set(one.config.get("modules_to_save") or ()) for one in (first, other)]
    shapes = [{name: info for name, info in one.tensors.items() if not FACTOR.match(name)} for one in (ours, theirs)]
    if saved[0] != saved[1] or shapes[0] != shapes[1]:
        raise AdapterRefused(
            f"merge: {first.name} saves the modules {sorted(saved[0])} in full, {other.name} {sorted(saved[1])}, or "
            "with other shapes. Expected the same head in all; train it in all of them, or in none."
        )


def _steps(manifest: Manifest) -> str:
    """The steps with their values, on one line; `nothing` where texts stay as they are."""
    told = ", ".join(
        f"{name}: {json.dumps(value, ensure_ascii=False)[:60]}" for name, value in manifest.preparation.items()
    )
    return told or "nothing"


def _names(folders: Sequence[Path]) -> list[str]:
    """A short name for each: that of the run, of the folder above it, or the whole path, whichever tells them apart."""
    runs = [(one.absolute().parent if one.name == "adapter" else one.absolute()) for one in folders]
    choices = ([run.name for run in runs], [run.parent.name for run in runs])
    return next((names for names in choices if len(set(names)) == len(names)), [str(one) for one in folders])


def _span(ranks: Mapping[str, int]) -> str:
    """`4`, or `4 to 16`."""
    low, high = min(ranks.values()), max(ranks.values())
    return str(low) if low == high else f"{low} to {high}"
