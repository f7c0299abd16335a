"""The rule on single numbers: each must lie where it means something."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lora_ft.recipe.draft import Draft
from lora_ft.recipe.faults import Fault


@dataclass(frozen=True)
class Range:
    """Where a number must lie.

    Attributes:
        low: The lowest value, or None.
        high: The highest value, or None.
        low_open: Whether the lowest value itself is excluded.
        high_open: Whether the highest value itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return above and below

    def __str__(self) -> str:
        low = "" if self.low is None else f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        high = "" if self.high is None else f"below {self.high:g}" if self.high_open else f"at most {self.high:g}"
        return " and ".join(part for part in (low, high) if part)


POSITIVE = Range(low=0, low_open=True)
COUNT = Range(low=1)
NOT_NEGATIVE = Range(low=0)
PROBABILITY = Range(low=0, high=1, high_open=True)
SHARE = Range(low=0, high=1, low_open=True, high_open=True)

RANGES: dict[tuple[str, str], Range] = {
    ("model", "dropout"): PROBABILITY,
    ("peft_config", "r"): COUNT,
    ("peft_config", "init_r"): COUNT,
    ("peft_config", "target_r"): COUNT,
    ("peft_config", "lora_alpha"): POSITIVE,
    ("peft_config", "lora_dropout"): PROBABILITY,
    ("peft_config", "num_virtual_tokens"): COUNT,
    ("dataset", "validation"): SHARE,
    ("dataset", "test"): SHARE,
    ("preparation", "min_characters"): COUNT,
    ("preparation", "max_characters"): COUNT,
    ("preparation", "min_words"): COUNT,
    ("preparation", "max_words"): COUNT,
    ("preparation", "min_tokens"): COUNT,
    ("preparation", "max_tokens"): COUNT,
    ("preparation", "language_threshold"): Range(low=0, high=1, low_open=True),
    ("preparation", "sample"): POSITIVE,
    ("processor", "max_length"): COUNT,
    ("processor", "pad_to_multiple_of"): COUNT,
    ("processor", "max_target_length"): COUNT,
    ("processor", "stride"): NOT_NEGATIVE,
    ("processor", "min_length_s"): NOT_NEGATIVE,
    ("processor", "max_length_s"): POSITIVE,
    ("augmentation", "variants"): COUNT,
    ("augmentation", "random_deletion"): Range(low=0, high=1),
    ("augmentation", "random_swap"): Range(low=0, high=1),
    ("augmentation", "synonym_replacement"): Range(low=0, high=1),
    ("augmentation", "character_noise"): Range(low=0, high=1),
    ("augmentation", "entity_swap"): Range(low=0, high=1),
    ("augmentation", "horizontal_flip"): Range(low=0, high=1),
    ("augmentation", "vertical_flip"): Range(low=0, high=1),
    ("augmentation", "color_jitter"): Range(low=0, high=1),
    ("augmentation", "mixup_alpha"): NOT_NEGATIVE,
    ("augmentation", "cutmix_alpha"): NOT_NEGATIVE,
    ("augmentation", "mask_time_prob"): PROBABILITY,
    ("augmentation", "mask_feature_prob"): PROBABILITY,
    ("augmentation", "mask_time_length"): COUNT,
    ("augmentation", "mask_feature_length"): COUNT,
    ("lean", "max_tokens_per_batch"): COUNT,
    ("lean", "max_tokens_per_eval_batch"): COUNT,
    ("generation_config", "max_new_tokens"): COUNT,
    ("generation_config", "min_new_tokens"): NOT_NEGATIVE,
    ("generation_config", "max_length"): COUNT,
    ("generation_config", "num_beams"): COUNT,
    ("generation_config", "temperature"): POSITIVE,
    ("generation_config", "top_k"): NOT_NEGATIVE,
    ("generation_config", "top_p"): Range(low=0, high=1, low_open=True),
    ("generation_config", "min_p"): Range(low=0, high=1),
    ("generation_config", "repetition_penalty"): POSITIVE,
    ("generation_config", "no_repeat_ngram_size"): NOT_NEGATIVE,
    ("loss", "beta"): POSITIVE,
    ("loss", "focal_gamma"): NOT_NEGATIVE,
    ("loss", "logit_adjustment"): NOT_NEGATIVE,
    ("balancing", "ratio"): Range(low=0, high=1, low_open=True),
    ("decision", "threshold"): SHARE,
    ("optimizer", "loraplus_lr_ratio"): POSITIVE,
    ("optimizer", "loraplus_lr_embedding"): POSITIVE,
    ("early_stopping", "early_stopping_patience"): COUNT,
    ("early_stopping", "early_stopping_threshold"): NOT_NEGATIVE,
    ("lean", "dequantized_gb"): NOT_NEGATIVE,
    ("lean", "activation_limit_gb"): POSITIVE,
    ("lean", "prefix_cache_ram_gb"): NOT_NEGATIVE,
    ("lean", "prefix_cache_disk_gb"): NOT_NEGATIVE,
    ("quantization_config", "llm_int8_threshold"): NOT_NEGATIVE,
    ("training_args", "learning_rate"): POSITIVE,
    ("training_args", "num_train_epochs"): POSITIVE,
    ("training_args", "per_device_train_batch_size"): COUNT,
    ("training_args", "per_device_eval_batch_size"): COUNT,
    ("training_args", "gradient_accumulation_steps"): COUNT,
    ("training_args", "eval_accumulation_steps"): COUNT,
    ("training_args", "warmup_steps"): NOT_NEGATIVE,
    ("training_args", "weight_decay"): NOT_NEGATIVE,
    ("training_args", "max_grad_norm"): NOT_NEGATIVE,
    ("training_args", "label_smoothing_factor"): PROBABILITY,
    ("training_args", "adam_beta1"): PROBABILITY,
    ("training_args", "adam_beta2"): PROBABILITY,
    ("training_args", "adam_epsilon"): POSITIVE,
    ("training_args", "logging_steps"): POSITIVE,
    ("training_args", "eval_steps"): POSITIVE,
    ("training_args", "save_steps"): POSITIVE,
    ("training_args", "save_total_limit"): COUNT,
    ("training_args", "torch_empty_cache_steps"): COUNT,
    ("training_args", "dataloader_num_workers"): NOT_NEGATIVE,
    ("training_args", "seed"): Range(low=0, high=2**32 - 1),
    ("training_args", "data_seed"): Range(low=0, high=2**32 - 1),
}

WHOLE_ABOVE_ONE = ("logging_steps", "eval_steps", "save_steps")
SIDES = ("truncation_side", "padding_side")


def value_is_in_range(draft: Draft) -> Iterator[Fault]:
    """Single values that have the right type and no meaning."""
    for path, allowed in RANGES.items():
        value = draft.value(*path)
        if isinstance(value, int | float) and not isinstance(value, bool) and not allowed.holds(value):
            yield Fault(path, f"expected a number {allowed}")
    for key in WHOLE_ABOVE_ONE:
        value = draft.number("training_args", key)
        if value > 1 and value != int(value):
            yield Fault(("training_args", key), "expected a whole number of steps, or below 1 a share of all steps")
    for key in SIDES:
        side = draft.value("processor", key, default="right")
        if side not in ("left", "right"):
            yield Fault(("processor", key), "expected 'left' or 'right'")
    if draft.number("training_args", "max_steps", default=-1) == 0:
        yield Fault(
            ("training_args", "max_steps"),
            "a run of no steps. Expected a number of steps, or -1 to count epochs",
        )
