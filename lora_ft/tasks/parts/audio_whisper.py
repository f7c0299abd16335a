"""Whisper: the prompt that names language and task, the decoder's inputs and targets, and generated transcripts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError, closest
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.generation import SAMPLING, unwrapped
from lora_ft.tasks.parts.problem import Generation, Problem

if TYPE_CHECKING:
    import torch

FAMILIES = ("whisper",)

WHISPER_FIELDS: Mapping[str, FieldTypes] = {"language": (str,), "task": ("transcribe", "translate")}

GENERATION_FIELDS: Mapping[str, FieldTypes] = {
    "max_new_tokens": (int,),
    "num_beams": (int,),
    "length_penalty": (float,),
    "repetition_penalty": (float,),
    "no_repeat_ngram_size": (int,),
}

GREEDY: Mapping[str, Any] = {
    "do_sample": False, "num_beams": 1, "length_penalty": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
}  # fmt: skip
"""What the recipe does not say, whatever the base's own generation_config.json does."""

ENGLISH_ONLY_VOCABULARY = 51_864
"""OpenAI's own mark: the English-only models have one token less than the multilingual ones."""

DEFAULT_LANGUAGE = "english"
MAX_TARGET_POSITIONS = 448
START, NO_TIMESTAMPS = "<|startoftranscript|>", "<|notimestamps|>"


