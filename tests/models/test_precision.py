"""The compute type follows the device and the user; casting frozen linears changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from lora_ft.errors import ModelError
from lora_ft.models.precision import Precision, autocast_context, cast_frozen_linears, plan_precision
from tests.bases import make_base
from tests.models.loading import CPU, CPU_BF16, adapt, batch, load


@pytest.fixture
def machine(monkeypatch):
    """Pretends that this machine has these devices; the border is torch."""

    def be(*, cuda_bf16: bool | None = None, mps: bool = False, cpu: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda_bf16 is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0 if cuda_bf16 is None else 2)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(cuda_bf16))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x", **dict.fromkeys(cpu, True)})

    return be


@pytest.mark.parametrize(
    ("hardware", "device", "dtype"),
    [
        ({"cuda_bf16": True}, "cuda", torch.bfloat16),
        ({"cuda_bf16": False, "mps": True}, "cuda", torch.float16),
        ({"mps": True, "cpu": ("avx512_bf16",)}, "mps", torch.float32),
        ({"cpu": ("avx512_bf16",)}, "cpu", torch.bfloat16),
        ({"cpu": ("amx_bf16",)}, "cpu", torch.bfloat16),
        ({"cpu": ("bf16",)}, "cpu", torch.bfloat16),
        ({"cpu": ("avx2",)}, "cpu", torch.float32),
    ],
)
def test_device_decides_where_nobody_asks(machine, hardware, device, dtype):
    machine(**hardware)
    assert plan_precision() == Precision(device, dtype, autocast=dtype is not torch.float32)


@pytest.mark.parametrize(
    ("wishes", "dtype"),
    [
        ({"bf16": False}, torch.float32),
        ({"fp16": False}, torch.float32),
        ({"dtype": "float32"}, torch.float32),
        ({"dtype": "float32", "bf16": True}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"fp16": True}, torch.float16),
        ({"fp16": True, "bf16": False}, torch.float16),
        ({"dtype": "float16", "bf16": False}, torch.float16),
        ({"bf16": True, "fp16": False}, torch.bfloat16),
    ],
)
def test_wishes_come_before_the_device(machine, wishes, dtype):
    machine(cuda_bf16=True)
    assert plan_precision(**wishes) == Precision("cuda", dtype, autocast=dtype is not torch.float32)


def test_emulated_bf16_is_given_but_said(machine, caplog):
    machine(cpu=())
    assert plan_precision(bf16=True) == CPU_BF16
    assert "cpu emulates it" in caplog.text


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"dtype": "half"}, "model.dtype = 'half': not a type of weights"),
        ({"bf16": True, "fp16": True}, "fp16 = true as well"),
        ({"bf16": False, "dtype": "bfloat16"}, "training_args.bf16 = false says otherwise"),
        ({"fp16": False, "dtype": "float16"}, "training_args.fp16 = false says otherwise"),
        ({"fp16": True}, "training_args.fp16 = true: float16 needs a GPU"),
        ({"dtype": "float16"}, "model.dtype = 'float16': float16 needs a GPU"),
        ({"device": "cuda"}, "device = 'cuda': this machine has none"),
        ({"device": "tpu7"}, "device = 'tpu7': not a device"),
    ],
)
def test_impossible_wishes_are_refused(machine, wishes, message):
    machine()
    with pytest.raises(ModelError, match=message):
        plan_precision(**wishes)


def test_missing_second_gpu_is_refused(machine):
    machine(cuda_bf16=True)
    assert plan_precision(device="cuda:1").device == "cuda:1"
    with pytest.raises(ModelError, match="2 CUDA devices"):
        plan_precision(device="cuda:2")


def test_autocast_only_for_16_bit():
    with autocast_context(CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast_context(CPU_BF16):
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def step(model, precision: Precision) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step."""
    model.train()
    with autocast_context(precision):
        loss = model(**batch()).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_casting_frozen_linears_changes_no_bit_of_loss_and_gradients(tmp_path, kind):
    folder = make_base(tmp_path, kind)
    results = []
    for cast in (False, True):
        torch.manual_seed(0)
        model = adapt(load(folder, precision=CPU_BF16))
        count = cast_frozen_linears(model, CPU_BF16) if cast else None
        results.append(step(model, CPU_BF16))
    (loss, gradients), (cast_loss, cast_gradients) = results
    assert count > 0
    assert torch.equal(loss, cast_loss)
    assert len(gradients) == len(cast_gradients) > 10
    for name, gradient in gradients.items():
        assert torch.equal(gradient, cast_gradients[name]), name


def test_evaluation_with_and_without_adapter_changes_no_bit(tiny_bert):
    logits = []
    for cast in (False, True):
        torch.manual_seed(0)
        model = adapt(load(tiny_bert, precision=CPU_BF16)).eval()
        if cast:
            cast_frozen_linears(model, CPU_BF16)
        with torch.no_grad(), autocast_context(CPU_BF16):
            with_adapter = model(**batch()).logits
            with model.disable_adapter():
                logits.append((with_adapter, model(**batch()).logits))
    assert torch.equal(logits[0][0], logits[1][0])
    assert torch.equal(logits[0][1], logits[1][1])
    assert not torch.equal(*logits[0])


def test_only_frozen_linears_of_the_base_are_cast(tiny_bert):
    model = adapt(load(tiny_bert, precision=CPU_BF16))
    model.add_adapter("idle", model.peft_config["default"])
    count = cast_frozen_linears(model, CPU_BF16)
    cast = {name for name, parameter in model.named_parameters() if parameter.dtype is torch.bfloat16}
    assert count == 12  # query, key, value, 3 dense in each of 2 layers
    assert len(cast) == 24
    assert all("base_layer" in name and "classifier" not in name and "pooler" not in name for name in cast)


def test_cast_is_done_once_and_not_without_autocast(tiny_bert):
    model = adapt(load(tiny_bert))
    assert cast_frozen_linears(model, CPU) == 0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert cast_frozen_linears(model, CPU_BF16) == 12
    assert cast_frozen_linears(model, CPU_BF16) == 0


def test_weight_tied_to_an_embedding_stays(tiny_gpt2):
    model = load(tiny_gpt2, auto_class="AutoModelForCausalLM", head=(), config={}, precision=CPU_BF16).model
    assert cast_frozen_linears(model, CPU_BF16) == 8
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.dtype is torch.float32


def test_layers_whose_adapter_reads_the_base_weight_stay(tiny_bert):
    model = adapt(load(tiny_bert, precision=CPU_BF16), use_dora=True)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert layers
    assert cast_frozen_linears(model, CPU_BF16) == 0


def test_layers_that_train_stay(tiny_bert: Path):
    model = load(tiny_bert, precision=CPU_BF16).model
    model.bert.encoder.layer[0].requires_grad_(True)
    cast_frozen_linears(model, CPU_BF16)
    assert {p.dtype for p in model.bert.encoder.layer[0].parameters()} == {torch.float32}
