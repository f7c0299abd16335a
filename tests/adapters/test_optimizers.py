"""peft's optimizers train the adapter and the head alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lora_ft.adapters.attach import attach
from lora_ft.adapters.optimizers import make_optimizer
from lora_ft.errors import InputError
from lora_ft.recipe.schema import OptimizerSection
from tests.adapters.build import HEADS, batch, load

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def build(base: Any, name: Any, config: dict[str, Any] = LORA) -> tuple[Any, Any]:
    model = attach(load(base), config, task_type="SEQ_CLS", head=HEADS["bert"])
    optimizer = make_optimizer(
        model,
        OptimizerSection(name=name, loraplus_lr_ratio=4.0),
        optimizer_class=torch.optim.AdamW,
        optimizer_kwargs={"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
        r=4,
        lora_alpha=8,
    )
    return model, optimizer


def moved_by(model: Any, optimizer: Any, *, steps: int = 3) -> set[str]:
    """Names of the parameters that some steps change."""
    model.train()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    for _ in range(steps):
        model(**batch(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}


def test_no_section_means_no_optimizer(tiny_bert):
    assert build(tiny_bert, None)[1] is None


def test_loraplus_trains_everything_that_trains_with_b_faster(tiny_bert):
    model, optimizer = build(tiny_bert, "loraplus")
    trainable = {name for name, one in model.named_parameters() if one.requires_grad}
    assert moved_by(model, optimizer) == trainable
    rates = {
        id(one): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for one in group["params"]
    }
    for name, one in model.named_parameters():
        if "lora_A" in name or name.endswith("modules_to_save.default.weight"):
            assert rates[id(one)] == (1e-2, 0.1), name
        elif "lora_B" in name:
            assert rates[id(one)] == (4e-2, 0.1), name
    assert all(group["betas"] == (0.9, 0.99) for group in optimizer.param_groups)


def test_lorafa_trains_b_and_the_head_and_leaves_a(tiny_bert):
    model, optimizer = build(tiny_bert, "lorafa")
    moved = moved_by(model, optimizer)
    expected = {name for name, _ in model.named_parameters() if "lora_B" in name or ".modules_to_save." in name}
    assert moved == expected
    assert not any(one.requires_grad for name, one in model.named_parameters() if "lora_A" in name)
    assert optimizer.param_groups[0]["lr"] == 1e-2 and optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["loraplus", "lorafa"])
def test_the_state_of_an_optimizer_comes_back(tiny_bert, name):
    model, optimizer = build(tiny_bert, name)
    moved_by(model, optimizer)
    other_model, other = build(tiny_bert, name)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (other_model, other)):
        torch.manual_seed(0)  # dropout
        moved_by(one, its, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["loraplus", "lorafa"])
def test_an_adapter_without_a_and_b_is_refused(tiny_bert, name):
    with pytest.raises(InputError, match=rf"optimizer\.name = '{name}': .*peft_type is 'IA3'"):
        build(tiny_bert, name, {"peft_type": "IA3", "target_modules": "all-linear"})


def test_lorafa_refuses_dora(tiny_bert):
    with pytest.raises(InputError, match="cannot train the magnitudes of DoRA"):
        build(tiny_bert, "lorafa", {**LORA, "use_dora": True})
