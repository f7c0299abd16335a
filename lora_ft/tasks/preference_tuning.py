"""Preference tuning of a causal language model: of two answers to a prompt, the chosen one is to become more likely.

One row: prompt "Name a fruit.", chosen "An apple.", rejected "A car."; a prediction continues a prompt:
prompt "Name a fruit."  ->  {"generated_text": " An apple."}
Or both as chats: chosen_messages [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", ...}].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.generation import GENERATION_FIELDS
from lora_ft.tasks.parts.problem import Features, Generation, Problem, Rows
from lora_ft.tasks.parts.text_augmentation import TEXT_FIELDS as AUGMENTATION_FIELDS

if TYPE_CHECKING:
    import numpy as np
    import torch

PAIRS, CHAT = "pairs", "chat"
METRICS = ("reward_accuracy", "reward_margin", "likelier_accuracy")
SHORTEST = 8
CRITICAL = 1.645
"""One-sided 5 % of a standard normal."""


class PreferenceTuning(Task):
    """DPO and its relatives; the adapter is the policy, the frozen base below it the reference."""

    name: ClassVar[str] = "preference-tuning"
    summary: ClassVar[str] = "makes chosen answers likelier than rejected ones (DPO, IPO, ORPO, ...)"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    asks_bare_base: ClassVar[bool] = True
    least_tokens: ClassVar[int] = SHORTEST
    columns: ClassVar[tuple[Column, ...]] = (
        Column("prompt", "text", False, "what both answers follow; with a chat model, what the user says"),
        Column("chosen", "text", False, "the better answer", target=True),
        Column("rejected", "text", False, "the worse answer", target=True),
        Column("prompt_messages", "messages", False, "the turns before both answers, where these do not repeat them"),
        Column("chosen_messages", "messages", False, "a chat that ends with the better answer", target=True),
        Column("rejected_messages", "messages", False, "a chat that ends with the worse answer", target=True),
    )
    column_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        PAIRS: ("prompt", "chosen", "rejected"),
        CHAT: ("chosen_messages", "rejected_messages"),
    }
    free_texts: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {PAIRS: METRICS, CHAT: METRICS}
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        "max_length": (int,),
        "padding": (True, "longest", "max_length"),
        "pad_to_multiple_of": (int,),
        "separator": (str,),
        "chat_template": (str,),
        "chat_template_kwargs": (dict,),
    }
    generation_fields: ClassVar[Mapping[str, FieldTypes]] = GENERATION_FIELDS
    token_labels: ClassVar[tuple[str, ...]] = ("chosen_labels", "rejected_labels")
    loss_types: ClassVar[tuple[str, ...]] = ("sigmoid", "hinge", "ipo", "apo_zero", "orpo")
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    varied_texts: ClassVar[tuple[str, ...]] = ("prompt",)
    argument: ClassVar[str] = "prompt"
    changes_model: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("Qwen/Qwen2.5-0.5B", "data/train.jsonl")

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; fills in `max_length`; a chat template that was given is kept as text."""
        from lora_ft.tasks.parts.chat import chat_settings
        from lora_ft.tasks.parts.generation import known_positions
        from lora_ft.tasks.parts.text import text_settings

        settings = text_settings(given, base_config=base_config, processor=processor)
        settings |= known_positions(base_config)
        if settings["max_length"] < SHORTEST:
            raise InputError(f"processor.max_length = {settings['max_length']}: expected {SHORTEST} tokens or more")
        for name, kind in {"chat_template": CHAT, "chat_template_kwargs": CHAT, "separator": PAIRS}.items():
            if name in given and problem_type != kind:
                raise InputError(
                    f"processor.{name}: it has no effect on rows of {', '.join(self.column_sets[problem_type])}, "
                    f"only on {', '.join(self.column_sets[kind])}. Leave it out"
                )
        return chat_settings(settings, processor) if problem_type == CHAT else settings

    def fit_processor(self, processor: Any, rows: Iterable[Mapping[str, Any]], *, given: Mapping[str, Any]) -> Any:
        """See `Task.fit_processor`: the tokenizer beside the adapter has the template that was trained with."""
        del rows
        from lora_ft.tasks.parts.chat import with_template

        return with_template(processor, given)

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: an empty answer, or two that are the same."""
        del labels
        if "chosen_messages" in row and "rejected_messages" in row:
            from lora_ft.tasks.parts.preferences import fault_of_chats

            return fault_of_chats(row)
        for side in ("chosen", "rejected"):
            if side in row and not row[side].strip():
                return f"{side}: it is empty: expected an answer"
        if "chosen" in row and row["chosen"] == row["rejected"]:
            return "rejected: it is the same as chosen: there is nothing to prefer"
        return None

    def misfit(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """See `Task.misfit`: the chat template has the last word on a chat."""
        if problem.problem_type != CHAT or "chosen_messages" not in row:
            return None
        from lora_ft.tasks.parts.causal import misfit_of_chat
        from lora_ft.tasks.parts.preferences import SIDES, conversation

        found = ((side, misfit_of_chat(conversation(row, side), problem)) for side in SIDES)
        return next((f"{side}_{reason}" for side, reason in found if reason), None)

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`: the data decides nothing."""
        del problem
        return {}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`; a row without answers is a prompt to be continued."""
        del training
        from lora_ft.tasks.parts.causal import encode_chats, encode_prompts
        from lora_ft.tasks.parts.generation import check_generation
        from lora_ft.tasks.parts.preferences import encode_pairs

        check_generation(problem)
        if set(self.column_sets[problem.problem_type]) <= set(rows):
            return encode_pairs(rows, problem)
        if problem.problem_type == CHAT:
            return _as_prompts(encode_chats(_asked(rows), problem, training=False))
        return encode_prompts(rows["prompt"], problem)

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: what is measured is in the rewards of each row already."""
        del problem
        return [None] * len(next(iter(rows.values())))

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`: first the chosen, then the rejected sequences."""
        del training
        from lora_ft.tasks.parts.language import length_mask, pad_right
        from lora_ft.tasks.parts.preferences import pair_batch

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            if "chosen_ids" in features[0]:
                return pair_batch(features, problem)
            tokens = [row["input_ids"] for row in features]
            ids = pad_right(tokens, problem.processor.pad_token_id, settings=problem.settings)
            return {"input_ids": ids, "attention_mask": length_mask(tokens, ids.shape[1])}

        return collate

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`: log-probabilities of the pairs; of prompts, the logits."""
        from lora_ft.tasks.parts.preferences import WITHOUT_REFERENCE, pairs_of

        if "labels" in batch:
            reference = problem.loss.get("loss_type") not in WITHOUT_REFERENCE
            return pairs_of(model, batch, reference=reference, label_loss=problem.label_loss)
        return model(**batch, use_cache=False)

    def loss(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        problem: Problem,
        *,
        items: torch.Tensor | int | float,
        class_weight: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """See `Task.loss`: over pairs."""
        del batch, class_weight, label_smoothing
        from lora_ft.tasks.parts.preferences import BETA, LOSSES

        loss_of = LOSSES[problem.loss.get("loss_type", self.loss_types[0])]
        losses: torch.Tensor = loss_of(outputs, float(problem.loss.get("beta", BETA))).sum()
        return losses / items

    def items(self, batch: Mapping[str, Any]) -> int:
        """See `Task.items`: pairs."""
        return len(batch["input_ids"]) // 2

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`: rewards of the pairs, or generated tokens."""
        from lora_ft.tasks.parts.causal import answered_prompts
        from lora_ft.tasks.parts.preferences import BETA, rewards_of

        if "labels" not in batch:
            return {"generated": answered_prompts(model, batch, problem, rows=[True] * len(batch["input_ids"]))}
        pairs = self.forward(model, batch, problem) if outputs is None else outputs
        beta = float(problem.loss.get("beta", BETA))
        chosen, rejected = rewards_of(pairs, beta, loss_type=problem.loss.get("loss_type", self.loss_types[0]))
        return {"chosen": chosen, "rejected": rejected, "likelier": pairs.chosen > pairs.rejected}

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`."""
        from lora_ft.tasks.parts.causal import answer_end
        from lora_ft.tasks.parts.generation import text_of

        if "generated" in answer:
            stops = answer_end(problem).cut
            return [{"generated_text": text_of(ids, problem, stops=stops)} for ids in answer["generated"]]
        return [
            {
                "chosen_reward": float(answer["chosen"][index]),
                "rejected_reward": float(answer["rejected"][index]),
                "chosen_is_likelier": bool(answer["likelier"][index]),
            }
            for index in range(len(features))
        ]

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`; `likelier_accuracy` asks for the likelier answer, whatever the base thought of it."""
        del references, problem
        import numpy as np

        from lora_ft.metrics.preferences import preference_counts, preference_scores

        chosen, rejected = ([row[f"{side}_reward"] for row in predictions] for side in ("chosen", "rejected"))
        counts = preference_counts(chosen, rejected)
        likelier = np.array([row["chosen_is_likelier"] for row in predictions], dtype=np.float64)
        return lambda rows: {**preference_scores(counts, rows), "likelier_accuracy": float(likelier[rows].mean())}

    def learned(
        self, ours: Mapping[str, float], baseline: Mapping[str, float], *, rows: int, problem_type: str
    ) -> bool:
        """See `Task.learned`: more pairs in order than a coin would put there, at the 5 % level."""
        del problem_type
        coin = 0.5 + CRITICAL * 0.5 / math.sqrt(rows)
        return ours["reward_accuracy"] > max(coin, baseline["reward_accuracy"])

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: some columns of the vocabulary after the last token; of pairs, their sums."""
        import torch

        from lora_ft.tasks.parts.language import last_positions, probe_logits
        from lora_ft.tasks.parts.preferences import Pairs

        if isinstance(outputs, Pairs):
            return torch.stack([outputs.chosen, outputs.rejected], dim=1)
        return probe_logits(outputs["logits"], last_positions(batch["attention_mask"]))

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: both answers after their prompt, marked with their ends."""
        from lora_ft.tasks.parts.preferences import SIDES
        from lora_ft.tasks.parts.shown import decoded, tokens_shown

        if "chosen_ids" not in feature:
            return decoded(feature["input_ids"], problem)
        sides = (tokens_shown(feature[f"{side}_ids"], feature[f"{side}_labels"], problem) for side in SIDES)
        return "\n".join(f"{side}: {text}" for side, text in zip(SIDES, sides, strict=True))

    def end_tokens(self, problem: Problem) -> tuple[int, ...]:
        """See `Task.end_tokens`."""
        from lora_ft.tasks.parts.causal import learned_ends

        return learned_ends(problem)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        prompts = ["is the pan good ?", "is the cable slow ?", "was the book nice ?", "was my phone cheap ?"]
        chosen = ["the pan is good .", "the cable is slow .", "the book was nice .", "my phone was cheap ."]
        rejected = ["hate the week .", "sad and broken .", "money money .", "never again , never ."]
        if problem_type == PAIRS:
            return {
                "prompt": prompts,
                "chosen": [f" {answer}" for answer in chosen],
                "rejected": [f" {answer}" for answer in rejected],
            }
        chats = (
            [
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            for answers in (chosen, rejected)
        )
        return {"prompt": prompts, **dict(zip(self.column_sets[CHAT], chats, strict=True))}

    def generation(self, model: Any, problem: Problem) -> Generation | None:
        """See `Task.generation`."""
        from lora_ft.tasks.parts.causal import causal_generation

        return causal_generation(model, problem)

    def stream(self, model: Any, row: Mapping[str, Any], problem: Problem) -> Iterator[str]:
        """See `Task.stream`."""
        from lora_ft.tasks.parts.causal import streamed_answer

        chat = problem.problem_type == CHAT
        yield from streamed_answer(model, _asked(row) if chat else row, problem)


def _asked(rows: Mapping[str, Any]) -> dict[str, Any]:
    """What a chat model is asked, as text-generation names it: the turns before the answer, or what the user says."""
    if "prompt_messages" in rows:
        return {"messages": rows["prompt_messages"]}
    return {"prompt": rows["prompt"]}


def _as_prompts(features: Features) -> Features:
    """Features of chats that are answered, without the labels that nothing is measured at."""
    return {name: values for name, values in features.items() if name != "labels"}
