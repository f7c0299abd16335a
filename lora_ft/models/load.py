"""Loads a base for a task: frozen, without dropout, its head known, quantised if the recipe asks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lora_ft.errors import ModelError
from lora_ft.models.config import load_config, set_dropouts, unreadable
from lora_ft.models.frozen import freeze
from lora_ft.models.head import find_head, report_unused
from lora_ft.models.precision import DTYPES, Precision
from lora_ft.models.pretrained import find_label_modules, fresh_weights, indexed, load_plain, load_quantized
from lora_ft.models.processor import WORDS, has_files, inner_tokenizer, missing_files, read_processor
from lora_ft.models.quantization import quantization_kind
from lora_ft.models.resolve import BaseFolder
from lora_ft.models.weights import stored_dtype, stored_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Attributes:
        model: The model; nothing in it trains.
        head: Names of the modules that make up the head, as `modules_to_save` takes them; empty where the base does
            the task with all that it has (language models, Whisper).
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
        head: Module names that hold the head in the families of the task, in full or their last parts.
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
        model, info = load_plain(base, auto_class=auto_class, config=settings, arguments=arguments)
        model = model.to(indexed(precision.device))
    else:
        model, info = load_quantized(
            base,
            auto_class=auto_class,
            config=settings,
            arguments=arguments,
            head=head,
            quantization_config=quantization_config,
            precision=precision,
        )
    found = find_head(
        model,
        known=head,
        fresh=fresh_weights(info),
        base=base.name,
        labelled=lambda: find_label_modules(
            base, auto_class=auto_class, config=settings, trust_remote_code=trust_remote_code
        ),
    )
    norms = freeze(model, head=found.modules)
    if dropout != "keep":
        set_dropouts(model, float(dropout))
    report_unused(model, info["unexpected_keys"], base=base.name)
    if precision.autocast:
        for name in found.modules:
            model.get_submodule(name).float()  # what trains is kept in float32
    if "pad_token_id" not in config:
        _share_pad_token(base, model, trust_remote_code=trust_remote_code)
    kind = quantization_kind(quantization_config)
    named = f"{', '.join(found.names)} (new)" if found.new else "the base's own"
    kept = f", running statistics of {norms} norms kept" if norms else ""
    logger.info("base %s: %s; head: %s%s", base.name, kind or model.dtype, named, kept)
    return Base(model=model, head=found.names, new_head=found.new, quantization=kind)


def load_processor(
    base: BaseFolder | Path, *, classes: Sequence[str] = ("AutoTokenizer",), trust_remote_code: bool
) -> Any:
    """Loads what turns rows into model inputs, from a base or an adapter folder.

    A tokenizer without a pad token gets the end-of-text token (or the unknown token), so that no embedding
    grows. Images are processed by PIL on every machine: torchvision rounds otherwise, and is not there everywhere.

    Args:
        base: A base, or a folder with the files of a processor.
        classes: Names of auto classes, `AutoProcessor` say; the first that the folder has the files of is taken.
        trust_remote_code: Whether code from that folder may run.

    Returns:
        The tokenizer, image processor, feature extractor, or processor of several of them.

    Raises:
        ModelError: There is none of them, it cannot be read, or its tokenizer has no token that could pad.
    """
    where = base if isinstance(base, BaseFolder) else BaseFolder(str(base), None, base)
    chosen = next((name for name in classes if has_files(where.folder, name)), None)
    if chosen is None:
        raise ModelError(missing_files(where.folder, classes))
    try:
        processor = read_processor(where.folder, chosen, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(where, WORDS[chosen], error) from error
    tokenizer = inner_tokenizer(processor)
    if tokenizer is not None and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise ModelError(
                f"{where.folder}: the tokenizer has no token to pad with. Expected pad_token, eos_token or"
                " unk_token in tokenizer_config.json. Add one that the vocabulary has."
            )
    return processor


def _share_pad_token(base: BaseFolder, model: Any, *, trust_remote_code: bool) -> None:
    """Tells a model of texts which token pads: GPT classifiers read the last token that is not this one."""
    if model.main_input_name == "input_ids" and has_files(base.folder, "AutoTokenizer"):
        pad = load_processor(base, trust_remote_code=trust_remote_code).pad_token_id
        for part in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
            part.pad_token_id = pad


def _weight_dtype(base: BaseFolder, dtype: str | None, precision: Precision) -> torch.dtype:
    """The type of the weights in memory."""
    if dtype is not None:
        return DTYPES[dtype]
    half = precision.autocast and stored_dtype(stored_tensors(base.folder)) in ("F16", "BF16")
    return precision.compute_dtype if half else torch.float32
