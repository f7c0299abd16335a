"""Generated text: settings, token ids for a batch of prompts, and what ends an answer.

Of the base's own generation_config.json only the special tokens count: what is not in the recipe is greedy search, so
that a prediction follows from the adapter folder alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.language import plain_ids
from lora_ft.tasks.parts.problem import Generation, Problem
from lora_ft.tasks.parts.text import UNLIMITED, positions_of

if TYPE_CHECKING:
    import torch

GENERATION_FIELDS: Mapping[str, FieldTypes] = {
    "max_new_tokens": (int,),
    "min_new_tokens": (int,),
    "do_sample": (bool,),
    "temperature": (float,),
    "top_k": (int,),
    "top_p": (float,),
    "num_beams": (int,),
    "length_penalty": (float,),
    "repetition_penalty": (float,),
    "no_repeat_ngram_size": (int,),
    "stop_strings": (list,),
}
"""The keys of the `generation_config` section: fields of transformers' GenerationConfig."""

DEFAULT_NEW_TOKENS = 256

SAMPLING = ("temperature", "top_k", "top_p")

SPECIAL_TOKENS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip

BYTES_PER_CHARACTER = 4
"""And with tokens of one byte as many tokens, the most that a character of a stop string can take."""

NO_TOKEN = -1
"""Fills the rows of generated tokens."""


def known_positions(base_config: Mapping[str, Any]) -> dict[str, int]:
    """What is put to the settings of a task that generates: `positions`, where the base says how many it has."""
    most = positions_of(base_config)
    return {} if most == UNLIMITED else {"positions": most}


def check_generation(problem: Problem) -> None:
    """Refuses settings that would have no effect, and answers for which the base has no room.

    Raises:
        InputError: A setting of sampling without sampling, or no room for a token.
    """
    generation = problem.generation
    idle = [name for name in SAMPLING if name in generation]
    if idle and not generation.get("do_sample"):
        raise InputError(
            f"generation_config.{idle[0]} = {generation[idle[0]]}: it has no effect without sampling. "
            "Set generation_config.do_sample: true, or leave it out"
        )
    for name in ("max_new_tokens", "num_beams"):
        if generation.get(name, 1) < 1:
            raise InputError(f"generation_config.{name} = {generation[name]}: expected 1 or more")
    _check_room(generation.get("max_new_tokens"), problem.settings.get("positions", UNLIMITED))


def stop_strings(problem: Problem) -> tuple[str, ...]:
    """The texts at which an answer ends, as the recipe has them."""
    return tuple(str(text) for text in problem.generation.get("stop_strings", ()))


def generate(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    problem: Problem,
    *,
    ends: Iterable[int] = (),
    stops: Sequence[str] = (),
    streamer: Any = None,
    stopping: Callable[[], bool] | None = None,
) -> torch.Tensor:
    """Runs `generate` by the recipe's settings; the same call gives the same tokens.

    Args:
        model: A model that generates, adapted or not.
        inputs: `input_ids` and `attention_mask`, `(rows, tokens)`.
        problem: Its generation settings, tokenizer and seed.
        ends: Tokens that end an answer beside those of the tokenizer and the base.
        stops: Texts that end an answer.
        streamer: Gets the tokens as they come.
        stopping: Asked after each token whether to stop.

    Returns:
        What `generate` returns, `(rows, tokens)`.
    """
    import torch
    import transformers

    from lora_ft.ops.shards import is_cut

    inner = unwrapped(model)
    config = generation_of(model, problem, ends=ends, stops=stops).config
    given = 1 if inner.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    criteria = transformers.StoppingCriteriaList([_Ended(problem, given=given, stops=stops, stopping=stopping)])
    device = inputs["input_ids"].device
    devices = [device] if device.type != "cpu" else []
    with _generation_config(inner, config), torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(problem.seed)
        found: torch.Tensor = model.generate(
            **inputs,
            stopping_criteria=criteria,
            streamer=streamer,
            synced_gpus=is_cut(model) or None,  # None: transformers knows it of ZeRO-3, and of its own FSDP
        )
    return found


