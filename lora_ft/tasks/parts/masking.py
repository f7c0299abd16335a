"""Masked language models: which tokens are hidden, whole words at a time, and what the model sees instead.

Source: Devlin et al., BERT (2019), section 3.1: of the hidden tokens 80 % become the mask token, 10 % a random token,
10 % stay. Whole words: google-research/bert, README of 31 May 2019.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ft.tasks.parts.language import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
NO_WORD = -1
"""The word number of a special token: it is never hidden."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer.

    Attributes:
        mask: The mask token.
        ordinary: Tokens that may stand in for a hidden one: all but special tokens.
    """

    mask: int
    ordinary: np.ndarray


def vocabulary_of(processor: Any) -> Vocabulary:
    """The mask token and the ordinary tokens of a tokenizer."""
    import numpy as np

    ordinary = np.setdiff1d(np.arange(len(processor)), np.asarray(processor.all_special_ids))
    return Vocabulary(int(processor.mask_token_id), ordinary)


def fixed_draws(ids: Sequence[int]) -> Generator:
    """Random numbers that follow from the tokens alone: the same row is masked alike in every run."""
    import numpy as np

    return np.random.default_rng(zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes()))


def hide(
    ids: Sequence[int], words: Sequence[int], vocabulary: Vocabulary, *, probability: float, draws: Generator
) -> tuple[list[int], list[int]]:
    """Hides words of a sequence; at least one, where it has any.

    Args:
        ids: Tokens.
        words: For each token the number of its word, -1 for special tokens; tokens of a word are hidden together.
        vocabulary: What masking needs to know of the tokenizer.
        probability: Share of the words to hide.
        draws: Where chance comes from.

    Returns:
        What the model sees, and the labels: the hidden tokens, -100 elsewhere.
    """
    import numpy as np

    seen, word_of = np.array(ids, dtype=np.int64), np.asarray(words, dtype=np.int64)
    candidates = np.unique(word_of[word_of != NO_WORD])
    chosen = candidates[draws.random(len(candidates)) < probability]
    if len(candidates) and not len(chosen):
        chosen = draws.choice(candidates, 1)
    hidden = np.isin(word_of, chosen) & (word_of != NO_WORD)
    labels = np.where(hidden, seen, IGNORED)
    fate = draws.random(len(seen))
    stand_in = draws.choice(vocabulary.ordinary, len(seen))
    seen = np.where(hidden & (fate < MASKED_SHARE), vocabulary.mask, seen)
    replaced = (fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)
    seen = np.where(hidden & replaced, stand_in, seen)
    return seen.tolist(), labels.tolist()
