"""The rules on the adapter and its optimizer: what peft refuses late, or ignores with a warning."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ft.recipe.draft import Draft
from lora_ft.recipe.faults import Fault

INITIAL_CONFIGS = {
    "loftq": "loftq_config",
    "eva": "eva_config",
    "corda": "corda_config",
    "lora_ga": "lora_ga_config",
}


def _is_lora(draft: Draft) -> bool:
    return bool(draft.value("peft_config", "peft_type") == "LORA")


def peft_optimizer_needs_lora(draft: Draft) -> Iterator[Fault]:
    """An optimizer that only knows the matrices A and B of LoRA."""
    name, peft_type = draft.value("optimizer", "name"), draft.value("peft_config", "peft_type")
    if name is not None and peft_type not in (None, "LORA"):
        yield Fault(
            ("optimizer", "name"),
            f"{name} works on the matrices A and B of LORA, and peft_config.peft_type is {peft_type}. "
            "Leave the section out",
        )


def one_optimizer(draft: Draft) -> Iterator[Fault]:
    """Two optimizers at once."""
    name = draft.value("optimizer", "name")
    if name is None:
        return
    for key in ("optim", "optim_args", "optim_target_modules"):
        # LoRA+ only sets learning rates for an optimizer class; LoRA-FA is one itself.
        if draft.given("training_args", key):
            yield Fault(
                ("training_args", key),
                f"optimizer.name = {name} already chooses the optimizer. Leave one of the two out",
            )


def loraplus_options_need_loraplus(draft: Draft) -> Iterator[Fault]:
    """Options of an optimizer that is not asked for."""
    if draft.value("optimizer", "name") == "loraplus" or draft.wrong("optimizer", "name"):
        return
    for key in ("loraplus_lr_ratio", "loraplus_lr_embedding"):
        if draft.given("optimizer", key):
            yield Fault(("optimizer", key), "it has no effect without optimizer.name: loraplus. Leave it out")


def layers_need_module_names(draft: Draft) -> Iterator[Fault]:
    """Chosen layers with target modules that are a pattern: peft refuses that."""
    modules = draft.value("peft_config", "target_modules")
    if not isinstance(modules, str) or modules.lower() in ("all-linear", "all-conv"):
        return
    if draft.value("peft_config", "layers_to_transform") is not None:
        yield Fault(
            ("peft_config", "layers_to_transform"),
            f"it needs target_modules as a list of module names, and target_modules is {modules!r}. "
            "Write target_modules: [query, value], or all-linear",
        )


def layers_pattern_needs_layers(draft: Draft) -> Iterator[Fault]:
    """A pattern for layers that are not chosen."""
    if draft.value("peft_config", "layers_pattern") and not draft.given("peft_config", "layers_to_transform"):
        yield Fault(("peft_config", "layers_pattern"), "it needs layers_to_transform. Write both, or leave it out")


def target_modules_name_something(draft: Draft) -> Iterator[Fault]:
    """An adapter on nothing."""
    if draft.value("peft_config", "target_modules") in ("", []):
        yield Fault(
            ("peft_config", "target_modules"),
            "no module gets an adapter. Write module names, or leave it out",
        )


def initial_weights_and_their_config(draft: Draft) -> Iterator[Fault]:
    """A way of initialisation without its settings, or settings of another way, which peft ignores."""
    if not _is_lora(draft) or draft.wrong("peft_config", "init_lora_weights"):
        return
    start = draft.value("peft_config", "init_lora_weights", default=True)
    if start == "loftq" and not draft.given("peft_config", "loftq_config"):
        yield Fault(
            ("peft_config", "init_lora_weights"),
            "it needs loftq_config. Write loftq_config: {loftq_bits: 4}",
        )
    if start == "loftq" and "quantization_config" in draft.values:
        yield Fault(
            ("peft_config", "init_lora_weights"),
            "LoftQ quantizes the base itself and starts from full weights. Leave quantization_config out",
        )
    for name, key in INITIAL_CONFIGS.items():
        if draft.value("peft_config", key) and start != name:
            yield Fault(("peft_config", key), f"it has no effect without init_lora_weights: {name}. Leave it out")


def lora_bias_is_plain_lora(draft: Draft) -> Iterator[Fault]:
    """A bias in B together with what peft cannot combine it with."""
    if draft.value("peft_config", "lora_bias") is not True:
        return
    if not isinstance(draft.value("peft_config", "init_lora_weights", default=True), bool):
        yield Fault(("peft_config", "lora_bias"), "it needs init_lora_weights: true. Leave one of the two out")
    if draft.value("peft_config", "use_dora") is True:
        yield Fault(("peft_config", "lora_bias"), "DoRA has no bias. Leave lora_bias or use_dora out")


def dora_without_megatron(draft: Draft) -> Iterator[Fault]:
    """DoRA on Megatron layers."""
    if draft.value("peft_config", "use_dora") is True and draft.value("peft_config", "megatron_config"):
        yield Fault(("peft_config", "use_dora"), "DoRA does not support megatron_config. Leave one of the two out")
