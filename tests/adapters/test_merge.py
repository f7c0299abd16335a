"""A base with an adapter folded in answers as the adapter does; what cannot be folded in is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lora_ft.adapters.attach import attach
from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.merge import merge_into
from lora_ft.errors import AdapterError
from tests.adapters.build import load, logits, trained, write
from tests.bases import make_base

LINEAR = {"target_modules": "all-linear"}
CASES: dict[str, dict[str, Any]] = {
    "LoRA": {"peft_type": "LORA", "r": 4},
    "DoRA": {"peft_type": "LORA", "r": 4, "use_dora": True},
    "rsLoRA": {"peft_type": "LORA", "r": 4, "use_rslora": True},
    "PiSSA": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa"},
    "biases": {"peft_type": "LORA", "r": 4, "bias": "lora_only"},
    "LoHa": {"peft_type": "LOHA"},
    "IA3": {"peft_type": "IA3"},
    "OFT": {"peft_type": "OFT", "oft_block_size": 4, "r": 0},
    "VeRA": {"peft_type": "VERA"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_merged_base_answers_as_the_adapter_that_was_loaded(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "adapter", trained(tiny_bert, {**LINEAR, **CASES[case]}), tiny_bert)
    model = attach_saved(load(tiny_bert), tmp_path / "adapter", manifest)
    wanted = logits(model)
    merged = merge_into(model)
    assert type(merged).__name__ == "BertForSequenceClassification"
    assert (logits(merged) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (logits(load(tiny_bert)) - wanted).abs().max() > 1e-2, "the adapter has an effect to be lost"
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (logits(again) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "virtual tokens are inputs"),
        ({"peft_type": "LILY", **LINEAR}, "not supported for Lily"),
    ],
)
def test_what_peft_cannot_merge_is_refused_with_the_reason(
    config: dict[str, Any], reason: str, tiny_bert: Path
) -> None:
    with pytest.raises(AdapterError, match=reason):
        merge_into(trained(tiny_bert, config))


def test_the_conv1d_of_gpt2_is_merged_turned_the_right_way(tiny_gpt2: Path) -> None:
    model = trained(tiny_gpt2, {"peft_type": "LORA", "r": 4, **LINEAR}, kind="gpt2")
    wanted = logits(model)
    merged = merge_into(model)
    assert (logits(merged) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("use_dora", [False, True])
def test_convolutions_are_merged(use_dora: bool, tmp_path: Path) -> None:
    base = transformers.AutoModelForImageClassification.from_pretrained(make_base(tmp_path / "base", "resnet")).eval()
    config = {"peft_type": "LORA", "r": 4, "target_modules": "all-conv", "use_dora": use_dora}
    model = attach(base, config, task_type=None, head=("classifier",))
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            torch.manual_seed(len(name))
            parameter.data += 0.1 * torch.randn_like(parameter)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        bare = model.get_base_model()
        wanted = model(pixel_values=pixels).logits
        merged = merge_into(model)
        assert merged is bare
        assert torch.allclose(merged(pixel_values=pixels).logits, wanted, atol=1e-5, rtol=1e-5)


def test_an_output_layer_that_shares_the_embedding_is_untied_and_the_embedding_stays(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    embedding = base.get_input_embeddings().weight.detach().clone()
    model = attach(base, {"peft_type": "LORA", "r": 4, "target_modules": ["lm_head"]}, task_type="CAUSAL_LM", head=())
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    wanted = logits(model)
    merged = merge_into(model)
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(again) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert torch.equal(again.get_input_embeddings().weight, embedding)


def test_into_a_16_bit_base_the_sum_is_rounded_once(tiny_bert: Path) -> None:
    model = attach(
        load(tiny_bert, dtype=torch.bfloat16), {"peft_type": "LORA", "r": 4, **LINEAR}, task_type=None, head=()
    )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    place = "bert.encoder.layer.1.output.dense"
    layer: Any = model.get_base_model().get_submodule(place)
    wanted = (layer.base_layer.weight.float() + layer.get_delta_weight("default").float()).bfloat16()
    merged = merge_into(model)
    assert torch.equal(merged.get_submodule(place).weight, wanted)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


def test_a_quantised_base_is_refused(tiny_bert: Path) -> None:
    quantized = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["classifier", "pooler"])
    base = load(tiny_bert, quantization_config=quantized)
    model = attach(base, {"peft_type": "LORA", "r": 4, **LINEAR}, task_type=None, head=())
    with pytest.raises(AdapterError, match=r"quantised .* rounds it away.*--quantization none"):
        merge_into(model)


def test_a_base_that_was_cast_for_autocast_is_refused(tiny_bert: Path) -> None:
    model = attach(load(tiny_bert), {"peft_type": "LORA", "r": 4, **LINEAR}, task_type=None, head=())
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(torch.bfloat16)
    with pytest.raises(AdapterError, match=r"cast to 16 bits.*Load it again"):
        merge_into(model)
