"""The speech bases of `tests/bases.py`: Whisper, wav2vec2, HuBERT and AST, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
SAMPLING_RATE = 16_000


def speech_parts(kind: str, *, hidden: int, layers: int) -> tuple[Any, Any]:
    """Config and processor of a tiny speech base: `whisper`, `wav2vec2`, `hubert` or `ast`."""
    import transformers as tf

    if kind == "whisper":
        return _whisper(hidden=hidden, layers=layers)
    if kind == "ast":
        config: Any = tf.ASTConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * hidden,
            patch_size=8, frequency_stride=8, time_stride=8, max_length=64, num_mel_bins=32,
        )  # fmt: skip
        return config, tf.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    config_class = {"wav2vec2": tf.Wav2Vec2Config, "hubert": tf.HubertConfig}[kind]
    config = config_class(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * hidden,
        conv_dim=(16, 16, 16), conv_kernel=(10, 8, 4), conv_stride=(10, 8, 4), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, classifier_proj_size=hidden, vocab_size=len(_letters()),
    )  # fmt: skip
    extractor = tf.Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE, return_attention_mask=False)
    if kind == "hubert":
        return config, extractor
    return config, tf.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=_letter_tokenizer())


def _letters() -> dict[str, int]:
    """The vocabulary of CTC: letters, `|` between words, and the blank, which also pads, first."""
    return {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}


def _letter_tokenizer() -> Any:
    import json
    import tempfile

    import transformers as tf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(_letters()), encoding="utf-8")
        return tf.Wav2Vec2CTCTokenizer(str(file))


def _whisper(*, hidden: int, layers: int) -> tuple[Any, Any]:
    """A Whisper of two seconds with a tokenizer of bytes."""
    import transformers as tf
    from tokenizers.pre_tokenizers import ByteLevel

    special = [
        "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|de|>", "<|translate|>", "<|transcribe|>",
        "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip
    first = {token: index for index, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = tf.WhisperTokenizer(
        vocab=first, merges=[], pad_token="<|endoftext|>", additional_special_tokens=special, model_max_length=64
    )
    config = tf.WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=16, d_model=hidden, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=2 * hidden, decoder_ffn_dim=2 * hidden,
        max_source_positions=100, max_target_positions=64, decoder_start_token_id=first["<|startoftranscript|>"],
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), first["<|endoftext|>"]),
        begin_suppress_tokens=[first["<|endoftext|>"]],
    )  # fmt: skip
    extractor = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return config, tf.WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def whisper_generation(model: Any, tokenizer: Any) -> None:
    """Gives a Whisper the generation settings without which it knows no language and no task."""
    from transformers import GenerationConfig

    first = tokenizer.convert_tokens_to_ids
    # the pad token, which is the end token too, begins as zeros, and tied output embeddings could never say it
    model.get_input_embeddings().weight.data[tokenizer.pad_token_id].normal_(std=0.2)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=first("<|startoftranscript|>"),
        begin_suppress_tokens=[tokenizer.eos_token_id],
        suppress_tokens=[],
        max_length=64,
        is_multilingual=True,
        lang_to_id={token: first(token) for token in ("<|en|>", "<|zh|>", "<|de|>")},
        task_to_id={"translate": first("<|translate|>"), "transcribe": first("<|transcribe|>")},
        no_timestamps_token_id=first("<|notimestamps|>"),
        prev_sot_token_id=first("<|startofprev|>"),
        max_initial_timestamp_index=50,
    )