def whisper_settings(given: Mapping[str, Any], *, base_config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What the `processor` section leaves out: language, task and prompt; transcripts are written as they are.

    Args:
        given: The section as the recipe has it.
        base_config: The base's config.json.
        tokenizer: The base's tokenizer.

    Returns:
        The settings; `prompt` are the tokens that every transcript begins with, in training as in prediction.

    Raises:
        InputError: The base does not know the language, or is English-only and another one is asked for.
    """
    writing = {
        "text_case": given.get("text_case", "keep"),
        "text_punctuation": given.get("text_punctuation", "keep"),
        "scored_text": given.get("scored_text", "words"),
        "max_target_positions": int(base_config.get("max_target_positions", MAX_TARGET_POSITIONS)),
    }
    language, task = given.get("language"), given.get("task", "transcribe")
    if base_config.get("vocab_size") == ENGLISH_ONLY_VOCABULARY:
        if task != "transcribe" or (language or DEFAULT_LANGUAGE).lower() not in ("english", "en"):
            raise InputError(
                f"processor.language = {language}, task = {task}: the base is English-only and transcribes. Leave them "
                "out, or take a multilingual base, without .en in its name"
            )
        return {**writing, "prompt": tokenizer.convert_tokens_to_ids([START, NO_TIMESTAMPS])}
    code = _language_code(language or DEFAULT_LANGUAGE, tokenizer)
    tokens = [START, f"<|{code}|>", f"<|{task}|>", NO_TIMESTAMPS]
    return {**writing, "language": code, "task": task, "prompt": tokenizer.convert_tokens_to_ids(tokens)}


def room_for_tokens(problem: Problem) -> int:
    """The most tokens that a transcript may have beside the prompt, its end among them."""
    return int(problem.settings["max_target_positions"]) - len(problem.settings["prompt"])


def check_generation(problem: Problem) -> None:
    """Refuses generation settings that the base cannot do.

    Raises:
        InputError: No beam, no token, or more tokens than the decoder has positions.
    """
    room, generation = room_for_tokens(problem), problem.generation
    if not 1 <= generation.get("max_new_tokens", 1) <= room:
        raise InputError(
            f"generation_config.max_new_tokens = {generation['max_new_tokens']}: the base writes at most {room} tokens "
            f"after the prompt. Set it to {room} or less, and at least 1"
        )
    if generation.get("num_beams", 1) < 1:
        raise InputError(f"generation_config.num_beams = {generation['num_beams']}: expected 1 or more")


def whisper_tokens(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a transcript as it is written, and its end; the prompt is not among them."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [*(int(token) for token in ids), int(tokenizer.eos_token_id)]


def decoder_batch(targets: Sequence[Sequence[int]], problem: Problem) -> dict[str, torch.Tensor]:
    """What the decoder reads and what it shall say: each transcript after the prompt, padded on the right.

    Args:
        targets: As `whisper_tokens` made them.
        problem: Its prompt and tokenizer.

    Returns:
        `decoder_input_ids` and `labels`, `(rows, tokens)`: at each position the next token, -100 where the prompt
        gives it and where there is none.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    prompt = list(problem.settings["prompt"])
    inputs = [torch.tensor([*prompt, *ids[:-1]]) for ids in targets]
    labels = [torch.tensor([*[-100] * (len(prompt) - 1), *ids]) for ids in targets]
    pad = int(problem.processor.tokenizer.pad_token_id)
    return {
        "decoder_input_ids": pad_sequence(inputs, batch_first=True, padding_value=pad),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def transcribe(model: Any, input_features: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Generated tokens, `(rows, tokens)`, greedy unless the recipe says otherwise.

    Args:
        model: Whisper, adapted or not.
        input_features: `(rows, bands, frames)`.
        problem: Its prompt and the recipe's generation settings.
    """
    import torch
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from lora_ft.ops.shards import is_cut

    prompt = torch.tensor(problem.settings["prompt"], device=input_features.device)
    inner = unwrapped(model)
    own = inner.generation_config
    named = _named(own, problem)
    rows, _, frames = input_features.shape
    config = _config(own, problem)
    inner.generation_config = config  # given as an argument, it would be filled up from the base's own
    try:
        found: torch.Tensor = model.generate(
            input_features=input_features,
            attention_mask=prompt.new_ones(rows, frames),
            decoder_input_ids=prompt.expand(rows, -1),
            return_timestamps=False,
            synced_gpus=is_cut(model) or is_deepspeed_zero3_enabled(),  # Whisper does not look itself
            **named,
        )
    finally:
        inner.generation_config = own
    return found


def whisper_generation(model: Any, problem: Problem) -> Generation:
    """What `transcribe` runs by, with language and task, which it says at each call; see `Task.generation`."""
    own = unwrapped(model).generation_config
    config = _config(own, problem)
    config.update(**dict.fromkeys(SAMPLING))  # beside do_sample: false they could not be saved
    vars(config).update(return_timestamps=False, **_named(own, problem))  # `update` knows only what is there already
    return Generation(config)


def _named(own: Any, problem: Problem) -> dict[str, Any]:
    """Language and task by name; an old base does not know them: there the prompt alone has to do."""
    if "lang_to_id" not in vars(own):
        return {}
    return {name: problem.settings[name] for name in WHISPER_FIELDS if name in problem.settings}


def _config(own: Any, problem: Problem) -> Any:
    """The settings of one call: the base's suppressed tokens and ids of languages and tasks, our defaults, the recipe.

    Whisper's `max_length` does not count the prompt, and beside `max_new_tokens` its default is warned of at each call.
    """
    config = copy.deepcopy(own)
    settings = {"max_new_tokens": room_for_tokens(problem), **GREEDY, **problem.generation}
    config.update(max_length=settings.pop("max_new_tokens"), max_new_tokens=None, **settings)
    return config


def _language_code(language: str, tokenizer: Any) -> str:
    """`german` -> `de`."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    wanted = language.lower()
    code = TO_LANGUAGE_CODE.get(wanted, wanted)
    if f"<|{code}|>" not in tokenizer.get_vocab():
        known = sorted(name for name, one in TO_LANGUAGE_CODE.items() if f"<|{one}|>" in tokenizer.get_vocab())
        raise InputError(
            f"processor.language = {language}: the base does not know it.{closest(wanted, known)} "
            f"Expected one of: {', '.join(known)}"
        )
    return str(code)
