"""What a launcher wants to be cut into shards, what cannot be cut, and where FSDP is to cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import transformers
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from lora_ft.adapters.initial import takes_from_base
from lora_ft.errors import InputError, RunError
from lora_ft.models.precision import Precision
from lora_ft.models.quantization import quantization_kind
from lora_ft.recipe.schema import Recipe
from lora_ft.train.trainer import AdapterTrainer

Kind = Literal["FSDP", "ZeRO-3", "ZeRO-2", "ZeRO-1"]
VIRTUAL_TOKENS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def sharding_of(arguments: transformers.TrainingArguments) -> Kind | None:
    """What the launcher or the recipe asks for; None: every process has all of the model.

    Raises:
        InputError: DeepSpeed is to cut nothing.
    """
    plugin = arguments.deepspeed_plugin
    if plugin is not None:
        stages: dict[int, Kind] = {1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}
        if plugin.zero_stage not in stages:
            raise InputError(
                f"DeepSpeed: zero_stage = {plugin.zero_stage} cuts nothing. Expected 2 or 3. Without shards launch "
                "with launch/accelerate/ddp.yaml"
            )
        return stages[plugin.zero_stage]
    asked = arguments.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")
    return "FSDP" if asked else None


def check_sharding(
    recipe: Recipe, arguments: transformers.TrainingArguments, *, kind: Kind | None, precision: Precision
) -> None:
    """Refuses what cannot be trained in shards, before a base is loaded.

    Args:
        recipe: The recipe.
        arguments: The arguments of the run.
        kind: What cuts.
        precision: What the run computes in.

    Raises:
        InputError: All that stands in the way.
    """
    if kind is None:
        return
    faults = [*_of_launcher(arguments, kind), *_of_recipe(recipe, kind), *_of_quantization(recipe, kind, precision)]
    if faults:
        raise InputError("\n".join(f"{kind}: {fault}" for fault in faults))


def _of_launcher(arguments: transformers.TrainingArguments, kind: Kind) -> Iterator[str]:
    """What is wrong with how shards are to be cut."""
    if kind == "FSDP":
        plugin = FullyShardedDataParallelPlugin(**(arguments.fsdp_plugin_args or {}))
        if plugin.fsdp_version != 2:
            yield (
                f"fsdp_version = {plugin.fsdp_version}: it joins weights that train with those that do not. Expected 2 "
                "(launch/accelerate/fsdp2.yaml)"
            )
            return
        if plugin.cpu_ram_efficient_loading:
            yield (
                "fsdp_cpu_ram_efficient_loading: true: the other processes would have no base that they could look at. "
                "Expected false"
            )
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            yield "fsdp_offload_params: true: an evaluation would look for its rows there. Expected false"
    if arguments.auto_find_batch_size:
        yield "training_args.auto_find_batch_size = true: a process that is short of memory cannot try again alone"
    if arguments.save_only_model and arguments.load_best_model_at_end:
        yield "training_args.save_only_model = true: refused beside load_best_model_at_end. Leave it out"


def _of_recipe(recipe: Recipe, kind: Kind) -> Iterator[str]:
    """What a recipe wants that needs more than a piece of the weights, or of the gradients."""
    adapter = recipe.peft_config
    method = str(adapter["peft_type"])
    start = adapter.get("init_lora_weights")
    if method == "ADALORA":
        yield "peft_config.peft_type = ADALORA: it weighs whole gradients after each step. Expected LORA"
    if kind in ("FSDP", "ZeRO-3"):
        if method in VIRTUAL_TOKENS:
            yield f"peft_config.peft_type = {method}: it is saved by a forward pass of its own. Expected LORA"
        if takes_from_base(start):
            yield (
                f"peft_config.init_lora_weights = {start!r}: the base that it changes would have to be put together "
                "again. Leave it out"
            )
    if recipe.optimizer.name == "lorafa":
        yield "optimizer.name = 'lorafa': it needs A and B whole. Expected loraplus, or leave the section out"


def _of_quantization(recipe: Recipe, kind: Kind, precision: Precision) -> Iterator[str]:
    """How a quantised base cannot be cut."""
    quantization, settings = quantization_kind(recipe.quantization_config), recipe.quantization_config or {}
    if quantization is None or kind not in ("FSDP", "ZeRO-3"):
        return
    if kind == "ZeRO-3":
        yield "quantization_config: use launch/accelerate/fsdp2_qlora.yaml for a quantised base, or zero2.yaml"
    elif quantization == "int8":
        yield (
            "quantization_config.load_in_8bit = true: bitsandbytes cannot cut such weights. Expected load_in_4bit with "
            f"bnb_4bit_quant_storage: {precision.name}"
        )
    else:
        storage = str(settings.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
        if storage != precision.name:
            yield (
                f"quantization_config.bnb_4bit_quant_storage = {storage}: FSDP cuts only weights that are stored in "
                f"the type in which the run computes. Expected {precision.name}"
            )


def loaded_on(recipe: Recipe, kind: Kind | None) -> str | None:
    """Where a base is loaded, if not where it computes: one that is cut may be larger than an accelerator's memory."""
    return "cpu" if kind in ("FSDP", "ZeRO-3") and recipe.quantization_config is None else None


