"""The manifest of an adapter folder: what the adapter is, what it belongs to, how it answered."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from lora_ft.errors import AdapterRefused, closest

FORMAT_VERSION = 4
"""Raised with every change after which an older lora_ft could misread a folder; all older ones are read.

2: inputs of a probe may be `random_normal` or `constant` instead of lists.
3: `centroid`, which older folders lack; matrices may be stored in int8, in a file of their own (`compress`).
4: `preparation` and `checks_off`, which older folders lack: an older lora_ft would answer texts as they are.
"""
LATER: Mapping[str, tuple[int, Any]] = {"centroid": (3, None), "preparation": (4, {}), "checks_off": (4, [])}
"""Keys that folders of an older format version lack: since when they are there, and what stands for them."""


@dataclass(frozen=True)
class BaseIdentity:
    """The base that an adapter was trained on.

    Attributes:
        name: Hub id, or the folder as in the recipe.
        revision: Commit of a hub id, or None.
        fingerprint: What `lora_ft.models.fingerprint` says of weights, config and tokenizer.
        parameters: Parameters of the base.
        bytes: Bytes of its weight files.
    """

    name: str
    revision: str | None
    fingerprint: dict[str, Any]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Probe:
    """A stored batch with the answers that the trained model gave for it.

    Attributes:
        inputs: Model inputs by name: nested lists, rows first, or how to make them again (`probe.probe_inputs`).
        logits: Answers of the adapted model, `(rows, values)`: logits, or what the task takes of its outputs.
        bare_logits: With the adapter off and the trained head on: what a dropped adapter would answer.
        precision: Compute dtype that they were made in, `float32`, `bfloat16` or `float16`.
        quantization: `nf4`, `fp4`, `int8`, or None.
    """

    inputs: dict[str, Any]
    logits: list[Any]
    bare_logits: list[Any]
    precision: str
    quantization: str | None


@dataclass(frozen=True)
class Centroid:
    """Where the training rows lie among the embeddings of the bare base; rows find their adapter by it.

    Attributes:
        mean: Their mean, `(width,)`.
        rows: How many rows it was made of.
    """

    mean: list[Any]
    rows: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of `adapter_model.safetensors`.

    Attributes:
        shape: Its shape.
        dtype: Its dtype as safetensors writes it, `F32`.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class FileInfo:
    """One file of the folder.

    Attributes:
        sha256: Hex digest of its content.
        bytes: Its size.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything that `verify`, `evaluate`, `predict` and `show` need to know of an adapter.

    Attributes:
        task: Name of the task.
        problem_type: One of the task's problem types.
        labels: All labels in the order of the head's rows; empty for regression.
        base: The base it belongs to.
        head: Modules that are trained in full and saved with the adapter.
        new_head: Whether the head was made for this run (the base had none that fits).
        peft_type: peft's method, `LORA`.
        versions: Version of each package that had a say.
        seed: Seed of the run.
        metrics: Main metrics of the run.
        learned: Whether the run learned anything; None if that is not known.
        settings: The recipe's `processor` section.
        precision: Compute dtype of the run.
        quantization: `nf4`, `fp4`, `int8`, or None.
        probe: A stored batch with its answers.
        created: When, ISO 8601 in UTC.
        run: Facts about the run: steps, seconds, rows, command.
        centroid: Of the training rows; None where the base gives no embedding of them, or they are not known.
        preparation: What was done to texts before they were encoded, and is done again to those to answer.
        checks_off: Names of the gates and findings that the recipe turned off.
        tensors: Every tensor of the adapter file; filled in by `write_adapter`.
        files: Every file of the folder but the manifest; filled in by `write_adapter`.
        format_version: Version of this format.
    """

    task: str
    problem_type: str
    labels: tuple[str, ...]
    base: BaseIdentity
    head: tuple[str, ...]
    new_head: bool
    peft_type: str
    versions: dict[str, str]
    seed: int
    metrics: dict[str, Any]
    learned: bool | None
    settings: dict[str, Any]
    precision: str
    quantization: str | None
    probe: Probe
    created: str
    run: dict[str, Any]
    centroid: Centroid | None = None
    preparation: dict[str, Any] = field(default_factory=dict)
    checks_off: list[Any] = field(default_factory=list)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    files: dict[str, FileInfo] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of `manifest.json`: one line for each top-level key, `checksum` over all of them last.

        Returns:
            The text.

        Raises:
            ValueError: A number is not finite, which JSON cannot hold.
        """
        content = _plain(self)
        content["checksum"] = checksum(content)
        lines = (
            f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in content.items()
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "manifest.json") -> Manifest:
        """Reads a manifest strictly.

        Args:
            text: What `to_json` wrote.
            where: The file, for messages.

        Returns:
            The manifest.

        Raises:
            AdapterRefused: It is no JSON, edited, of a newer format, or has unknown, missing or wrong keys.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise AdapterRefused(f"{where}: not readable as JSON ({error}). Copy the folder again.") from error
        if not isinstance(content, dict) or not content:
            raise AdapterRefused(f"{where}: empty. Expected what lora-ft train wrote. Copy the folder again.")
        version = content.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise AdapterRefused(f"{where}: format_version = {version!r}: expected {FORMAT_VERSION}.")
        if version > FORMAT_VERSION:
            raise AdapterRefused(
                f"{where}: format_version = {version}: written by a newer lora_ft; this one reads up to "
                f"{FORMAT_VERSION}. Upgrade lora_ft."
            )
        given = content.pop("checksum", None)
        if given != checksum(content):
            raise AdapterRefused(
                f"{where}: checksum does not match: the file was edited or damaged after training. Copy "
                "the folder again."
            )
        for key, (since, missing) in LATER.items():
            if version < since:
                content.setdefault(key, missing)
        manifest: Manifest = _read(cls, content, where=where)
        return manifest


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON (keys sorted, no spaces).

    Args:
        content: JSON-like content without its own checksum.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def installed_versions() -> dict[str, str]:
    """The version of every package that has a say in what an adapter computes."""
    names = (
        "lora-ft",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "datasets",
        "safetensors",
    )
    return {name: importlib.metadata.version(name) for name in names}


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON-like values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(vars(value)[one.name]) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _read(kind: Any, value: Any, *, where: str) -> Any:
    """A JSON-like value as the type that a field is declared with; refuses what does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _read(kind, value, where=where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, where=where) for item in value)
    if origin is list and isinstance(value, list):
        return value
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, where=f"{where}: {key}") for key, item in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, where=where)
    if isinstance(kind, type) and origin is None and type(value) is kind:
        return value
    expected = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise AdapterRefused(f"{where} = {value!r}: expected {expected}.")


def _read_fields(kind: Any, value: dict[str, Any], *, where: str) -> Any:
    """A dataclass from a mapping with exactly its fields."""
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            raise AdapterRefused(f"{where}: unknown key {key!r}.{closest(key, hints)}")
    for key in hints:
        if key not in value:
            raise AdapterRefused(f"{where}: {key} is missing.")
    return kind(**{key: _read(hints[key], item, where=f"{where}: {key}") for key, item in value.items()})
