"""LoRA layers that train by our own function give what peft's own layers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import BitsAndBytesConfig

from lora_ft.adapters.attach import attach
from lora_ft.adapters.lean_lora import LeanLinear, lean_layers
from lora_ft.adapters.lean_readers import Readers, active
from tests.adapters.build import HEADS, batch, load

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
QUANTIZED = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              llm_int8_skip_modules=["classifier", "bert.pooler", "score"]),
    "int8": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier", "bert.pooler", "score"]),
}  # fmt: skip


def adapted(
    base: Path, kind: str, *, readers: Readers | None, config: dict[str, Any], quantized: str | None = None
) -> Any:
    """An adapter whose B is not zero, so that all of it matters."""
    torch.manual_seed(0)
    arguments = {"quantization_config": QUANTIZED[quantized]} if quantized else {}
    model = attach(load(base, **arguments), config, task_type="SEQ_CLS", head=HEADS[kind], readers=readers).train()
    torch.manual_seed(1)
    for name, one in model.named_parameters():
        if "lora_B" in name:
            one.data.normal_(std=0.1)
    if readers is not None:
        with torch.no_grad(), readers.watching(model):
            model(**batch())
    return model


def readers(**changes: Any) -> Readers:
    return Readers(**{"byte_dropout": True, "room_bytes": 10**9, **changes})


def losses_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one pass over `batch`."""
    torch.manual_seed(2)
    loss = model(**batch(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss
    loss.backward()
    return float(loss), {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize(
    ("kind", "quantized"),
    [("bert", None), ("gpt2", None), ("llama", None), ("distilbert", None), ("bert", "nf4"), ("llama", "nf4"),
     ("bert", "int8")],
)  # fmt: skip
def test_losses_and_gradients_are_those_of_pefts_layers(
    bases: dict[str, Path], kind: str, quantized: str | None
) -> None:
    shared = readers()
    ours = losses_and_gradients(adapted(bases[kind], kind, readers=shared, config=LORA, quantized=quantized))
    pefts = losses_and_gradients(adapted(bases[kind], kind, readers=None, config=LORA, quantized=quantized))
    assert shared.layers
    assert bool(shared.groups) == (kind != "gpt2")  # GPT-2 has one layer for q, k and v
    torch.testing.assert_close(ours[0], pefts[0], rtol=1e-5, atol=1e-6)
    assert ours[1].keys() == pefts[1].keys()
    for name, gradient in pefts[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-3, atol=2e-6, msg=name)


def test_layers_that_read_the_same_tensor_are_computed_together(bases: dict[str, Path]) -> None:
    shared = readers()
    model = adapted(bases["llama"], "llama", readers=shared, config=LORA)
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    found = sorted(tuple(names[one] for one in group) for group in shared.groups.values())
    assert found == [("gate_proj", "up_proj")] * 2 + [("q_proj", "k_proj", "v_proj")] * 2


def test_a_layer_that_is_called_alone_later_is_computed_alone(bases: dict[str, Path]) -> None:
    shared = readers()
    adapted(bases["bert"], "bert", readers=shared, config=LORA)
    group = next(iter(shared.groups.values()))
    x = torch.randn(2, 3, group[0].in_features)
    expected = [one(x.clone()) for one in group]  # other tensors, so nobody shares
    for layer, output in zip(group, expected, strict=True):
        torch.testing.assert_close(layer(x), output)
    changed = x.clone()
    first = group[0](changed)
    changed.add_(1)  # in place: what was computed along with the first is of what was there before
    torch.testing.assert_close(group[1](changed), group[1](x + 1))
    torch.testing.assert_close(first, expected[0])


def test_dropout_is_on_in_training_and_off_in_evaluation(bases: dict[str, Path]) -> None:
    config = {**LORA, "lora_dropout": 0.5}
    model = adapted(bases["bert"], "bert", readers=readers(), config=config)
    plain = adapted(bases["bert"], "bert", readers=None, config=config)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch()).logits, plain.eval()(**batch()).logits, rtol=0, atol=0)
    model.train()
    first, second = (model(**batch()).logits for _ in range(2))
    assert not torch.equal(first, second)
    mean = torch.stack([model(**batch()).logits.detach() for _ in range(300)]).mean(0)
    wanted = torch.stack([plain.train()(**batch()).logits.detach() for _ in range(300)]).mean(0)
    torch.testing.assert_close(mean, wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "config", [{**LORA, "use_dora": True}, {**LORA, "lora_bias": True}, {**LORA, "lora_dropout": 0.1}]
)
def test_what_the_function_does_not_know_is_computed_by_peft(bases: dict[str, Path], config: dict[str, Any]) -> None:
    shared = readers(byte_dropout=False)
    ours = losses_and_gradients(adapted(bases["bert"], "bert", readers=shared, config=config))
    pefts = losses_and_gradients(adapted(bases["bert"], "bert", readers=None, config=config))
    assert ours[0] == pefts[0]
    assert all(torch.equal(ours[1][name], gradient) for name, gradient in pefts[1].items())


def test_under_autocast_the_loss_is_pefts_to_16_bits(bases: dict[str, Path]) -> None:
    models = [adapted(bases["bert"], "bert", readers=one, config=LORA) for one in (readers(), None)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, pefts = (losses_and_gradients(model)[0] for model in models)
    torch.testing.assert_close(ours, pefts, rtol=0.02, atol=0.02)


def test_with_activation_checkpointing_gradients_stay_the_same(bases: dict[str, Path]) -> None:
    plain = adapted(bases["bert"], "bert", readers=readers(), config={**LORA, "lora_dropout": 0.3})
    wanted = losses_and_gradients(plain)
    again = adapted(bases["bert"], "bert", readers=readers(), config={**LORA, "lora_dropout": 0.3})
    again.gradient_checkpointing_enable({"use_reentrant": False})
    found = losses_and_gradients(again)
    assert found[0] == wanted[0]
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_room_for_dequantised_weights_is_kept_to(bases: dict[str, Path]) -> None:
    kept = []
    for room_bytes in (0, 10_000, 10**9):
        own = readers(room_bytes=room_bytes)
        model = adapted(bases["bert"], "bert", readers=own, config=LORA, quantized="nf4")
        losses_and_gradients(model)
        weights = [one.kept for one in model.modules() if isinstance(one, LoraLayer) and one.kept is not None]
        kept.append(sum(one.numel() * one.element_size() for one in weights))
        assert own.kept_bytes == kept[-1]
        assert not own.draws_bytes, "nothing is dropped"
    assert kept[0] == 0 < kept[1] <= 10_000 < kept[2]


def test_nothing_of_it_is_in_what_is_saved(bases: dict[str, Path], tmp_path: Path) -> None:
    ours, pefts = (adapted(bases["bert"], "bert", readers=one, config=LORA) for one in (readers(), None))
    assert ours.state_dict().keys() == pefts.state_dict().keys()
    assert ours.peft_config["default"].to_dict() == pefts.peft_config["default"].to_dict()
    layers = [one for one in ours.modules() if isinstance(one, LeanLinear)]
    assert layers
    assert {active(one) for one in layers} == {"default"}
    ours.save_pretrained(tmp_path)
    assert "Lean" not in (tmp_path / "adapter_config.json").read_text()


class Reading(nn.Module):
    """Keys and values of what an encoder said, as each layer of a decoder makes its own."""

    def __init__(self) -> None:
        super().__init__()
        self.k_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.k_proj(x) + self.v_proj(x)


def test_layers_of_two_modules_are_not_computed_together_whatever_they_read() -> None:
    config, own = LoraConfig(target_modules=["k_proj", "v_proj"]), readers()
    with lean_layers(config, own):
        model: Any = get_peft_model(nn.Sequential(Reading(), Reading()), config)
    first, second = model.base_model.model
    x = torch.ones(2, 4)
    with own.watching(model):
        first(x)
        second(x)
    assert [len(group) for group in own.groups.values()] == [2, 2]
    assert list(own.groups) == [first.k_proj, second.k_proj]
