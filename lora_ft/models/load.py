"""Loads a base for a task: frozen, without dropout, its head known, quantised if the recipe asks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from lora_ft.errors import ModelError
from lora_ft.models.config import load_config, unreadable
from lora_ft.models.head import fresh_modules, head_names, named_modules, outside_modules, report_unused
from lora_ft.models.precision import DTYPES, Precision
from lora_ft.models.quantization import (
    guard_cpu_4bit,
    quantization_kind,
    quantization_settings,
    quantized_modules,
)
from lora_ft.models.resolve import KEY, BaseFolder
from lora_ft.models.weights import stored_dtype, stored_tensors

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Attributes:
        model: The model; nothing in it trains.
        head: Names of the modules that make up the head, as `modules_to_save` takes them.
        new_head: Whether the head has fresh random weights, so that the base alone cannot do the task.
        quantization: `nf4`, `fp4`, `int8`, or None.
    """

    model: Any
    head: tuple[str, ...]
    new_head: bool
    quantization: str | None


def load_base(
    base: BaseFolder,
    *,
    auto_class: str,
    head: Sequence[str],
    config: Mapping[str, Any],
    precision: Precision,
    quantization_config: Mapping[str, Any] | None,
    dropout: float | Literal["keep"],
    attn_implementation: str | None,
    dtype: str | None,
    trust_remote_code: bool,
) -> Base:
    """Loads a base for a task and freezes it.

    Args:
        base: Where it lies.
        auto_class: Name of transformers' auto class: `AutoModelForSequenceClassification`.
        head: Module names that hold the head in the families of the task.
        config: Config fields that the data decides, such as `num_labels` and `id2label`.
        precision: Device and compute type; the model is put on that device.
        quantization_config: Arguments of BitsAndBytesConfig, or None.
        dropout: Probability for every dropout of the base, or `keep`.
        attn_implementation: `eager`, `sdpa`, ..., or None for the default.
        dtype: Type of the weights, or None: 16 bit stays 16 bit where the device computes in 16 bit, else
        float32.
        trust_remote_code: Whether code from the base's folder may run.

    Returns:
        The model and what is known of its head. New heads are drawn from torch's global random generator.

    Raises:
        ModelError: The base does not fit the task, cannot be read, or lacks weights.
    """
    settings = load_config(base, fields=config, dropout=dropout, trust_remote_code=trust_remote_code)
    arguments: dict[str, Any] = {
        "dtype": _weight_dtype(base, dtype, precision),
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    if quantization_config is None:
        model, info = _from_pretrained(base, auto_class=auto_class, config=settings, arguments=arguments)
        model = model.to(_indexed(precision.device))
    else:
        model, info = _quantized(
            base,
            auto_class=auto_class,
            config=settings,
            arguments=arguments,
            head=head,
            quantization_config=quantization_config,
            precision=precision,
        )
    model.requires_grad_(False)
    outside, inside = fresh_modules(model, _fresh(info), base=base.name)
    report_unused(model, info["unexpected_keys"], base=base.name)
    names = head_names(model, known=head, new=outside | inside)
    if precision.autocast:
        for name in named_modules(model, names):
            model.get_submodule(name).float()  # what trains is kept in float32
    _share_pad_token(base, model, trust_remote_code=trust_remote_code)
    kind = quantization_kind(quantization_config)
    logger.info("base %s: %s, head %s%s", base.name, kind or model.dtype, names, " (new)" if outside else "")
    return Base(model=model, head=names, new_head=bool(outside), quantization=kind)


def load_processor(base: BaseFolder | Path, *, trust_remote_code: bool) -> Any:
    """Loads the tokenizer of a base or of an adapter folder.

    A tokenizer without a pad token gets the end-of-text token (or the unknown token), so that no embedding
    grows.

    Args:
        base: A base, or a folder with tokenizer files.
        trust_remote_code: Whether code from that folder may run.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is no tokenizer, it cannot be read, or it has no token that could pad.
    """
    where = base if isinstance(base, BaseFolder) else BaseFolder(str(base), None, base)
    if not _has_tokenizer(where):
        raise ModelError(
            f"{where.folder}: no tokenizer. Expected one of {', '.join(TOKENIZER_FILES)}. Copy the base with"
            " its tokenizer."
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            where.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(where, "tokenizer", error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{where.folder}: the tokenizer has no token to pad with. Expected pad_token, eos_token or"
            " unk_token in tokenizer_config.json. Add one that the vocabulary has."
        )
    return tokenizer


def _has_tokenizer(base: BaseFolder) -> bool:
    return any((base.folder / file).is_file() for file in TOKENIZER_FILES)


def _share_pad_token(base: BaseFolder, model: Any, *, trust_remote_code: bool) -> None:
    """Tells the model which token pads: GPT classifiers read the last token that is not this one."""
    if _has_tokenizer(base):
        pad = load_processor(base, trust_remote_code=trust_remote_code).pad_token_id
        for part in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
            part.pad_token_id = pad


def _weight_dtype(base: BaseFolder, dtype: str | None, precision: Precision) -> torch.dtype:
    """The type of the weights in memory."""
    if dtype is not None:
        return DTYPES[dtype]
    half = precision.autocast and stored_dtype(stored_tensors(base.folder)) in ("F16", "BF16")
    return precision.compute_dtype if half else torch.float32


def _indexed(device: str) -> str:
    """`cuda` with its number: the Trainer compares devices by number."""
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def _from_pretrained(
    base: BaseFolder, *, auto_class: str, config: Any, arguments: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """The model and transformers' loading report."""
    with _quiet():
        try:
            model, info = getattr(transformers, auto_class).from_pretrained(
                base.folder,
                config=copy.deepcopy(config),
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **arguments,
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise _misfit(base, auto_class, error) from error
    return model, info


def _misfit(base: BaseFolder, auto_class: str, error: Exception) -> ModelError:
    """The error for a base that transformers cannot load; for the wrong kind with the kinds that would do."""
    if "Unrecognized configuration class" not in str(error):
        return unreadable(base, "model", error)
    kinds = str(error).partition("should be one of ")[2].replace("Config", "")
    return ModelError(
        f"{KEY} = {base.name!r}: there is no {auto_class} for this kind of base. Expected one of: {kinds}"
        " Take a base of one of these kinds, or another task."
    )


def _quantized(
    base: BaseFolder,
    *,
    auto_class: str,
    config: Any,
    arguments: Mapping[str, Any],
    head: Sequence[str],
    quantization_config: Mapping[str, Any],
    precision: Precision,
) -> tuple[Any, Mapping[str, Any]]:
    """Loads quantised, all but the head; twice where the base lacks a module that nobody named."""

    def load(skip: set[str]) -> tuple[Any, Mapping[str, Any]]:
        settings = quantization_settings(quantization_config, skip=sorted(skip), precision=precision)
        extra = {"quantization_config": settings, "device_map": {"": _indexed(precision.device)}}
        return _from_pretrained(base, auto_class=auto_class, config=config, arguments={**arguments, **extra})

    skip = _head_modules(base, auto_class=auto_class, config=config, head=head, trust=arguments["trust_remote_code"])
    model, info = load(skip)
    forgotten = {name.rpartition(".")[0] for name in _fresh(info)} & quantized_modules(model)
    if forgotten:
        model, info = load(skip | forgotten)
    guard_cpu_4bit(model)
    return model, info


def _head_modules(base: BaseFolder, *, auto_class: str, config: Any, head: Sequence[str], trust: bool) -> set[str]:
    """The full names of all modules of the head, found on a model without weights."""
    try:
        with torch.device("meta"):
            skeleton = getattr(transformers, auto_class).from_config(copy.deepcopy(config), trust_remote_code=trust)
    except (ValueError, ImportError) as error:
        raise _misfit(base, auto_class, error) from error
    return outside_modules(skeleton) | named_modules(skeleton, head)


def _fresh(info: Mapping[str, Any]) -> set[str]:
    """Names of the weights that did not come from the base."""
    return {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' table of fresh and unused weights: `head.py` reports what matters of it."""
    noisy = logging.getLogger("transformers.modeling_utils")
    noisy.addFilter(_no_table)
    try:
        yield
    finally:
        noisy.removeFilter(_no_table)


def _no_table(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
