"""Fingerprints a base by its files, so that an adapter is never used on another base than its own.

Where the parts come from, of one real base (all-MiniLM-L6-v2):
    weights    model.safetensors   encoder.layer.0.output.dense.weight  F32  (384, 1536)  and its bytes
    config     config.json         {"model_type": "bert", "hidden_size": 384, ...} without what versions write
    tokenizer  tokenizer.json      {"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, ...}}, ...}
and of a base for images or sounds:
    inputs     preprocessor_config.json  {"size": {"height": 224, "width": 224}, "image_mean": [0.5, 0.5, 0.5], ...}
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lora_ft.errors import ModelError
from lora_ft.models.resolve import BaseFolder
from lora_ft.models.weights import StoredTensor, stored_tensors, weight_files

logger = logging.getLogger(__name__)

FORMAT = 2
FULL_BYTES = 2 * 1024**3  # up to here every byte is read: a few seconds
WHOLE_TENSOR_BYTES = 1024**2
BLOCKS = 64
BLOCK_BYTES = 4096
READ_BYTES = 4 * 1024**2

VOLATILE_CONFIG = frozenset(
    [
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "architectures",
        "use_cache",
        "gradient_checkpointing",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
    ]
)
"""Fields that versions of transformers write differently, or that the recipe sets anyway."""

VOCABULARY_FILES = [
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
]
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FIELDS = [
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "add_bos_token",
    "add_eos_token",
]
"""Fields of tokenizer_config.json that change ids though tokenizer.json stays the same."""

PREPROCESSOR_FILES = ["preprocessor_config.json", "processor_config.json"]
PREPROCESSOR_PARTS = ["image_processor", "feature_extractor"]
"""Where processor_config.json, as transformers 5 writes it, keeps what once was preprocessor_config.json."""

PREPROCESSOR_FIELDS = [
    "do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size", "do_pad", "pad_size", "do_convert_rgb",
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "sampling_rate", "feature_size",
    "num_mel_bins", "n_fft", "hop_length", "chunk_length", "max_length", "dither", "padding_value",
    "return_attention_mask", "mean", "std",
]  # fmt: skip
"""Fields that decide which numbers become of an image or a sound."""


@dataclass(frozen=True)
class Fingerprint:
    """What a base is, in a few digests; `Fingerprint(**asdict(fingerprint))` gives it back.

    Attributes:
        weights: Digest of names, types, shapes and values, however the weights are split into files.
        shapes: Digest of names and shapes alone: tells another architecture from other values.
        config: Digest of what in config.json changes results.
        tokenizer: Digest of what changes token ids, or `none`.
        method: `full` if every byte was read, `sampled` if large tensors were read in evenly spaced blocks.
        bytes: Size of all weights.
        inputs: Digest of what makes numbers of images and sounds, or `none` (texts).
    """

    weights: str
    shapes: str
    config: str
    tokenizer: str
    method: str
    bytes: int
    inputs: str = "none"


def fingerprint(base: BaseFolder, *, cache_dir: Path | None) -> Fingerprint:
    """Fingerprints a base; a base of 140 GB takes seconds, a known one milliseconds.

    Args:
        base: Where it lies.
        cache_dir: Folder for known fingerprints, or None: always computed.

    Returns:
        The fingerprint; the same for copies, other shardings and other versions of transformers.

    Raises:
        ModelError: A file of the base is damaged.
    """
    if cache_dir is None:
        return _compute(base.folder)
    stamps = _stamps(base.folder)
    record = cache_dir / f"{_digest([str(base.folder.resolve())])[:32]}.json"
    known = _read_cache(record, stamps)
    if known is not None:
        return known
    computed = _compute(base.folder)
    _write_cache(record, stamps, computed)
    return computed


def differences(recorded: Fingerprint, found: Fingerprint) -> list[str]:
    """Says in words how two bases differ.

    Args:
        recorded: The base that an adapter was trained on.
        found: The base that it is about to be used on.

    Returns:
        One reason a line; empty if they are the same.
    """
    reasons = []
    sizes = f"({found.bytes:,} bytes, recorded {recorded.bytes:,})"
    if recorded.shapes != found.shapes:
        reasons.append(f"weights differ: another architecture or size {sizes}")
    elif recorded.bytes != found.bytes:
        reasons.append(f"weights differ: same shapes, stored in another type {sizes}")
    elif recorded.weights != found.weights:
        reasons.append("weights differ: same shapes, other values (another training, or a damaged file)")
    if recorded.config != found.config:
        reasons.append("config.json differs: the same weights would compute something else")
    if recorded.tokenizer != found.tokenizer:
        reasons.append("tokenizer differs: the same text would give other token ids")
    if recorded.inputs != found.inputs:
        reasons.append("preprocessor_config.json differs: the same image or sound would give other numbers")
    return reasons


def _compute(folder: Path) -> Fingerprint:
    tensors = stored_tensors(folder)
    size = sum(tensor.size_bytes for tensor in tensors)
    method = "full" if size <= FULL_BYTES else "sampled"
    return Fingerprint(
        weights=_digest(
            f"{tensor.name} {tensor.dtype} {tensor.shape} {content}"
            for tensor, content in zip(tensors, _contents(tensors, sampled=method == "sampled"), strict=True)
        ),
        shapes=_digest(f"{tensor.name} {tensor.shape}" for tensor in tensors),
        config=_digest([_canonical(folder / "config.json", without=VOLATILE_CONFIG)]),
        tokenizer=_tokenizer(folder),
        method=method,
        bytes=size,
        inputs=_inputs(folder),
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _contents(tensors: Sequence[StoredTensor], *, sampled: bool) -> list[str]:
    """The digest of each tensor's bytes; files are read front to back."""
    digests: dict[str, str] = {}
    for file in sorted({tensor.file for tensor in tensors}):
        with file.open("rb", buffering=0) as stream:
            inside = [tensor for tensor in tensors if tensor.file == file]
            for tensor in sorted(inside, key=lambda tensor: tensor.offset_bytes):
                digest = hashlib.sha256()
                for offset, size in _ranges(tensor.size_bytes, sampled=sampled):
                    _feed(digest, stream, start=tensor.offset_bytes + offset, size=size)
                digests[tensor.name] = digest.hexdigest()
    return [digests[tensor.name] for tensor in tensors]