@contextmanager
def loaded_whole(arguments: transformers.TrainingArguments, kind: Kind | None) -> Iterator[None]:
    """Has transformers load a whole base: ZeRO-3 would cut it while it is read, and be it that the launcher forbids it.

    The adapter is put on a whole base, which is looked at before; it is cut when the run begins.

    Args:
        arguments: The arguments of the run.
        kind: What cuts.
    """
    if kind != "ZeRO-3":
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        own = arguments.hf_deepspeed_config if arguments.deepspeed else arguments.deepspeed_plugin.dschf
        set_hf_deepspeed_config(own)


def check_is_cut(trainer: AdapterTrainer, kind: Kind | None) -> None:
    """Stops a run that was to be cut and is not.

    Raises:
        RunError: accelerate (1.15) uses FSDP on accelerators alone, and says nothing on CPUs.
    """
    if kind == "FSDP" and not trainer.is_fsdp_enabled:
        raise RunError(
            "FSDP: asked for, but accelerate does not cut a model on CPUs, or on one GPU without a launcher. Launch "
            "without it: launch/accelerate/cpu.yaml, or one_gpu.yaml"
        )


def lay_out(trainer: AdapterTrainer) -> None:
    """Tells FSDP which modules become pieces of their own, and which weights stay whole.

    accelerate (1.15) takes what the base calls indivisible, where the launcher names nothing, and cuts the embeddings
    apart as well: it fails where they lie in one of those, as in BERT and ViT, and where a weight is shared by more
    modules than input and output embeddings, as in T5.

    Raises:
        InputError: The base does not say where its embeddings are.
    """
    if not trainer.is_fsdp_enabled:
        return
    plugin, base = trainer.accelerator.state.fsdp_plugin, trainer.model.get_base_model()
    apart = embeddings_of(base)
    # autocast computes as on one process; FSDP's own casts would round adapter, logits and gradients to 16 bits
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers_of(base, apart=apart)
    shared = shared_weights(base, apart=apart)
    if shared and plugin.ignored_modules is None:
        for weight in shared:
            weight.data = weight.data.to(trainer.args.device)  # where FSDP moves what it cuts
        plugin.ignored_modules = [nn.ParameterList(shared)]


def embeddings_of(base: transformers.PreTrainedModel) -> list[nn.Module]:
    """Input and output embeddings, as far as a base has them.

    Raises:
        InputError: It does not say where they are.
    """
    try:
        return [one for one in (base.get_input_embeddings(), base.get_output_embeddings()) if one is not None]
    except NotImplementedError as error:
        raise InputError(
            f"FSDP: accelerate (1.15) cannot cut {type(base).__name__}, which does not say where its embeddings are. "
            "Launch with launch/accelerate/ddp.yaml or zero3.yaml"
        ) from error


def layers_of(base: transformers.PreTrainedModel, *, apart: Sequence[nn.Module]) -> list[str]:
    """Classes of modules that a base calls indivisible and has, without those in which its embeddings lie."""
    named = set(base._no_split_modules or ())
    found = [module for module in base.modules() if type(module).__name__ in named]
    holding = {type(one).__name__ for one in found if any(inner is part for inner in one.modules() for part in apart)}
    return sorted({type(one).__name__ for one in found} - holding)


def shared_weights(base: nn.Module, *, apart: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Frozen weights that several modules share, and not input and output embeddings alone.

    Args:
        base: The base with its adapter.
        apart: Those embeddings.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in base.modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(weight, []).append(module)
    within = {id(inner) for one in apart for inner in one.modules()}
    return [
        weight
        for weight, modules in owners.items()
        if len(modules) > 1 and not weight.requires_grad and not all(id(one) in within for one in modules)
    ]
