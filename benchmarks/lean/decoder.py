"""A decoder of SmolLM2-135M's shape with random weights, and rows of prompts and completions for it.

One row, of 512 tokens, 30 % of which are labels: prompt "w17 w40210 ... w5", completion " w881 w9 ...".
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LABELS = 0.3


def write_decoder(folder: Path, *, vocabulary: int, layers: int = 4) -> Path:
    """Writes the base, in float32 safetensors, with a tokenizer of one word a token.

    Args:
        folder: Where to.
        vocabulary: Tokens; SmolLM2 has 49,152, Qwen2.5 has 152,064 rows in its embedding.
        layers: SmolLM2-135M has 30.

    Returns:
        `folder`.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = ["<|endoftext|>", "<|pad|>", *(f"w{index}" for index in range(2, vocabulary))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=words[0], eos_token=words[0], pad_token=words[1], model_max_length=2048
    )
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_completions(file: Path, *, rows: int, vocabulary: int, tokens: int = 512) -> Path:
    """Writes JSON lines of `tokens` tokens each, the end-of-text token at the end included."""
    rng = random.Random(0)
    labels = round(LABELS * tokens)

    def text(words: int) -> str:
        return " ".join(f"w{rng.randrange(2, vocabulary)}" for _ in range(words))

    made = [{"prompt": text(tokens - labels), "completion": f" {text(labels - 1)}"} for _ in range(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return file


def write_recipe(folder: Path, *, base: Path, rows: Path, batch_size: int) -> Path:
    """The recipe of the same run as ours; JSON is YAML."""
    content: dict[str, Any] = {
        "task": "text-generation",
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": str(rows)}},
        "processor": {"max_length": 512},
        "training_args": {
            "output_dir": str(folder / "run"), "num_train_epochs": 1, "learning_rate": 2e-4,
            "per_device_train_batch_size": batch_size, "logging_steps": 1, "save_strategy": "no",
            "disable_tqdm": True,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return file
