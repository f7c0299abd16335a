"""What vLLM and LoRAX can load: their rules as data, and all reasons why an adapter does not fit, without torch.

Source:
    vLLM, github.com/vllm-project/vllm: `vllm/lora/peft_helper.py` (docs of 2026, "latest": no modules_to_save, no DoRA,
    no bias; one r, one lora_alpha and use_rslora are read, rank_pattern and alpha_pattern are not),
    `vllm/config/lora.py` (v0.14: `max_lora_rank` is 1, 8, 16, 32, 64, 128, 256, 320 or 512), `vllm/lora/lora_model.py`
    (0306474: a tensor whose module is none of the model's linear layers ends the load),
    `docs/models/supported_models.md` (0046f77, column LoRA: GPT-2, GPT-NeoX, BLOOM and Falcon have none); issue 55545:
    use_rslora is ignored for experts.
    LoRAX, github.com/predibase/lorax: `server/lorax_server/adapters/lora.py` (03679f3: one scaling for all layers; a
    kind of layer that lacks the adapter in one layer is left out without a word; r is overwritten by the padded rank
    after the first kind of layer, so that the others are scaled wrongly unless the rank needs no padding),
    `server/lorax_server/utils/sgmv.py` (0e057f0: `pad_to_min_rank`, `MAX_RANK_CUSTOM`), `docs/models/adapters/lora.md`
    (24e4f22: the modules of each family; others are ignored with a warning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.adapters.export import LORAX, VLLM
from lora_ft.adapters.manifest import Manifest, TensorInfo
from lora_ft.adapters.tensors import head_tensors
from lora_ft.errors import AdapterError

TASKS = ("text-generation", "preference-tuning")
A, B = ".lora_A.weight", ".lora_B.weight"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LLAMA = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
PHI = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
PHI3 = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Server:
    """What a server loads.

    Attributes:
        name: As people write it.
        ranks: The ranks that it can be set to, ascending.
        modules: For each `model_type` the ends of the names of the modules that it adapts.
    """

    name: str
    ranks: tuple[int, ...]
    modules: Mapping[str, tuple[str, ...]]


SERVERS = {
    VLLM: Server(
        name="vLLM",
        ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        modules={
            **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite"), LLAMA),
            **dict.fromkeys(("cohere", "cohere2", "olmo2", "olmo3", "smollm3", "seed_oss"), LLAMA),
            "phi": PHI,
            "phi3": PHI3,
            "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
            "starcoder2": (*ATTENTION, "c_fc", "c_proj"),
            "gpt_bigcode": ("c_attn", "c_proj", "c_fc"),
            "nemotron": (*ATTENTION, "up_proj", "down_proj"),
        },
    ),
    LORAX: Server(
        name="LoRAX",
        ranks=(8, *range(16, 129, 16)),
        modules={
            **dict.fromkeys(("llama", "mistral", "qwen2", "cohere"), (*LLAMA, "lm_head")),
            "gemma": LLAMA,
            "mixtral": (*ATTENTION, "lm_head"),
            "phi": (*PHI, "lm_head"),
            "phi3": (*PHI3, "lm_head"),
            "gpt2": ("c_attn", "c_proj", "c_fc"),
            "bloom": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "lm_head"),
        },
    ),
}

UNDERSTOOD = (
    *(
        "base_model_name_or_path",
        "revision",
        "peft_type",
        "peft_version",
        "task_type",
        "inference_mode",
        "auto_mapping",
    ),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("modules_to_save", "use_dora", "bias"),
    *("megatron_core", "qalora_group_size"),  # on by default, and without effect alone
)
"""Keys of `adapter_config.json` that are judged below or folded into the tensors; any other one changes answers."""


def check_servable(
    server: str,
    manifest: Manifest,
    config: Mapping[str, Any],
    *,
    model_type: str | None,
    where: Path,
) -> None:
    """Refuses an adapter that a server cannot load, with all reasons at once.

    Args:
        server: `vllm` or `lorax`.
        manifest: Of the adapter; its tensors are read.
        config: Content of `adapter_config.json`.
        model_type: The `model_type` of the base's config.json, or None if the base could not be found.
        where: The adapter folder, for the message.

    Raises:
        AdapterError: There is a reason.
    """
    rules = SERVERS[server]
    faults = [*_task_faults(manifest), *_config_faults(config), *_tensor_faults(manifest.tensors, config)]
    faults += _module_faults(rules, manifest.tensors, model_type=model_type)
    rank = max((one.shape[0] for name, one in manifest.tensors.items() if name.endswith(A)), default=0)
    if rank > rules.ranks[-1]:
        faults.append(
            f"its rank {rank} is larger than {rules.ranks[-1]}, the largest that {rules.name} has kernels for"
        )
    if faults:
        raise AdapterError(
            f"{where}: {rules.name} cannot load this adapter:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
            + "\nUse --format safetensors or onnx, or train an adapter without that."
        )


def rank_for(server: str, rank: int) -> int:
    """The rank that an adapter is padded to with zeros.

    LoRAX scales wrongly where it has to pad itself (see above); vLLM takes any rank up to the one it is started with.

    Args:
        server: `vllm` or `lorax`.
        rank: The largest rank in the adapter.
    """
    return rank if server == VLLM else smallest_setting(server, rank)


def smallest_setting(server: str, rank: int) -> int:
    """The smallest of a server's ranks that holds an adapter.

    Args:
        server: `vllm` or `lorax`.
        rank: The rank of the adapter.
    """
    return next(one for one in SERVERS[server].ranks if one >= rank)


def _task_faults(manifest: Manifest) -> list[str]:
    if manifest.task in TASKS:
        return []
    return [f"its task is {manifest.task}; adapters are loaded for text generation alone"]


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    """What `adapter_config.json` turns on that they do not know."""
    faults = []
    if config.get("peft_type") != "LORA":
        return [f"peft_type = {config.get('peft_type')}: only LORA is known"]
    if config.get("use_dora"):
        faults.append("use_dora: DoRA is not supported")
    if config.get("bias", "none") != "none":
        faults.append(f"bias = {config['bias']!r}: biases are not supported")
    if config.get("modules_to_save"):
        faults.append(f"modules_to_save = {list(config['modules_to_save'])}: a head or embedding trained in full")
    faults += [f"{key}: not supported" for key in config if key not in UNDERSTOOD and config[key]]
    return faults


def _tensor_faults(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> list[str]:
    """Tensors that are no matrices A and B of a linear layer, but for those that the config explains."""
    heads = {name for module in config.get("modules_to_save") or () for name in head_tensors(tensors, module)}
    rest = {name: one for name, one in tensors.items() if name not in heads}
    embeddings = [name for name in rest if "lora_embedding_" in name]
    convolutions = [name for name, one in rest.items() if name.endswith((A, B)) and len(one.shape) > 2]
    faults = []
    if embeddings:
        faults.append(f"{len(embeddings)} tensors adapt an embedding (first: {embeddings[0]})")
    if convolutions:
        faults.append(f"{len(convolutions)} tensors adapt a convolution (first: {convolutions[0]})")
    known = {*embeddings, *(name for name in rest if name.endswith((A, B)))}
    strange = [name for name in rest if name not in known and not name.endswith(".lora_magnitude_vector")]
    if strange and config.get("peft_type") == "LORA":
        faults.append(f"{len(strange)} tensors are neither lora_A nor lora_B (first: {strange[0]})")
    return faults


def _module_faults(rules: Server, tensors: Mapping[str, TensorInfo], *, model_type: str | None) -> list[str]:
    """Adapted modules that a server would not find in its own model of this family."""
    ends = sorted({name.removesuffix(A).rpartition(".")[2] for name in tensors if name.endswith(A)})
    if model_type is None or not ends:
        return []
    allowed: Sequence[str] | None = rules.modules.get(model_type)
    if allowed is None:
        return [f"the base is a {model_type}; known with adapters are {', '.join(sorted(rules.modules))}"]
    unknown = [end for end in ends if end not in allowed]
    return [f"it adapts {', '.join(unknown)}; of a {model_type} only {', '.join(allowed)} can be"] if unknown else []
