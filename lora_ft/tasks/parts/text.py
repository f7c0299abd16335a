"""Texts -> batches: how many tokens a row may have, and how features are padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.recipe.bases import most_tokens
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.problem import Features, Problem

if TYPE_CHECKING:
    import torch

DEFAULT_MAX_LENGTH = 512

TEXT_FIELDS: Mapping[str, FieldTypes] = {
    "max_length": (int,),
    "truncation": (True, "longest_first", "only_first", "only_second"),
    "padding": (True, "longest", "max_length"),
    "pad_to_multiple_of": (int,),
    "truncation_side": ("right", "left"),
    "padding_side": ("right", "left"),
}
"""The keys of the `processor` section that every task on texts understands."""

UNLIMITED = 1 << 30


def text_settings(given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """The `processor` section with `max_length` filled in: as the recipe says, never more than the base can read.

    Args:
        given: The section as the recipe has it.
        base_config: The base's config.json.
        processor: The base's tokenizer.

    Returns:
        The section with `max_length`.

    Raises:
        InputError: The recipe asks for more tokens than the base has positions.
    """
    positions = positions_of(base_config)
    asked = given.get("max_length")
    if asked is not None and asked > positions:
        raise InputError(
            f"processor.max_length = {asked}: the base reads at most {positions} tokens. Set it to {positions} or less"
        )
    limit = min(positions, int(processor.model_max_length), DEFAULT_MAX_LENGTH)
    return {**given, "max_length": limit if asked is None else int(asked)}


def positions_of(base_config: Mapping[str, Any]) -> int:
    """The most tokens that a base reads, of its config.json."""
    most = most_tokens(dict(base_config))
    return UNLIMITED if most is None else most


def set_truncation_side(problem: Problem) -> None:
    """Gives the tokenizer the side that the recipe wants to be cut; a call cannot say it."""
    side = problem.settings.get("truncation_side", problem.processor.truncation_side)
    if side != problem.processor.truncation_side:
        problem.processor.truncation_side = side


def pad_features(
    features: Sequence[Mapping[str, Any]], problem: Problem, *, names: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Pads the model inputs of some features to one length.

    Args:
        features: Features without padding; what is no input of the tokenizer's model is left out.
        problem: Its settings say how long: to the longest feature, unless `padding` is `max_length`.
        names: The inputs to pad, if not all that the tokenizer knows.

    Returns:
        Tensors `(features, tokens)`.
    """
    processor, settings = problem.processor, problem.settings
    padding = settings.get("padding", "longest")
    wanted = processor.model_input_names if names is None else names
    return dict(
        processor.pad(
            [{name: row[name] for name in row if name in wanted} for row in features],
            padding=padding,
            max_length=settings["max_length"] if padding == "max_length" else None,
            pad_to_multiple_of=settings.get("pad_to_multiple_of"),
            padding_side=settings.get("padding_side", processor.padding_side),
            return_tensors="pt",
        )
    )


def give_empty_rows_a_token(features: Features, processor: Any) -> None:
    """A GPT tokenizer makes no token of an empty text, and no model reads a row without one: it gets the pad token."""
    for row, ids in enumerate(features["input_ids"]):
        if not ids:
            for name in features:
                features[name][row] = [1] if name == "attention_mask" else [0]
            features["input_ids"][row] = [processor.pad_token_id]
