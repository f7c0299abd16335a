"""A quantised base trains, evaluates and trains again, and its head is never quantised."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ft.errors import ModelError
from lora_ft.models.precision import autocast_context
from lora_ft.models.quantization import guard_cpu_4bit, quantization_kind, quantized_modules
from lora_ft.models.size import base_size
from tests.bases import make_base
from tests.models.loading import CPU, CPU_BF16, adapt, batch, load

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP4 = {"load_in_4bit": True}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
ALL = pytest.mark.parametrize("settings", [NF4, FP4, DOUBLE, INT8], ids=["nf4", "fp4", "double", "int8"])


@pytest.fixture(scope="module", params=[("bert", 64), ("gpt2", 64), ("llama", 64), ("bert", 32)], ids=str)
def base_folder(request, tmp_path_factory) -> Path:
    kind, hidden = request.param
    return make_base(tmp_path_factory.mktemp(kind), kind, hidden=hidden)


def train_step(model, precision=CPU) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    with autocast_context(precision):
        model(**batch()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@ALL
@pytest.mark.parametrize("precision", [CPU, CPU_BF16], ids=["fp32", "bf16"])
def test_train_evaluate_train_gives_the_same_gradients(base_folder, settings, precision):
    torch.manual_seed(0)
    base = load(base_folder, quantization_config=settings, precision=precision)
    model = adapt(base)
    before = train_step(model, precision)
    model.eval()
    with torch.no_grad(), autocast_context(precision):
        assert torch.isfinite(model(**batch()).logits).all()
    after = train_step(model, precision)
    assert len(before) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, gradient in before.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, after[name]), name


@ALL
def test_head_is_never_quantised_and_the_rest_is(tiny_bert, settings):
    base = load(tiny_bert, quantization_config=settings)
    names = quantized_modules(base.model)
    assert len(names) == 12
    assert all(name.startswith("bert.encoder.") for name in names)
    assert base.head == ("classifier", "pooler")
    assert base.quantization == quantization_kind(settings)


def test_new_module_that_nobody_named_is_not_quantised(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "base")
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("pooler")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = load(folder, quantization_config=NF4, head=("classifier",))
    assert type(base.model.bert.pooler.dense) is torch.nn.Linear
    assert base.head == ("classifier", "pooler")
    assert torch.isfinite(base.model.bert.pooler.dense.weight).all()


def test_language_model_head_is_not_quantised(tiny_gpt2):
    base = load(tiny_gpt2, auto_class="AutoModelForCausalLM", head=(), config={}, quantization_config=NF4)
    assert type(base.model.lm_head) is torch.nn.Linear
    assert base.head == ()
    assert not base.new_head


def test_modules_named_in_the_recipe_are_skipped_too(tiny_bert):
    base = load(tiny_bert, quantization_config={**NF4, "llm_int8_skip_modules": ["query"]})
    names = quantized_modules(base.model)
    assert len(names) == 10
    assert not any("query" in name or "classifier" in name for name in names)


def test_quantised_base_answers_nearly_as_the_base(tmp_path):
    folder = make_base(tmp_path, hidden=64)
    answers = []
    for settings in (None, NF4, INT8):
        torch.manual_seed(0)
        model = load(folder, quantization_config=settings).model.eval()
        answers.append(model.bert(input_ids=batch()["input_ids"]).last_hidden_state.detach())
    plain, nf4, int8 = (answer.flatten() for answer in answers)
    assert 0.93 < torch.cosine_similarity(nf4, plain, dim=0) < 0.9999
    assert torch.cosine_similarity(int8, plain, dim=0) > 0.999


@ALL
def test_every_4bit_layer_is_guarded_with_and_without_adapters(tiny_bert, settings):
    from bitsandbytes.nn import Linear4bit

    base = load(tiny_bert, quantization_config=settings)
    model = adapt(base)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert len(layers) == guard_cpu_4bit(model) == (0 if settings is INT8 else 12)
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_guard_keeps_the_weight_as_it_was_where_the_cpu_would_repack(tmp_path):
    """Without the guard, evaluation turns the weight into a format without gradients, for good."""
    from bitsandbytes.nn import Linear4bit

    base = load(make_base(tmp_path, hidden=64), quantization_config=NF4)
    layer = base.model.bert.encoder.layer[0].output.dense
    assert isinstance(layer, Linear4bit)
    before = layer.weight.data.clone()
    layer.support_avx512bf16_for_cpu = True  # what bitsandbytes sets on such a CPU
    guard_cpu_4bit(base.model)
    base.model.eval()(**batch())
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert torch.equal(layer.weight.data, before)


def test_compute_type_follows_the_precision_unless_named(tiny_bert):
    def compute(**changes):
        return load(tiny_bert, **changes).model.bert.encoder.layer[0].output.dense.compute_dtype

    assert compute(quantization_config=NF4, precision=CPU_BF16) is torch.bfloat16
    assert compute(quantization_config=NF4, precision=CPU) is torch.float32
    named = {**NF4, "bnb_4bit_compute_dtype": "bfloat16"}
    assert compute(quantization_config=named, precision=CPU) is torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "kind"),
    [(None, None), ({}, None), (NF4, "nf4"), (FP4, "fp4"), (DOUBLE, "nf4"), (INT8, "int8")],
)
def test_kind_of_quantisation(settings, kind):
    assert quantization_kind(settings) == kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"bnb_4bit_quant_type": "nf4"},
            "no quantisation. Expected load_in_8bit: true, or load_in_4bit: true",
        ),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "nf4 or fp4"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "only one can be used"),
        ({**NF4, "bnb_4bit_compute_dtype": "bfloat17"}, "bfloat17"),
    ],
)
def test_impossible_settings_are_refused(tiny_bert, settings, message):
    with pytest.raises(ModelError, match=message):
        load(tiny_bert, quantization_config=settings)


def test_broken_bitsandbytes_is_an_error_of_ours(tiny_bert, monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "bitsandbytes":
            raise OSError("libcudart.so.12: cannot open")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ModelError, match=r"bitsandbytes cannot be used here \(libcudart.so.12"):
        load(tiny_bert, quantization_config=NF4)


def test_size_counts_every_weight_once_quantised_or_not(tmp_path):
    folder = make_base(tmp_path, hidden=64)
    plain = load(folder).model
    expected = sum(parameter.numel() for parameter in plain.parameters())
    assert (base_size(plain).parameters, base_size(plain).bytes) == (expected, 4 * expected)
    sizes = {str(q): base_size(load(folder, quantization_config=q).model) for q in (NF4, DOUBLE, INT8)}
    assert {size.parameters for size in sizes.values()} == {expected}
    linear = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    rest = 4 * (expected - linear)
    assert sizes[str(NF4)].bytes == rest + linear // 2 + 4 * linear // 64 + 16 * 4 * 12
    assert sizes[str(INT8)].bytes == rest + linear + 4 * 2 * (4 * 64 + 128 + 64)
    nested = 12 * (4 + 4 * 1 + 4 * 256)  # of each layer: offset, one scale of scales, their code book
    assert sizes[str(DOUBLE)].bytes == rest + linear // 2 + linear // 64 + 16 * 4 * 12 + nested


@ALL
@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2"])
def test_base_of_convolutions_cannot_be_quantised_and_says_why(tmp_path, kind, settings):
    folder = make_base(tmp_path, kind)
    with pytest.raises(ModelError, match=r"has no linear layers outside its head, .* Leave the section out"):
        load(folder, auto_class="AutoModelForImageClassification", quantization_config=settings)
