"""Tiny bases made from configs: a folder with config, random weights and a tokenizer, in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = (
    "a an and the it is was this that i my we you good bad great awful nice poor love hate works broke "
    "never not very book pan shirt cable story phone battery handle size read wear cook charge return "
    "money time day week quality cheap sturdy flimsy soft rough fast slow broken perfect terrible happy "
    "sad well badly again one two three . , ! "
)
WORDS = VOCABULARY.split()


def tiny_tokenizer(*, pad: bool = True):
    """A word-level fast tokenizer with BERT's special tokens, or a GPT-like one without a pad token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if pad else ["<|endoftext|>"]
    vocab = {token: index for index, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]" if pad else "<|endoftext|>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not pad:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token="<|endoftext|>",
            unk_token="<|endoftext|>",
            model_max_length=64,
        )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_base(folder: Path, kind: str = "bert", *, seed: int = 0, hidden: int = 32, layers: int = 2) -> Path:
    """Writes a tiny pretrained base without a task head.

    Args:
        folder: Where the base goes; made if absent.
        kind: `bert`, `distilbert`, `roberta`, `gpt2` or `llama`.
        seed: Seed of the random weights: two seeds give two bases of the same shape.
        hidden: Hidden size (a multiple of 4).
        layers: Number of transformer layers.

    Returns:
        `folder`.
    """
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(pad=kind not in ("gpt2", "llama"))
    size = len(tokenizer)
    if kind in ("bert", "roberta"):
        config_class = {"bert": tf.BertConfig, "roberta": tf.RobertaConfig}[kind]
        config = config_class(
            vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=80, pad_token_id=0,
        )  # fmt: skip
    elif kind == "distilbert":
        config = tf.DistilBertConfig(
            vocab_size=size,
            dim=hidden,
            n_layers=layers,
            n_heads=4,
            hidden_dim=2 * hidden,
            max_position_embeddings=80,
        )
    elif kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=size,
            n_embd=hidden,
            n_layer=layers,
            n_head=4,
            n_positions=80,
            bos_token_id=0,
            eos_token_id=0,
        )
    else:
        config = tf.LlamaConfig(
            vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=2 * hidden, max_position_embeddings=80,
            bos_token_id=0, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
    config.initializer_range = 0.2  # at 0.02 hardly anything moves between positions, and nothing can be learned
    model = tf.AutoModel.from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
