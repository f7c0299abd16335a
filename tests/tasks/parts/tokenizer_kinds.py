"""Tokenizers of every kind, trained in a moment on a few sentences: what differs between them is where tokens begin."""

from __future__ import annotations

import functools
from typing import Any

SENTENCES = (
    "The café on Königstraße 12 opens at nine, doesn't it? No: it closed last week.",
    "Anna ordered 3 pans (28 cm) for 49.90 € on www.shop.example and paid by card.",
    "我们买了三本书。 The parcel 📦 arrived in Zürich, naïve as ever; résumé attached!",
    "ordering orders ordered order paying pays paid pay arrived arrives arriving parcel parcels",
)
KINDS = ("wordpiece", "roberta", "gpt2", "xlm-roberta", "t5", "llama")


@functools.cache
def tokenizer_of(kind: str) -> Any:
    """A fast tokenizer.

    Args:
        kind: `wordpiece` (BERT, accents stripped), `roberta` (byte-level BPE, offsets trimmed, template), `gpt2`
            (byte-level BPE, offsets with the blank, no special tokens), `xlm-roberta` (unigram after NFKC, template),
            `t5` (unigram, EOS only), `llama` (BPE over a metaspace, BOS only).
    """
    from transformers import PreTrainedTokenizerFast

    backend, names = _BUILDERS[kind]()
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend, {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def _byte_level(special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def _roberta() -> Any:
    from tokenizers import processors

    backend = _byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return backend, {**names, "pad_token": "<pad>", "unk_token": "<unk>"}


def _gpt2() -> Any:
    from tokenizers import processors

    backend = _byte_level(["<|endoftext|>"])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend, {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def _unigram(special: list[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


def _xlm_roberta() -> Any:
    from tokenizers import processors

    backend = _unigram(["<s>", "<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return backend, {**names, "pad_token": "<pad>", "unk_token": "<unk>"}


def _t5() -> Any:
    from tokenizers import processors

    backend = _unigram(["<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return backend, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def _llama() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    backend.train_from_iterator([word for text in SENTENCES[:2] for word in text.split()], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return backend, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


_BUILDERS = {
    "wordpiece": _wordpiece,
    "roberta": _roberta,
    "gpt2": _gpt2,
    "xlm-roberta": _xlm_roberta,
    "t5": _t5,
    "llama": _llama,
}
