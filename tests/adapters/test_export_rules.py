"""What servers cannot load is refused with all reasons; what they would misread is folded in with equal answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file

from lora_ft.adapters.attach import attach
from lora_ft.adapters.export_rules import SERVERS, check_servable, rank_for, smallest_setting
from lora_ft.adapters.export_served import ServedAdapter, served_adapter
from lora_ft.adapters.manifest import Manifest, TensorInfo
from lora_ft.errors import AdapterError
from tests.bases import make_base

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "down_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    "rslora and patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 9}},
    "some layers": {"layers_to_transform": [1]},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "llama", "llama", auto_class="AutoModelForCausalLM")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "gpt2", "gpt2", auto_class="AutoModelForCausalLM")


def load(base: Path) -> Any:
    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(base).eval()


def adapted(base: Path, **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    model = attach(load(base), {**PLAIN, **changes}, task_type="CAUSAL_LM", head=()).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 29).reshape(3, 8)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def write(served: ServedAdapter, folder: Path) -> Path:
    folder.mkdir()
    save_file(served.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(served.config))
    return folder


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_peft_answers_equally_with_the_exported_folder(
    server: str, variant: str, llama: Path, tmp_path: Path
) -> None:
    model = adapted(llama, **VARIANTS[variant])
    served = served_adapter(model, server=server, base_name=str(llama))
    folder = write(served, tmp_path / "served")
    plain = PeftModel.from_pretrained(load(llama), str(folder)).eval()
    ours, bare = logits(plain), logits(load(llama))
    assert (ours - bare).abs().max() > 0.1, "the adapter has an effect"
    torch.testing.assert_close(ours, logits(model), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_servers_read_is_all_that_there_is(server: str, variant: str, llama: Path) -> None:
    """As they compute it: one r and one lora_alpha for all layers, nothing else of the config."""
    model = adapted(llama, **VARIANTS[variant])
    served = served_adapter(model, server=server, base_name=str(llama))
    rank, alpha = served.config["r"], served.config["lora_alpha"]
    assert not {"rank_pattern", "alpha_pattern", "use_rslora", "layers_to_transform"} & set(served.config)
    layers = {name: layer for name, layer in model.named_modules() if name + ".lora_A.weight" in served.tensors}
    for name, layer in layers.items():
        ours = served.tensors[name + ".lora_B.weight"] @ served.tensors[name + ".lora_A.weight"] * (alpha / rank)
        assert served.tensors[name + ".lora_A.weight"].shape[0] == rank
        if "default" in vars(layer).get("scaling", {}):
            torch.testing.assert_close(ours, layer.get_delta_weight("default"), atol=1e-7, rtol=1e-5)
        else:
            assert not ours.any()
    assert served.difference < 1e-6
    kinds = {name.rpartition(".")[2] for name in layers}
    assert server != "lorax" or len(layers) == 2 * len(kinds) == 14, "LoRAX wants every layer of a kind"
    assert server != "lorax" or (rank == 8 or rank % 16 == 0)


def test_a_plain_adapter_of_a_fitting_rank_is_left_as_it_is(llama: Path) -> None:
    model = adapted(llama, r=8)
    served = served_adapter(model, server="vllm", base_name="base")
    assert served.changes == ()
    assert (served.difference, served.rank, served.config["lora_alpha"]) == (0.0, 8, 8)
    assert served.config["target_modules"] == sorted(SERVERS["vllm"].modules["llama"])
    loose = served_adapter(adapted(llama, target_modules=["layers.0.mlp.up_proj"]), server="vllm", base_name="base")
    assert loose.config["target_modules"] == ["model.layers.0.mlp.up_proj"]


def test_changes_are_told(llama: Path) -> None:
    served = served_adapter(adapted(llama, **VARIANTS["patterns"]), server="lorax", base_name="base")
    assert served.changes == (
        "14 layers of rank 2, 4, 6 were padded with zeros to rank 8",
        "the scaling of each layer was multiplied into its lora_B, lora_alpha is r",
    )
    some = served_adapter(adapted(llama, r=8, **VARIANTS["some layers"]), server="lorax", base_name="base")
    assert some.changes == ("7 layers without adapter got one of zeros: LoRAX wants all of a kind",)


def test_gpt2_goes_to_lorax_and_not_to_vllm(gpt2: Path, tmp_path: Path) -> None:
    model = adapted(gpt2)
    served = served_adapter(model, server="lorax", base_name=str(gpt2))
    plain = PeftModel.from_pretrained(load(gpt2), str(write(served, tmp_path / "served"))).eval()
    torch.testing.assert_close(logits(plain), logits(model), atol=2e-6, rtol=1e-5)
    manifest = described(model, served.tensors)
    check_servable("lorax", manifest, served.config, model_type="gpt2", where=tmp_path)
    with pytest.raises(AdapterError, match="the base is a gpt2; known with adapters are cohere, "):
        check_servable("vllm", manifest, served.config, model_type="gpt2", where=tmp_path)


def described(model: PeftModel, tensors: Mapping[str, torch.Tensor], **changes: Any) -> Manifest:
    infos = {name: TensorInfo(shape=tuple(one.shape), dtype="F32") for name, one in tensors.items()}
    facts = {"task": "text-generation", "head": (), "labels": (), "tensors": infos, **changes}
    return Manifest(**{**FACTS, **facts, "peft_type": "LORA"})


FACTS: dict[str, Any] = {
    "problem_type": "causal", "base": None, "new_head": False, "versions": {}, "seed": 0, "metrics": {},
    "learned": True, "settings": {}, "precision": "float32", "quantization": None, "probe": None,
    "created": "", "run": {},
}  # fmt: skip


def test_all_reasons_come_at_once(tmp_path: Path) -> None:
    prefix = "base_model.model.model"
    tensors = {
        f"{prefix}.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(600, 8),
        f"{prefix}.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(8, 600),
        f"{prefix}.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.zeros(8),
        f"{prefix}.layers.0.router.lora_A.weight": torch.zeros(2, 8),
        f"{prefix}.conv.lora_A.weight": torch.zeros(2, 8, 3, 3),
        f"{prefix}.embed_tokens.lora_embedding_A": torch.zeros(2, 8),
        f"{prefix}.norm.ia3_l": torch.zeros(8),
        "base_model.model.score.weight": torch.zeros(3, 8),
    }
    config = {
        "peft_type": "LORA", "use_dora": True, "bias": "lora_only", "modules_to_save": ["score"],
        "layer_replication": [1], "megatron_core": "megatron.core",
    }  # fmt: skip
    with pytest.raises(AdapterError) as refused:
        check_servable(
            "vllm", described(None, tensors, task="text-classification"), config, model_type="llama", where=tmp_path
        )
    lines = [line.removeprefix("  - ") for line in str(refused.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "its task is text-classification; adapters are loaded for text generation alone",
        "use_dora: DoRA is not supported",
        "bias = 'lora_only': biases are not supported",
        "modules_to_save = ['score']: a head or embedding trained in full",
        "layer_replication: not supported",
        f"1 tensors adapt an embedding (first: {prefix}.embed_tokens.lora_embedding_A)",
        f"1 tensors adapt a convolution (first: {prefix}.conv.lora_A.weight)",
        f"1 tensors are neither lora_A nor lora_B (first: {prefix}.norm.ia3_l)",
        "it adapts conv, router; of a llama only q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj can be",
        "its rank 600 is larger than 512, the largest that vLLM has kernels for",
    ]
    with pytest.raises(AdapterError, match="peft_type = IA3: only LORA is known"):
        check_servable("lorax", described(None, {}), {"peft_type": "IA3"}, model_type=None, where=tmp_path)


def test_ranks_are_those_that_the_servers_have() -> None:
    assert [rank_for("lorax", rank) for rank in (1, 8, 9, 16, 17, 128)] == [8, 8, 16, 16, 32, 128]
    assert [rank_for("vllm", rank) for rank in (1, 5, 300)] == [1, 5, 300]
    assert [smallest_setting("vllm", rank) for rank in (1, 2, 8, 17, 300, 512)] == [1, 8, 8, 32, 320, 512]
