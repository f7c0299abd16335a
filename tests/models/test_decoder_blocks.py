"""RMSNorms and SwiGLU blocks are ours where they say the same, wherever gradients are made, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from lora_ft.models.decoder_blocks import RMS_NORM, SWIGLU, use_decoder_blocks
from lora_ft.ops import rms_norm, swiglu

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
         "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}  # fmt: skip
BOTH = (RMS_NORM, SWIGLU)
IDS = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def decoder(family: str = "Llama", **changes: Any) -> Any:
    """A random decoder whose norms have weights of their own, all frozen but its embeddings."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.normal_()
    model.get_input_embeddings().requires_grad_(True)
    return model


def taken(model: Any, kinds: tuple[str, ...] = BOTH) -> dict[str, int]:
    return use_decoder_blocks(model, lambda: model(IDS), kinds=kinds)


def gradient(model: Any) -> torch.Tensor:
    model.zero_grad()
    model(IDS).logits.square().sum().backward()
    return model.get_input_embeddings().weight.grad.clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("Llama", (5, 2)), ("Mistral", (5, 2)), ("Mixtral", (5, 0)), ("Qwen2", (5, 2)), ("Qwen3", (9, 2)),
        ("SmolLM3", (5, 2)), ("Phi3", (5, 0)), ("Granite", (5, 2)), ("Gemma", (5, 0)), ("Gemma2", (9, 0)),
        ("Olmo2", (0, 0)), ("GPT2", (0, 0)),
    ],
)  # fmt: skip
def test_known_blocks_are_taken_and_logits_stay_to_the_last_bit(family: str, counts: tuple[int, int]) -> None:
    model = decoder(family)
    wanted, right = model(IDS).logits, gradient(model)
    assert taken(model) == dict(zip(BOTH, counts, strict=True))
    assert torch.equal(model(IDS).logits, wanted)
    assert (gradient(model) - right).abs().max() <= 1e-4 * right.abs().max()
    assert taken(model) == dict.fromkeys(BOTH, 0), "what is wrapped is not wrapped again"


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("native", [True, False])
def test_in_16_bits_too(family: str, native: bool) -> None:
    model = decoder(family)
    model.model.norm.weight.data[0] = 300.0  # beside which the other values are small
    model = model.to(torch.bfloat16) if native else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not native):
        wanted, right = model(IDS).logits, gradient(model)
        assert taken(model) == {RMS_NORM: 5 if family == "Llama" else 9, SWIGLU: 2 if family == "Llama" else 0}
        assert torch.equal(model(IDS).logits, wanted)
        assert (gradient(model) - right).abs().max() <= 0.05 * right.abs().max()


def test_with_adapters_and_layers_that_are_computed_again_gradients_stay() -> None:
    found = []
    for kinds in ((), BOTH):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(decoder(), config).eval()
        taken(model, kinds)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(IDS).logits.square().sum().backward()
        found.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    plain, ours = found
    assert plain.keys() == ours.keys()
    for name, gradient in plain.items():
        assert (ours[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


def test_ours_compute_where_gradients_are_made_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module, name in ((rms_norm, "_RmsNorm"), (swiglu, "_Swiglu")):
        own = getattr(module, name).forward

        def forward(*arguments: Any, own: Any = own, name: str = name) -> Any:
            calls.append(name)
            return own(*arguments)

        monkeypatch.setattr(getattr(module, name), "forward", staticmethod(forward))
    model = decoder()
    taken(model)
    calls.clear()
    with torch.no_grad():
        model(IDS)
    assert not calls
    model(IDS)
    assert (calls.count("_RmsNorm"), calls.count("_Swiglu")) == (5, 2)


def test_what_is_named_off_and_what_learns_stays_as_it_is() -> None:
    assert taken(decoder(), (RMS_NORM,)) == {RMS_NORM: 5}
    assert taken(decoder(), ()) == {}
    model = decoder()
    model.model.norm.weight.requires_grad_(True)
    assert taken(model) == {RMS_NORM: 4, SWIGLU: 2}


def test_a_class_that_says_something_else_one_day_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, normed = LlamaMLP.forward, LlamaRMSNorm.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, x).clamp(-1e-3, 1e-3))
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, x: normed(self, x) + 1e-6)
    model = decoder()
    wanted = model(IDS).logits
    assert taken(model) == {RMS_NORM: 0, SWIGLU: 0}
    assert torch.equal(model(IDS).logits, wanted)


def test_a_faster_forward_of_somebody_else_stays() -> None:
    model = decoder()
    theirs = model.model.norm.forward
    model.model.norm.forward = theirs  # as Liger and the kernels of the hub do
    assert taken(model) == {RMS_NORM: 4, SWIGLU: 2}
    assert model.model.norm.forward is theirs


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model = decoder()

    def fail() -> None:
        model(IDS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use_decoder_blocks(model, fail, kinds=BOTH)
    assert not any("forward" in vars(one) for one in model.modules())
    assert not any(one._forward_hooks for one in model.modules())


def test_a_model_can_still_be_copied_and_its_copy_is_its_own() -> None:
    model = decoder()
    taken(model)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.model.norm.weight)
    assert not other(IDS).logits.any()
    assert model(IDS).logits.any()
