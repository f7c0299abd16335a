"""Tiny bases made from configs: a folder with config, random weights and a processor, in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_ft  # noqa: F401  # its guard of torchvision must be there before anybody imports transformers or peft
from tests.bases_speech import speech_parts, whisper_generation

VOCABULARY = (
    "a an and the it is was this that i my we you good bad great awful nice poor love hate works broke "
    "never not very book pan shirt cable story phone battery handle size read wear cook charge return "
    "money time day week quality cheap sturdy flimsy soft rough fast slow broken perfect terrible happy "
    "sad well badly again one two three . , ! "
)
WORDS = VOCABULARY.split()
IMAGE_SIZE = 32
INITIALIZER_RANGE = 0.2  # at 0.02 hardly anything moves between positions, and nothing can be learned

TEXT_ENCODERS = ("bert", "distilbert", "roberta")
DECODERS = ("gpt2", "llama")
SEQ2SEQ = ("t5", "bart")
IMAGE = ("vit", "resnet", "mobilenet_v2", "timm")
DETECTION = ("yolos", "detr", "rt_detr")
SPEECH = ("whisper", "wav2vec2", "hubert", "ast")
KINDS = (*TEXT_ENCODERS, *DECODERS, *SEQ2SEQ, *IMAGE, *DETECTION, *SPEECH)

WITH_HEAD = {
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    "timm": "AutoModelForImageClassification",
    "rt_detr": "AutoModelForObjectDetection",
    "whisper": "AutoModelForSpeechSeq2Seq",
}
"""Kinds that are saved whole unless `auto_class` says otherwise; all others as the base proper (AutoModel)."""


def make_base(
    folder: Path, kind: str = "bert", *, seed: int = 0, hidden: int = 32, layers: int = 2, auto_class: str | None = None
) -> Path:
    """Writes a tiny pretrained base with its processor.

    Args:
        folder: Where the base goes; made if absent.
        kind: One of `KINDS`. `hubert` has a feature extractor alone, `wav2vec2` also a tokenizer of letters.
        seed: Seed of the random weights: two seeds give two bases of the same shape.
        hidden: Hidden size (a multiple of 4).
        layers: Number of transformer layers.
        auto_class: The auto class that builds the model, such as `AutoModelForMaskedLM`; None: `WITH_HEAD`, else the
            base proper without a task head.

    Returns:
        `folder`.
    """
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    makers: dict[str, Callable[..., tuple[Any, Any]]] = {
        **dict.fromkeys((*TEXT_ENCODERS, *DECODERS, *SEQ2SEQ), _text),
        **dict.fromkeys(IMAGE, _image),
        **dict.fromkeys(DETECTION, _detection),
        **dict.fromkeys(SPEECH, speech_parts),
    }
    config, processor = makers[kind](kind, hidden=hidden, layers=layers)
    for name in ("initializer_range", "init_std"):
        if name in vars(config):
            setattr(config, name, INITIALIZER_RANGE)
    model = getattr(tf, auto_class or WITH_HEAD.get(kind, "AutoModel")).from_config(config)
    if kind in (*IMAGE, *DETECTION):
        _settle_batch_norms(model)
    if kind == "yolos":
        _part_queries(model)
    if kind == "whisper":
        whisper_generation(model, processor.tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def tiny_tokenizer(*, pad: bool = True) -> Any:
    """A word-level fast tokenizer with BERT's special tokens, or a GPT-like one without a pad token."""
    if not pad:
        return _words(["<|endoftext|>"], "", unk="<|endoftext|>", eos_token="<|endoftext|>")
    return _words(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        unk="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _words(special: list[str], template: str, *, unk: str, pair: str | None = None, **settings: Any) -> Any:
    """A tokenizer of whole words in lower case; its special tokens have the first ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {token: index for index, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if template:
        used = [(token, vocab[token]) for token in special if token in template]
        backend.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unk, model_max_length=64, **settings)


def _text(kind: str, *, hidden: int, layers: int) -> tuple[Any, Any]:
    import transformers as tf

    if kind in SEQ2SEQ:
        return _text_to_text(kind, hidden=hidden, layers=layers)
    tokenizer = tiny_tokenizer(pad=kind in TEXT_ENCODERS)
    if kind in DECODERS:
        tokenizer.chat_template = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    size = len(tokenizer)
    if kind in ("bert", "roberta"):
        config_class = {"bert": tf.BertConfig, "roberta": tf.RobertaConfig}[kind]
        config: Any = config_class(
            vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=80, pad_token_id=0,
        )  # fmt: skip
    elif kind == "distilbert":
        config = tf.DistilBertConfig(
            vocab_size=size, dim=hidden, n_layers=layers, n_heads=4, hidden_dim=2 * hidden, max_position_embeddings=80
        )
    elif kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=size, n_embd=hidden, n_layer=layers, n_head=4, n_positions=80, bos_token_id=0, eos_token_id=0
        )
    else:
        config = tf.LlamaConfig(
            vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=2 * hidden, max_position_embeddings=80,
            bos_token_id=0, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
    return config, tokenizer


def _text_to_text(kind: str, *, hidden: int, layers: int) -> tuple[Any, Any]:
    import transformers as tf

    if kind == "t5":
        tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
        tokenizer = _words(["<pad>", "</s>", "<unk>"], "$A </s>", pair="$A </s> $B </s>", unk="<unk>", **tokens)
        config: Any = tf.T5Config(
            vocab_size=len(tokenizer), d_model=hidden, d_kv=hidden // 4, d_ff=2 * hidden, num_layers=layers,
            num_heads=4, relative_attention_num_buckets=8, relative_attention_max_distance=32,
            decoder_start_token_id=0,
        )  # fmt: skip
        return config, tokenizer
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    tokenizer = _words(special, "<s> $A </s>", pair="<s> $A </s> $B </s>", unk="<unk>", **tokens)
    config = tf.BartConfig(
        vocab_size=len(tokenizer), d_model=hidden, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=2 * hidden, decoder_ffn_dim=2 * hidden,
        max_position_embeddings=80,
    )  # fmt: skip
    return config, tokenizer


def _image(kind: str, *, hidden: int, layers: int) -> tuple[Any, Any]:
    import transformers as tf

    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if kind == "vit":
        config: Any = tf.ViTConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * hidden,
            image_size=IMAGE_SIZE, patch_size=8,
        )  # fmt: skip
        return config, tf.ViTImageProcessorPil(size=square)
    if kind == "resnet":
        config = tf.ResNetConfig(
            embedding_size=hidden // 4, hidden_sizes=[hidden // 2, hidden], depths=[1, 1], layer_type="bottleneck"
        )
        return config, tf.ConvNextImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_pct=0.875)
    if kind == "mobilenet_v2":
        config = tf.MobileNetV2Config(depth_multiplier=0.1, image_size=IMAGE_SIZE, output_stride=8)
        size = {"shortest_edge": IMAGE_SIZE + 4}
        return config, tf.MobileNetV2ImageProcessorPil(size=size, crop_size=square)
    config = tf.TimmWrapperConfig(
        architecture="resnet10t", model_args={"channels": [hidden // 4, hidden // 2, hidden, hidden], "stem_width": 8}
    )
    config.num_labels = 4
    config.pretrained_cfg = {
        "input_size": [3, IMAGE_SIZE, IMAGE_SIZE], "interpolation": "bilinear", "crop_pct": 1.0,
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    return config, None  # its image processor reads config.json


def _detection(kind: str, *, hidden: int, layers: int) -> tuple[Any, Any]:
    import transformers as tf

    flexible = {"shortest_edge": IMAGE_SIZE, "longest_edge": 2 * IMAGE_SIZE}
    if kind == "yolos":
        config: Any = tf.YolosConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * hidden,
            image_size=[IMAGE_SIZE, IMAGE_SIZE], patch_size=8, num_detection_tokens=8,
        )  # fmt: skip
        return config, tf.YolosImageProcessorPil(size=flexible)
    widths = {"embedding_size": 8, "layer_type": "basic"}
    transformer = {
        "d_model": hidden, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 2 * hidden,
        "decoder_ffn_dim": 2 * hidden, "decoder_layers": layers,
    }  # fmt: skip
    if kind == "detr":
        backbone = tf.ResNetConfig(hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"], **widths)
        config = tf.DetrConfig(backbone_config=backbone, num_queries=8, encoder_layers=layers, **transformer)
        return config, tf.DetrImageProcessorPil(size=flexible)
    sizes = [8, 16, 24, 32]
    config = tf.RTDetrConfig(
        backbone_config=tf.RTDetrResNetConfig(
            hidden_sizes=sizes, depths=[1, 1, 1, 1], out_indices=[2, 3, 4], **widths
        ),
        encoder_hidden_dim=hidden, encoder_in_channels=sizes[1:], decoder_in_channels=[hidden] * 3,
        num_queries=8, num_denoising=4, hidden_expansion=0.5, num_labels=5, **transformer,
    )  # fmt: skip
    return config, tf.RTDetrImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def _part_queries(model: Any) -> None:
    """Gives a YOLOS random tokens and positions: a fresh one has zeros, and all its queries answer alike."""
    import torch

    for name, parameter in model.named_parameters():
        if "embeddings" in name and ("token" in name or "position" in name):
            torch.nn.init.normal_(parameter, std=INITIALIZER_RANGE)


def _settle_batch_norms(model: Any) -> None:
    """Gives batch norms the statistics of random images, as training would have: without them nothing gets through."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    kept = [module.momentum for module in norms]
    model.train()
    with torch.no_grad():
        for module in norms:
            module.momentum = None  # the mean of all batches
        for _ in range(2):
            model(pixel_values=torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))
        for module, momentum in zip(norms, kept, strict=True):
            module.momentum = momentum
    model.eval()
