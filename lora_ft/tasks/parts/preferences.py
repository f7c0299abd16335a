"""Preference pairs: log-probabilities of answers under adapter and base, and the losses made of them.

Source of the losses: trl's DPOTrainer and ORPOTrainer (1.16), with which a test compares them; the papers are named in
`LOSSES`. Our own because the Trainer of trl takes the place of ours, with its batches, gates and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ft.errors import DataError, InputError
from lora_ft.tasks.parts.causal import fitting
from lora_ft.tasks.parts.chat import ASSISTANT, Message, cut_tokens, template_of
from lora_ft.tasks.parts.labelled import Labelled, LabelLoss, following, outputs_at_labels
from lora_ft.tasks.parts.language import IGNORED, end_of_text, frame_of, length_mask, pad_right
from lora_ft.tasks.parts.problem import Features, Problem, Rows

if TYPE_CHECKING:
    import torch

BETA = 0.1
SIDES = ("chosen", "rejected")
CHAT = "chat"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations of LoRA that change the base: switched off, such an adapter does not leave the base as it was."""


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities of the answers of some pairs, summed over their tokens, `(pairs,)` each.

    Attributes:
        chosen: Of the chosen answers, under the adapter.
        rejected: Of the rejected answers, under the adapter.
        reference_chosen: Of the chosen answers, under the frozen base.
        reference_rejected: Of the rejected answers, under the frozen base.
        chosen_tokens: Tokens of the chosen answers.
        rejected_tokens: Tokens of the rejected answers.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor


def sigmoid_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """DPO. Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7."""
    import torch.nn.functional as F  # noqa: N812

    return -F.logsigmoid(beta * _margin(pairs))


def hinge_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """SLiC. Source: Zhao et al. 2023, arXiv:2305.10425."""
    return (1 - beta * _margin(pairs)).relu()


def ipo_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """IPO, by the mean over tokens. Source: Azar et al. 2023, arXiv:2310.12036, equation 17."""
    chosen = (pairs.chosen - pairs.reference_chosen) / pairs.chosen_tokens.clamp(min=1)
    rejected = (pairs.rejected - pairs.reference_rejected) / pairs.rejected_tokens.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def apo_zero_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """APO where chosen answers are better than the base's own. Source: D'Oosterlinck 2024, arXiv:2408.06266, eq. 7."""
    chosen = beta * (pairs.chosen - pairs.reference_chosen)
    rejected = beta * (pairs.rejected - pairs.reference_rejected)
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def orpo_loss(pairs: Pairs, beta: float) -> torch.Tensor:
    """ORPO: the usual loss of the chosen answer and the odds ratio; needs no reference.

    Source: Hong et al. 2024, arXiv:2403.07691, equations 6 and 7, by means over tokens.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    odds = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    return -chosen - beta * F.logsigmoid(odds)


LOSSES: Mapping[str, Callable[[Pairs, float], torch.Tensor]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "apo_zero": apo_zero_loss,
    "orpo": orpo_loss,
}
"""Named as in trl's DPOConfig.loss_type, and `orpo`."""

WITHOUT_REFERENCE = ("orpo",)


