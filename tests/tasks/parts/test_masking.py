"""Hidden words: how many, which, and what stands in their place."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.tasks.parts.language import IGNORED
from lora_ft.tasks.parts.masking import NO_WORD, Vocabulary, fixed_draws, hide, vocabulary_of
from tests.bases import tiny_tokenizer

VOCABULARY = Vocabulary(4, np.arange(5, 100))


def hidden(
    ids: list[int], words: list[int], *, probability: float = 0.15, seed: int = 0
) -> tuple[list[int], list[int]]:
    return hide(ids, words, VOCABULARY, probability=probability, draws=np.random.default_rng(seed))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    probability=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_words_are_hidden_whole_special_tokens_never_and_at_least_one(
    sizes: list[int], probability: float, seed: int
) -> None:
    words = [NO_WORD, *(word for word, size in enumerate(sizes) for _ in range(size)), NO_WORD]
    ids = list(range(10, 10 + len(words)))
    seen, labels = hidden(ids, words, probability=probability, seed=seed)
    chosen = {word for word, label in zip(words, labels, strict=True) if label != IGNORED}
    assert chosen
    assert NO_WORD not in chosen
    for token, word, now, label in zip(ids, words, seen, labels, strict=True):
        assert label == (token if word in chosen else IGNORED)
        assert now == token or word in chosen


def test_a_row_of_special_tokens_is_left_alone() -> None:
    assert hidden([2, 3], [NO_WORD, NO_WORD]) == ([2, 3], [IGNORED, IGNORED])


def test_eight_of_ten_are_masked_one_is_replaced_one_stays() -> None:
    ids, fates = [50] * 400, Counter()
    for seed in range(50):
        seen, labels = hidden(ids, list(range(400)), probability=0.5, seed=seed)
        pairs = [now for now, label in zip(seen, labels, strict=True) if label != IGNORED]
        fates.update("mask" if now == 4 else "same" if now == 50 else "other" for now in pairs)
    total = sum(fates.values())
    assert abs(total / (50 * 400) - 0.5) < 0.02
    assert abs(fates["mask"] / total - 0.8) < 0.02
    assert abs(fates["other"] / total - 0.1) < 0.02


def test_what_stands_in_is_never_a_special_token() -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.mask == tokenizer.mask_token_id
    assert not set(vocabulary.ordinary.tolist()) & set(tokenizer.all_special_ids)
    assert len(vocabulary.ordinary) == len(tokenizer) - 5


def test_fixed_draws_follow_from_the_tokens_alone() -> None:
    assert fixed_draws([1, 2, 3]).random() == fixed_draws((1, 2, 3)).random()
    assert fixed_draws([1, 2, 3]).random() != fixed_draws([1, 2, 4]).random()
