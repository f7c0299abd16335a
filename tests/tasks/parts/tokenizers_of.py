"""Tokenizers made on the spot: bytes that never merge, and pieces in the manner of SentencePiece that do."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

from tests.tasks.parts.chat_templates import SPECIAL

CORPUS = (
    "two and two is four . the answer is yes , it is . the question was : why ? because it was so . "
    "first second third answer: yes answer: no question: why\n\nanswer: because\n"
)


@cache
def byte_tokenizer() -> Any:
    """One token a byte, and special tokens that stay whole: a label can be read like a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(PreTrainedTokenizerFast, backend)


@cache
def piece_tokenizer(*, start: bool = True) -> Any:
    """Pieces that reach over word ends, with a space put before every text; `<s>` first, as Llama has it.

    Args:
        start: Whether the tokenizer puts `<s>` first.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", *SPECIAL],
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS] * 4, trainer)
    if start:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return _wrapped(PreTrainedTokenizerFast, backend)


def _wrapped(kind: Any, backend: Any) -> Any:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = kind(tokenizer_object=backend, model_max_length=512, **tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    return tokenizer
