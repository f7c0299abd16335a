"""Reads the processor of a folder: which auto class it has the files of, and how that is called here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
TIMM = "TimmWrapperImageProcessor"

WORDS = {
    "AutoTokenizer": "tokenizer",
    "AutoImageProcessor": "image processor",
    "AutoFeatureExtractor": "feature extractor",
    "AutoProcessor": "processor",
}
PARTS = {"AutoImageProcessor": "image_processor", "AutoFeatureExtractor": "feature_extractor"}
"""Under which key `processor_config.json`, written by transformers 5, holds the parts of a processor."""


def has_files(folder: Path, auto_class: str) -> bool:
    """Whether a folder has the files that an auto class reads.

    Args:
        folder: A base or an adapter folder.
        auto_class: One of `WORDS`.
    """
    tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    if auto_class == "AutoTokenizer":
        return tokenizer
    settings = (folder / PREPROCESSOR).is_file()
    if auto_class == "AutoProcessor":
        return tokenizer and (settings or (folder / PROCESSOR).is_file())
    inside = PARTS[auto_class] in json_object(folder / PROCESSOR)
    return settings or inside or (auto_class == "AutoImageProcessor" and _is_timm(folder))


def missing_files(folder: Path, classes: Sequence[str]) -> str:
    """The message for a folder that has none of the processors that would do.

    Args:
        folder: The folder.
        classes: The auto classes that would do.
    """
    words = " and no ".join(WORDS[name] for name in classes)
    if tuple(classes) == ("AutoTokenizer",):
        expected = f"one of {', '.join(TOKENIZER_FILES)}"
    elif "AutoImageProcessor" in classes or "AutoFeatureExtractor" in classes:
        expected = f"{PREPROCESSOR} (or {PROCESSOR})"
    else:
        expected = f"{PREPROCESSOR} (or {PROCESSOR}), and one of {', '.join(TOKENIZER_FILES)}"
    return f"{folder}: no {words}. Expected {expected}. Copy the base with its {WORDS[classes[0]]}."


def read_processor(folder: Path, auto_class: str, *, trust_remote_code: bool) -> Any:
    """Calls an auto class on a folder.

    Args:
        folder: A base or an adapter folder.
        auto_class: One of `WORDS`, whose files the folder has.
        trust_remote_code: Whether code from that folder may run.

    Returns:
        What it loads.

    Raises:
        OSError: A file cannot be read.
        ValueError: transformers does not know the kind.
        ImportError: It needs a package that is not there.
    """
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if auto_class == "AutoImageProcessor":
        saved = json_object(folder / PREPROCESSOR)
        if saved.get("image_processor_type") == TIMM:  # it reads its settings from a base's config.json alone
            return transformers.TimmWrapperImageProcessor(
                pretrained_cfg=saved["data_config"], architecture=saved["architecture"]
            )
        if not _is_timm(folder):
            arguments["backend"] = "pil"
    return getattr(transformers, auto_class).from_pretrained(folder, **arguments)


def inner_tokenizer(processor: Any) -> Any | None:
    """The tokenizer that a processor is or has, if any.

    Args:
        processor: What `read_processor` returned.
    """
    if isinstance(processor, transformers.PreTrainedTokenizerBase):
        return processor
    return vars(processor).get("tokenizer") if isinstance(processor, transformers.ProcessorMixin) else None


def json_object(file: Path) -> dict[str, Any]:
    """A JSON object of a file; empty where there is none, or it holds something else.

    Args:
        file: The file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_timm(folder: Path) -> bool:
    """Whether a folder is a timm model, whose config.json says how images are processed."""
    return "pretrained_cfg" in json_object(folder / "config.json")