def rewards_of(pairs: Pairs, beta: float, *, loss_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the adapter thinks of both answers, as its loss weighs them, `(pairs,)` each.

    Beta times the log-probability that training added; of ORPO, which has no reference, the mean over tokens, as a sum
    would call the shorter answer the better one.
    """
    if loss_type in WITHOUT_REFERENCE:
        return beta * pairs.chosen / pairs.chosen_tokens, beta * pairs.rejected / pairs.rejected_tokens
    return beta * (pairs.chosen - pairs.reference_chosen), beta * (pairs.rejected - pairs.reference_rejected)


def _margin(pairs: Pairs) -> torch.Tensor:
    return (pairs.chosen - pairs.reference_chosen) - (pairs.rejected - pairs.reference_rejected)


def encode_pairs(rows: Rows, problem: Problem) -> Features:
    """Prompts with both answers; each is a sequence of its own, its labels those of the answer and its end."""
    most, chats = int(problem.settings["max_length"]), problem.problem_type == CHAT
    before = [] if chats else list(frame_of(problem.processor).before)  # a template writes its own beginning
    names = [f"{side}_{what}" for side in SIDES for what in ("ids", "labels")]
    features: Features = {name: [] for name in (*names, "length", "truncated")}
    for values in zip(*rows.values(), strict=True):
        row = dict(zip(rows, values, strict=True))
        prompt, answers, shortened = _chat_pair(row, problem) if chats else _text_pair(row, problem)
        # both answers follow the same tokens: the prompt is cut once, by the longer one, to a quarter at most
        room = max(most - len(before) - max(map(len, answers.values())), most // 4)
        asked = prompt[-room:]
        lengths = []
        for side, answer in answers.items():
            ids = [*before, *asked, *answer][:most]
            features[f"{side}_ids"].append(ids)
            features[f"{side}_labels"].append(
                [IGNORED if index < len(before) + len(asked) or not index else token for index, token in enumerate(ids)]
            )
            lengths.append(len(before) + len(asked) + len(answer))
        features["length"].append(min(max(lengths), most))
        features["truncated"].append(shortened or max(lengths) > most or len(asked) < len(prompt))
    return features


def conversation(row: Mapping[str, Any], side: str) -> list[Message]:
    """The whole chat of one side: the prompt's turns, unless the answer's repeat them, and the answer's.

    Args:
        row: `chosen_messages` and `rejected_messages`, and perhaps `prompt_messages`.
        side: `chosen` or `rejected`.
    """
    prompt, messages = list(row.get("prompt_messages", ())), list(row[f"{side}_messages"])
    return messages if messages[: len(prompt)] == prompt else [*prompt, *messages]


def fault_of_chats(row: Mapping[str, Any]) -> str | None:
    """Why nothing can be learned from two chats, with the column's name first; None if something can."""
    chosen, rejected = (conversation(row, side) for side in SIDES)
    for side, messages in zip(SIDES, (chosen, rejected), strict=True):
        if messages[-1]["role"] != ASSISTANT or not messages[-1]["content"].strip():
            return f"{side}_messages: the last turn is empty, or not the assistant's: expected an answer"
    if chosen == rejected:
        return "rejected_messages: the same as chosen_messages: there is nothing to prefer"
    if chosen[:-1] != rejected[:-1]:
        return "rejected_messages: its turns before the last are not those of chosen_messages: expected one prompt"
    return None


def _text_pair(row: Mapping[str, Any], problem: Problem) -> tuple[list[int], dict[str, list[int]], bool]:
    """The tokens of a prompt, and of both answers to it with the end of the text; nothing was left out."""
    given, end = row["prompt"] + problem.settings.get("separator", ""), end_of_text(problem.processor)
    parts = {side: cut_tokens(given + row[side], [len(given)], problem.processor) for side in SIDES}
    return parts["chosen"][0], {side: [*answer, *end] for side, (_, answer) in parts.items()}, False


def _chat_pair(row: Mapping[str, Any], problem: Problem) -> tuple[list[int], dict[str, list[int]], bool]:
    """The same of two chats by the template, with the end of turn; and whether old turns were left out for room."""
    processor, template = problem.processor, template_of(problem.settings, problem.processor)
    whole = {side: conversation(row, side) for side in SIDES}
    before = min((fitting(messages, template, problem)[:-1] for messages in whole.values()), key=len)
    prompts, answers = {}, {}
    for side, messages in whole.items():
        chat = template.answered([*before, messages[-1]])[-1]
        start, stop = chat.spans[-1]
        prompts[side] = chat.text[:start]
        asked, answer = cut_tokens(chat.text[:stop], [start], processor)
        answers[side] = answer if chat.ended else [*answer, *end_of_text(processor)]
    if prompts["chosen"] != prompts["rejected"]:
        raise DataError(
            f"messages: the chat that begins {whole['chosen'][0]['content'][:40]!r}: the template writes what comes "
            "before the answer differently for chosen and rejected. Mend the row, or give another chat_template"
        )
    return asked, answers, len(before) < len(whole["chosen"]) - 1


def pair_batch(features: Sequence[Mapping[str, Any]], problem: Problem) -> dict[str, torch.Tensor]:
    """A batch of `2 n` sequences: the chosen answers of n pairs, then the rejected ones; padded on the right."""
    settings = problem.settings
    tokens = [row[f"{side}_ids"] for side in SIDES for row in features]
    labels = [row[f"{side}_labels"] for side in SIDES for row in features]
    ids = pad_right(tokens, problem.processor.pad_token_id, settings=settings)
    return {
        "input_ids": ids,
        "attention_mask": length_mask(tokens, ids.shape[1]),
        "labels": pad_right(labels, IGNORED, settings=settings),
    }


def pairs_of(
    model: Any, batch: Mapping[str, torch.Tensor], *, reference: bool, label_loss: LabelLoss | None = None
) -> Pairs:
    """Log-probabilities of a batch of pairs under the adapter, and under the base below it: one model, no copy.

    Args:
        model: The adapted model, possibly wrapped by DDP.
        batch: As `pair_batch` makes it.
        reference: Whether the base is asked too; else its log-probabilities are 0.
        label_loss: See `Problem`.

    Raises:
        InputError: The adapter's initialisation changed the base, so there is no reference left.
    """
    import torch

    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs["use_cache"], labels = False, following(batch["labels"])
    sums, tokens = _log_probabilities(outputs_at_labels(model, inputs, labels, label_loss), labels)
    base = torch.zeros_like(sums)
    if reference:
        with torch.no_grad(), _base_of(model) as bare:
            base, _ = _log_probabilities(outputs_at_labels(bare, inputs, labels, label_loss), labels)
    (chosen, rejected), (base_chosen, base_rejected) = sums.chunk(2), base.detach().chunk(2)
    chosen_tokens, rejected_tokens = tokens.chunk(2)
    return Pairs(chosen, rejected, base_chosen, base_rejected, chosen_tokens, rejected_tokens)


def _log_probabilities(outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the labelled tokens of each sequence, and their number, `(sequences,)` each."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    wanted = labels.ne(IGNORED)
    row, _ = wanted.nonzero(as_tuple=True)
    if isinstance(outputs, Labelled):
        losses = outputs.losses()
    else:
        losses = F.cross_entropy(outputs["logits"][wanted].float(), labels[wanted], reduction="none")
    sums = torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add(0, row, -losses)
    return sums, wanted.sum(1)


@contextmanager
def _base_of(model: Any) -> Iterator[Any]:
    """The base below an adapter, whatever wraps it."""
    from accelerate.utils import extract_model_from_parallel

    adapted = extract_model_from_parallel(model)
    initial = str(vars(adapted.peft_config["default"]).get("init_lora_weights", "")).lower()
    if initial.startswith(CHANGES_BASE):
        raise InputError(
            f"peft_config.init_lora_weights = {initial}: it changes the base, which is the reference of this loss. "
            "Leave it out, or set loss.loss_type: orpo, which needs no reference"
        )
    flags = [(parameter, parameter.requires_grad) for parameter in adapted.parameters()]
    try:
        with adapted.disable_adapter():
            yield adapted
    finally:
        for parameter, flag in flags:  # peft has all of its weights trained when it puts them back
            parameter.requires_grad_(flag)
