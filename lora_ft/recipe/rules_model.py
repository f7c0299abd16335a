"""The rules on the base: precision, quantization and folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_ft.recipe.bases import base_config, most_tokens
from lora_ft.recipe.device import find_device
from lora_ft.recipe.draft import Draft
from lora_ft.recipe.families import unknown_family
from lora_ft.recipe.faults import Fault

BF16 = ("bf16", "bf16_full_eval")
FP16 = ("fp16", "fp16_full_eval")


def half_precision_has_a_device(draft: Draft) -> Iterator[Fault]:
    """Half precision that this machine does not compute in."""
    asked = [key for key in (*BF16, *FP16) if draft.value("training_args", key) is True]
    if not asked:
        return
    device = find_device()
    if device.accelerator and not draft.value("training_args", "use_cpu", default=False):
        return
    for key in asked:
        if key in FP16:
            yield Fault(
                ("training_args", key),
                "float16 is for GPUs, and this run is on a CPU. Leave it out: precision follows the device",
            )
        elif not device.cpu_bf16:
            yield Fault(
                ("training_args", key),
                "this machine has no GPU, and its CPU does not compute in bfloat16 (/proc/cpuinfo has "
                "neither avx512_bf16 nor amx_bf16). Leave it out: the precision follows the device",
            )


def one_half_precision(draft: Draft) -> Iterator[Fault]:
    """Two half precisions at once."""
    for fp16, bf16 in zip(FP16, BF16, strict=True):
        if draft.value("training_args", fp16) is True and draft.value("training_args", bf16) is True:
            yield Fault(("training_args", fp16), f"{fp16} and {bf16} exclude each other. Leave both out, or keep one")


def tf32_has_a_device(draft: Draft) -> Iterator[Fault]:
    """TF32 on a machine without a GPU."""
    if draft.value("training_args", "tf32") is True and not find_device().accelerator:
        yield Fault(("training_args", "tf32"), "TF32 is for NVIDIA GPUs, and this machine has none. Leave it out")


def one_quantization(draft: Draft) -> Iterator[Fault]:
    """Four bits and eight at once."""
    section = draft.section("quantization_config")
    if section.get("load_in_4bit") is True and section.get("load_in_8bit") is True:
        yield Fault(
            ("quantization_config", "load_in_8bit"),
            "load_in_4bit and load_in_8bit exclude each other. Keep one of them",
        )


def some_quantization(draft: Draft) -> Iterator[Fault]:
    """A quantization section that quantizes nothing."""
    section = draft.section("quantization_config")
    wrong = any(draft.wrong("quantization_config", key) for key in ("load_in_4bit", "load_in_8bit"))
    asked = section.get("load_in_4bit") or section.get("load_in_8bit")
    if "quantization_config" in draft.values and not wrong and not asked:
        yield Fault(
            ("quantization_config",),
            "nothing is quantized: neither load_in_4bit nor load_in_8bit is true. Write load_in_4bit: true, "
            "or leave the section out for plain LoRA",
        )


def bnb_4bit_options_need_4bit(draft: Draft) -> Iterator[Fault]:
    """Options of a quantization that is not asked for."""
    section = draft.section("quantization_config")
    if section.get("load_in_4bit") or draft.wrong("quantization_config", "load_in_4bit"):
        return
    for key in section:
        if key.startswith("bnb_4bit_") and section.get("load_in_8bit"):
            yield Fault(("quantization_config", key), "it has no effect without load_in_4bit: true. Leave it out")


def folder_has_no_revision(draft: Draft) -> Iterator[Fault]:
    """A revision of something that has none."""
    for section, key in (("model", "pretrained_model_name_or_path"), ("dataset", "path")):
        name = draft.value(section, key)
        if name is not None and Path(name).is_absolute() and draft.value(section, "revision") is not None:
            yield Fault((section, "revision"), f"{section}.{key} is a folder, which has no revisions. Leave it out")


def base_is_of_a_known_family(draft: Draft) -> Iterator[Fault]:
    """A base of a family that the task has no model for, such as one without a decoder for text to text."""
    name = draft.value("model", "pretrained_model_name_or_path")
    if draft.task is None or name is None:
        return
    config = base_config(name, revision=draft.value("model", "revision"))
    told = unknown_family(config, draft.task.auto_classes, task=draft.task.name)
    if told is not None:
        yield Fault(("model", "pretrained_model_name_or_path"), told)


def texts_leave_room_for_tokens(draft: Draft) -> Iterator[Fault]:
    """A length that leaves no room for a text."""
    length = draft.value("processor", "max_length")
    if draft.task is None or not isinstance(length, int) or isinstance(length, bool):
        return
    if 1 <= length < draft.task.least_tokens:
        yield Fault(("processor", "max_length"), f"expected {draft.task.least_tokens} tokens or more")


def texts_fit_the_base(draft: Draft) -> Iterator[Fault]:
    """Texts cut at a length that the base has no positions for, or overlapping by more than that."""
    length, base = draft.value("processor", "max_length"), draft.value("model", "pretrained_model_name_or_path")
    if not isinstance(length, int) or isinstance(length, bool):
        return
    limit = most_tokens(base_config(base, revision=draft.value("model", "revision"))) if base else None
    if limit is not None and length > limit:
        yield Fault(
            ("processor", "max_length"),
            f"the base reads at most {limit} tokens (its config.json). Write {limit} or less",
        )
    if draft.number("processor", "stride") >= length > 0:
        yield Fault(
            ("processor", "stride"),
            f"windows of {length} tokens (max_length) cannot overlap by that many. Write less than {length}",
        )


def output_is_outside_the_base(draft: Draft) -> Iterator[Fault]:
    """An adapter written into its base."""
    output = draft.value("training_args", "output_dir")
    base = draft.value("model", "pretrained_model_name_or_path")
    if output is not None and base is not None and Path(base) in (Path(output), *Path(output).parents):
        yield Fault(
            ("training_args", "output_dir"),
            "it lies in the folder of the base model, which a run never writes to. Choose another folder",
        )
