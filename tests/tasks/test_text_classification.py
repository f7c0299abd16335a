"""Text classification beyond the contract: pairs, truncation, weights, and how the loss is reduced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lora_ft.errors import InputError
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Features, Problem, Rows
from tests.bases import tiny_tokenizer

TASK = load_task("text-classification")
SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def problem(tokenizer: object, **settings: object) -> Problem:
    return Problem(SINGLE, (), tokenizer, {"max_length": 16, **settings})


def encode(rows: Rows, tokenizer: object, **settings: object) -> Features:
    return TASK.encode(rows, problem(tokenizer, **settings))


def test_pairs_are_encoded_together_with_token_types() -> None:
    rows = {"text": ["good book"], "text_pair": ["bad pan"]}
    encoded = encode(rows, tiny_tokenizer())
    assert encoded["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1]]


def test_a_cut_row_is_reported_and_one_that_just_fits_is_not() -> None:
    rows = {"text": ["good book again", "good book"]}
    encoded = encode(rows, tiny_tokenizer(), max_length=4)
    assert encoded["truncated"] == [True, False]
    assert encoded["length"] == [4, 4]


def test_an_empty_text_gets_one_token_where_the_tokenizer_makes_none() -> None:
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode({"text": ["", "good"]}, tokenizer)
    assert encoded["length"] == [1, 1]
    assert encoded["input_ids"][0] == [tokenizer.pad_token_id]
    assert encoded["attention_mask"][0] == [1]


def test_a_tokenizer_without_a_fast_version_says_what_was_cut_too() -> None:
    from transformers import CanineTokenizer

    rows = {"text": ["a long text", "b"]}
    encoded = encode(rows, CanineTokenizer(), max_length=6)
    assert encoded["truncated"] == [True, False]


def test_batches_are_padded_to_their_own_longest_row() -> None:
    rows = {"text": ["good", "good book again and again"]}
    tokenizer = tiny_tokenizer()
    encoded = encode(rows, tokenizer, max_length=32)
    collate = TASK.collator(problem(tokenizer, max_length=32))
    features = [{name: encoded[name][index] for name in encoded} for index in range(2)]
    assert collate(features)["input_ids"].shape == (2, 7)
    assert collate(features[:1])["input_ids"].shape == (1, 3)
    fixed = TASK.collator(problem(tokenizer, max_length=32, padding="max_length"))
    assert fixed(features)["input_ids"].shape == (2, 32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_a_sum_over_rows_divided_by_the_items(smoothing: float) -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 0])
    weights = [1.0, 2.0, 3.0]
    rows = F.cross_entropy(logits, labels, weight=torch.tensor(weights), label_smoothing=smoothing, reduction="none")
    loss = TASK.loss(
        {"logits": logits}, {"labels": labels}, problem(None), items=12, class_weight=weights, label_smoothing=smoothing
    )
    assert float(loss) == pytest.approx(float(rows.sum()) / 12, rel=1e-6)


def test_the_unweighted_loss_is_torchs_own_mean() -> None:
    logits, batch = torch.randn(6, 3), {"labels": torch.tensor([0, 1, 2, 0, 1, 0])}
    loss = TASK.loss({"logits": logits}, batch, problem(None), items=TASK.items(batch))
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, batch["labels"])), rel=1e-6)


def test_multi_label_predictions_hold_every_label_above_one_half() -> None:
    decoded = TASK.decode({"logits": [[2.0, -2.0, 0.0]]}, [{}], Problem(MULTI, ("a", "b", "c"), None, {}))
    assert decoded[0]["labels"] == ["a", "c"]


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'text-classification'"):
        load_task("text-clasification")
