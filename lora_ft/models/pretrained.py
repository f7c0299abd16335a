"""Calls transformers' from_pretrained, quantised or not, and turns its errors into ours."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from lora_ft.errors import ModelError
from lora_ft.models.config import unreadable
from lora_ft.models.head import label_modules, named_modules, outside_modules
from lora_ft.models.precision import Precision
from lora_ft.models.quantization import guard_cpu_4bit, quantization_settings, quantized_modules, refuse_unquantized
from lora_ft.models.resolve import KEY, BaseFolder


def load_plain(
    base: BaseFolder, *, auto_class: str, config: Any, arguments: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Loads a model from the files of a base.

    Args:
        base: Where it lies.
        auto_class: Name of the auto class.
        config: Its config, not changed.
        arguments: Further arguments of `from_pretrained`.

    Returns:
        The model and transformers' loading report.

    Raises:
        ModelError: transformers cannot load it.
    """
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


def load_quantized(
    base: BaseFolder,
    *,
    auto_class: str,
    config: Any,
    arguments: Mapping[str, Any],
    head: Sequence[str],
    quantization_config: Mapping[str, Any],
    precision: Precision,
) -> tuple[Any, Mapping[str, Any]]:
    """Loads a model quantised, all but the head; twice where the base lacks a module that nobody named.

    Args:
        base: Where it lies.
        auto_class: Name of the auto class.
        config: Its config, not changed.
        arguments: Further arguments of `from_pretrained`.
        head: Module names that hold the head in the families of the task.
        quantization_config: Arguments of BitsAndBytesConfig.
        precision: Device and compute type.

    Returns:
        The model and transformers' loading report.

    Raises:
        ModelError: transformers cannot load it, or it has nothing to quantise.
    """

    def load(skip: set[str]) -> tuple[Any, Mapping[str, Any]]:
        settings = quantization_settings(quantization_config, skip=sorted(skip), precision=precision)
        extra = {"quantization_config": settings, "device_map": {"": indexed(precision.device)}}
        return load_plain(base, auto_class=auto_class, config=config, arguments={**arguments, **extra})

    trust = arguments["trust_remote_code"]
    skeleton = build_skeleton(base, auto_class=auto_class, config=config, trust_remote_code=trust)
    skip = named_modules(skeleton, head)
    if head and not skip:
        skip = find_label_modules(base, auto_class=auto_class, config=config, trust_remote_code=trust)
    skip |= outside_modules(skeleton)
    model, info = load(skip)
    forgotten = {name.rpartition(".")[0] for name in fresh_weights(info)} & quantized_modules(model)
    if forgotten:
        model, info = load(skip | forgotten)
    refuse_unquantized(model, base=base.name)
    guard_cpu_4bit(model)
    return model, info


def build_skeleton(base: BaseFolder, *, auto_class: str, config: Any, trust_remote_code: bool) -> Any:
    """The model without weights.

    Args:
        base: Where it lies, for the error.
        auto_class: Name of the auto class.
        config: Its config, not changed.
        trust_remote_code: Whether code from the base's folder may run.

    Returns:
        The model on the meta device.

    Raises:
        ModelError: There is no such auto class for this kind of base.
    """
    try:
        with torch.device("meta"):
            return getattr(transformers, auto_class).from_config(
                copy.deepcopy(config), trust_remote_code=trust_remote_code
            )
    except (ValueError, ImportError) as error:
        raise _misfit(base, auto_class, error) from error


def find_label_modules(base: BaseFolder, *, auto_class: str, config: Any, trust_remote_code: bool) -> set[str]:
    """The full names of the modules whose shapes follow the number of labels, wherever a family keeps them.

    timm calls its classifier `fc`, `head.fc` or `classifier`, and RT-DETR has one in each layer of its decoder.

    Args:
        base: Where it lies, for the error.
        auto_class: Name of the auto class.
        config: Its config, not changed.
        trust_remote_code: Whether code from the base's folder may run.

    Returns:
        The names; empty where nothing depends on the labels.
    """
    more = copy.deepcopy(config)
    more.num_labels = config.num_labels + 1
    one, other = (
        build_skeleton(base, auto_class=auto_class, config=each, trust_remote_code=trust_remote_code)
        for each in (config, more)
    )
    return label_modules(one, other)


def fresh_weights(info: Mapping[str, Any]) -> set[str]:
    """Names of the weights that did not come from the base, by transformers' loading report."""
    return {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


def indexed(device: str) -> str:
    """`cuda` with its number: the Trainer compares devices by number."""
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def _misfit(base: BaseFolder, auto_class: str, error: Exception) -> ModelError:
    """The error for a base that transformers cannot load; for the wrong kind with the kinds that would do."""
    if "Unrecognized configuration class" not in str(error):
        return unreadable(base, "model", error)
    kinds = str(error).partition("should be one of ")[2].replace("Config", "")
    return ModelError(
        f"{KEY} = {base.name!r}: there is no {auto_class} for this kind of base. Expected one of: {kinds}"
        " Take a base of one of these kinds, or another task."
    )


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
