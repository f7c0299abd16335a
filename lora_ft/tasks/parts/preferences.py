"""Preference pairs: log-probabilities of answers under adapter and base, and the losses made of them.

Source of the losses: trl's DPOTrainer and ORPOTrainer (1.16), with which a test compares them; the papers are named in
`LOSSES`. Our own because the Trainer of trl takes the place of ours, with its batches, gates and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.tasks.base import Features, Problem, Rows
from lora_ft.tasks.parts.chat import cut_tokens
from lora_ft.tasks.parts.language import IGNORED, end_of_text, frame_of, length_mask, pad_right

if TYPE_CHECKING:
    import torch

BETA = 0.1
SIDES = ("chosen", "rejected")
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
    processor, most = problem.processor, int(problem.settings["max_length"])
    before, end = list(frame_of(processor).before), list(end_of_text(processor))
    names = [f"{side}_{what}" for side in SIDES for what in ("ids", "labels")]
    features: Features = {name: [] for name in (*names, "length", "truncated")}
    for row, prompt in enumerate(rows["prompt"]):
        given = prompt + problem.settings.get("separator", "")
        parts = {side: cut_tokens(given + rows[side][row], [len(given)], processor) for side in SIDES}
        answers = {side: [*answer, *end] for side, (_, answer) in parts.items()}
        # both answers follow the same tokens: the prompt is cut once, by the longer one, to a quarter at most
        room = max(most - len(before) - max(map(len, answers.values())), most // 4)
        asked = parts["chosen"][0][-room:]
        lengths = []
        for side, answer in answers.items():
            ids = [*before, *asked, *answer][:most]
            features[f"{side}_ids"].append(ids)
            features[f"{side}_labels"].append(
                [IGNORED if index < len(before) + len(asked) or not index else token for index, token in enumerate(ids)]
            )
            lengths.append(len(before) + len(asked) + len(answer))
        features["length"].append(min(max(lengths), most))
        features["truncated"].append(max(lengths) > most or len(asked) < len(parts["chosen"][0]))
    return features


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


def pairs_of(model: Any, batch: Mapping[str, torch.Tensor], *, reference: bool) -> Pairs:
    """Log-probabilities of a batch of pairs under the adapter, and under the base below it: one model, no copy.

    Args:
        model: The adapted model, possibly wrapped by DDP.
        batch: As `pair_batch` makes it.
        reference: Whether the base is asked too; else its log-probabilities are 0.

    Raises:
        InputError: The adapter's initialisation changed the base, so there is no reference left.
    """
    import torch

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    sums, tokens = _log_probabilities(model(**inputs, use_cache=False)["logits"], batch["labels"])
    base = torch.zeros_like(sums)
    if reference:
        with torch.no_grad(), _base_of(model) as bare:
            base, _ = _log_probabilities(bare(**inputs, use_cache=False)["logits"], batch["labels"])
    (chosen, rejected), (base_chosen, base_rejected) = sums.chunk(2), base.detach().chunk(2)
    chosen_tokens, rejected_tokens = tokens.chunk(2)
    return Pairs(chosen, rejected, base_chosen, base_rejected, chosen_tokens, rejected_tokens)


def _log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the labelled tokens of each sequence, and their number, `(sequences,)` each."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    labels = labels[:, 1:]
    wanted = labels.ne(IGNORED)
    row, _ = wanted.nonzero(as_tuple=True)
    losses = F.cross_entropy(logits[:, :-1][wanted].float(), labels[wanted], reduction="none")
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
