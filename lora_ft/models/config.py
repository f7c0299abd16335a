"""Reads the config of a base and fits it to the task: its label fields and its dropouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import transformers
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lora_ft.errors import ModelError
from lora_ft.models.resolve import KEY, BaseFolder


def load_config(
    base: BaseFolder, *, fields: Mapping[str, Any], dropout: float | Literal["keep"], trust_remote_code: bool
) -> Any:
    """Reads a base's config; the file on disk stays as it is.

    Args:
        base: Where the base lies.
        fields: Fields that the data decides, such as `num_labels`, `id2label`, `label2id`, `problem_type`.
        dropout: Probability for every dropout field, or `keep`. A frozen base gains nothing from its own dropouts,
            and they cost a third of the step.
        trust_remote_code: Whether code from the base's folder may run.

    Returns:
        The config for the auto class.

    Raises:
        ModelError: The config cannot be read, needs code that was not allowed, or belongs to a quantised copy.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(
            base.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(base, "config.json", error) from error
    for method in [part.to_dict().get("quantization_config") for part in all_configs(config)]:
        if method:
            raise ModelError(
                f"{KEY} = {base.name!r}: this copy is stored quantised ({method.get('quant_method')})."
                " Expected unquantised weights. Take the original and say in quantization_config how to"
                " quantise it."
            )
    for name, value in fields.items():
        setattr(config, name, value)
    if dropout != "keep":
        for part in all_configs(config):
            _set_dropouts(part, float(dropout))
    return config


def all_configs(config: Any) -> Iterator[Any]:
    """A config and the configs within it (text, vision, ...)."""
    yield config
    for name in config.sub_configs:
        part = vars(config).get(name)
        if isinstance(part, transformers.PreTrainedConfig):
            yield from all_configs(part)


def _set_dropouts(config: Any, probability: float) -> None:
    """Sets every probability whose name says drop: hidden_dropout_prob, attn_pdrop, layerdrop, drop_path_rate, ...

    None stays None: there a model falls back on one of the other fields. timm's are arguments within `model_args`.
    """
    for name, value in list(vars(config).items()):
        if _is_dropout(name, value):
            setattr(config, name, probability)
        elif name == "model_args" and isinstance(value, dict):
            set_to = {key: probability for key, given in value.items() if _is_dropout(key, given)}
            setattr(config, name, {**value, **set_to})


def set_dropouts(model: nn.Module, probability: float) -> None:
    """Sets every dropout that is left: a few models have one that no field of the config knows (GPT-2's heads).

    Args:
        model: A loaded base; changed in place.
        probability: For every dropout that is not off anyway.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            module.p = probability


def _is_dropout(name: str, value: Any) -> bool:
    return "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def unreadable(base: BaseFolder, what: str, error: Exception) -> ModelError:
    """The error for a part of a base that transformers cannot read."""
    reason = str(error).strip().split("\n")[0]
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{KEY} = {base.name!r}: its {what} needs code from {base.folder}. Expected a base that"
            " transformers knows. Read that code, and set model.trust_remote_code: true if you trust it."
        )
    return ModelError(
        f"{KEY} = {base.name!r}: transformers {transformers.__version__} cannot read its {what}: {reason}"
        f" Expected a base that this version knows, whole. Look at {base.folder}."
    )