def _ranges(size: int, *, sampled: bool) -> Iterator[tuple[int, int]]:
    """Which bytes of a tensor are read: `(offset, size)` pairs; first and last block always."""
    if not sampled or size <= WHOLE_TENSOR_BYTES:
        yield 0, size
        return
    for block in range(BLOCKS):
        yield (size - BLOCK_BYTES) * block // (BLOCKS - 1), BLOCK_BYTES


def _feed(digest: Any, stream: BinaryIO, *, start: int, size: int) -> None:
    """Feeds bytes of a file to a digest, a few megabytes at a time."""
    stream.seek(start)
    while size > 0:
        chunk = stream.read(min(size, READ_BYTES))
        if not chunk:
            raise ModelError(f"{stream.name}: the file became shorter while it was read. Try again.")
        digest.update(chunk)
        size -= len(chunk)


def _canonical(file: Path, *, without: frozenset[str] = frozenset(), only: Sequence[str] | None = None) -> str:
    """A JSON file in one spelling, without some of its top-level fields; null counts as absent."""
    return _spelled(_object(file), without=without, only=only)


def _object(file: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return dict(content.items())
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file}: not a JSON object ({error}). Download or copy the base again.") from error


def _spelled(content: Mapping[str, Any], *, without: frozenset[str], only: Sequence[str] | None) -> str:
    kept = {
        key: value
        for key, value in content.items()
        if key not in without and (only is None or key in only) and value is not None
    }
    return json.dumps(kept, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _inputs(folder: Path) -> str:
    """Digest of how images and sounds become numbers; timm says it in config.json, which has a digest anyway."""
    for name in PREPROCESSOR_FILES:
        if (folder / name).is_file():
            content = _object(folder / name)
            parts = [content[part] for part in PREPROCESSOR_PARTS if isinstance(content.get(part), dict)]
            return _digest(_spelled(part, without=frozenset(), only=PREPROCESSOR_FIELDS) for part in parts or [content])
    return "none"


def _tokenizer(folder: Path) -> str:
    """Digest of what decides token ids; padding and truncation change with every use of a tokenizer."""
    parts: list[str] = []
    if (folder / "tokenizer.json").is_file():
        parts.append(_canonical(folder / "tokenizer.json", without=frozenset({"padding", "truncation"})))
    else:
        for name in VOCABULARY_FILES:
            if (folder / name).is_file():
                parts.append(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}")
    if not parts:
        return "none"
    if (folder / TOKENIZER_CONFIG).is_file():
        parts.append(_canonical(folder / TOKENIZER_CONFIG, only=TOKENIZER_FIELDS))
    return _digest(parts)


def _stamps(folder: Path) -> list[list[str | int]]:
    """Real path, size, time and inode of every file that a fingerprint reads."""
    names = ("config.json", "tokenizer.json", TOKENIZER_CONFIG, *VOCABULARY_FILES, *PREPROCESSOR_FILES)
    files = [*weight_files(folder), *(folder / name for name in names if (folder / name).is_file())]
    status = [(str(file.resolve()), file.stat()) for file in files]
    return [[path, found.st_size, found.st_mtime_ns, found.st_ino] for path, found in status]


def _read_cache(record: Path, stamps: list[list[str | int]]) -> Fingerprint | None:
    """The known fingerprint, or None where there is none, the files changed, or the record is broken."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["format"] == FORMAT and content["files"] == stamps:
            return Fingerprint(**content["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _write_cache(record: Path, stamps: list[list[str | int]], computed: Fingerprint) -> None:
    """Writes a record whole or not at all; without a cache things are slower, not wrong."""
    content = {"format": FORMAT, "files": stamps, "fingerprint": asdict(computed)}
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=record.parent) as place:
            part = Path(place) / record.name
            part.write_text(json.dumps(content), encoding="utf-8")
            part.replace(record)
    except OSError as error:
        logger.warning("fingerprint of the base not cached in %s: %s", record.parent, error)