def generation_of(model: Any, problem: Problem, *, ends: Iterable[int] = (), stops: Sequence[str] = ()) -> Generation:
    """What `generate` runs by, for a checkpoint that is to answer alike.

    Args:
        model: A model that generates, adapted or not; of its own settings only the special tokens count.
        problem: Its generation settings and tokenizer.
        ends: Tokens that end an answer beside those of the tokenizer and the base.
        stops: Texts that end an answer; those that are special tokens become such tokens.
    """
    config = _config(
        unwrapped(model).generation_config,
        problem,
        ends=(*ends, *_special_tokens(stops, problem.processor)),
        limit=new_tokens(problem, model),
    )
    searched = tuple(stop for stop in stops if not _special_tokens([stop], problem.processor))
    return Generation(config, searched)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some stop strings."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def fixed_width(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Generated tokens as a tensor `(rows, width)`, filled with -1."""
    import torch

    width = max([width, *map(len, rows)])
    return torch.tensor([[*row, *[NO_TOKEN] * (width - len(row))] for row in rows], dtype=torch.long)


def text_of(ids: Iterable[int], problem: Problem, *, stops: Sequence[str] = ()) -> str:
    """The text of generated tokens, without special tokens, up to the first stop string."""
    kept = [int(token) for token in ids if token != NO_TOKEN]
    text = problem.processor.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cut_at(str(text), stops)


def new_tokens(problem: Problem, model: Any) -> int:
    """The most tokens that an answer may have: as the recipe says, else as many as there is room for, up to 256.

    Raises:
        InputError: The recipe asks for more than the model has positions.
    """
    most = positions(model)
    asked = problem.generation.get("max_new_tokens")
    if asked is None:
        return int(problem.settings.get("max_target_length", min(DEFAULT_NEW_TOKENS, most // 2)))
    _check_room(asked, most)  # again: older manifests do not know the positions
    return int(asked)


def _check_room(asked: int | None, most: int) -> None:
    if asked is not None and asked >= most:
        raise InputError(
            f"generation_config.max_new_tokens = {asked}: the base has {most} positions, for prompts too. "
            f"Set it below {most}"
        )


def positions(model: Any) -> int:
    """The most tokens that a model reads."""
    return positions_of(unwrapped(model).config.to_dict())


def unwrapped(model: Any) -> Any:
    """The transformers model itself, without peft around it."""
    import peft

    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def _config(base: Any, problem: Problem, *, ends: Iterable[int], limit: int) -> Any:
    """The settings of one call: the base's special tokens, our defaults, the recipe."""
    import transformers

    special = {name: value for name, value in base.to_dict().items() if name in SPECIAL_TOKENS}
    own = special.get("eos_token_id")
    stored = own if isinstance(own, list) else [own]
    found = {token for token in (*stored, problem.processor.eos_token_id, *ends) if token is not None}
    special["eos_token_id"] = sorted(found) or None
    special["pad_token_id"] = problem.processor.pad_token_id
    if "decoder_start_token_id" in problem.settings:  # what a sequence to sequence adapter was trained with
        special["decoder_start_token_id"] = problem.settings["decoder_start_token_id"]
    ours = {"max_new_tokens": limit, "do_sample": False, "num_beams": 1}
    given = {name: value for name, value in problem.generation.items() if name != "stop_strings"}
    return transformers.GenerationConfig(**{**special, **ours, **given})


def _special_tokens(stops: Iterable[str], processor: Any) -> list[int]:
    """The stop strings that are special tokens: no text shows them."""
    special = set(processor.all_special_ids)
    tokens = [plain_ids(stop, processor) for stop in stops]
    return [ids[0] for ids in tokens if len(ids) == 1 and ids[0] in special]


@contextmanager
def _generation_config(model: Any, config: Any) -> Iterator[None]:
    """The model with other generation settings: what it has of its own would fill every gap."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


class _Ended:
    """A stopping criterion: a stop string was written, or nobody listens any more.

    transformers' own (5.23) cleans the whole vocabulary for each stop string and fails on tokenizers of whole words.
    """

    def __init__(
        self, problem: Problem, *, given: int, stops: Sequence[str], stopping: Callable[[], bool] | None
    ) -> None:
        self.problem, self.given, self.stops, self.stopping = problem, given, stops, stopping
        self.tail = max((BYTES_PER_CHARACTER * len(stop) for stop in stops), default=0)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row has ended, `(rows,)`."""
        del scores
        import torch

        if self.stopping is not None and self.stopping():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ended = [False] * len(input_ids)
        if self.stops:
            tails = input_ids[:, max(self.given, input_ids.shape[1] - self.tail) :].tolist()
            texts = [text_of(ids, self.problem) for ids in tails]
            ended = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)
