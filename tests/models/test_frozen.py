"""A frozen base stays as it is while an adapter is trained on it, in whatever mode the model around it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lora_ft.models.frozen import freeze
from tests.bases import make_base
from tests.families import FAMILIES, loss
from tests.models.loading import load

NORMED = [name for name, family in FAMILIES.items() if family.kind in ("resnet", "mobilenet_v2", "timm", "rt_detr")]


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("name", NORMED)
def test_running_statistics_do_not_move_in_training(name, family_bases):
    family = FAMILIES[name]
    base = load(family_bases(family), auto_class=family.auto_class, head=family.known, config=family.config)
    before = statistics(base.model)
    assert before
    for _ in range(2):
        base.model.train()
        loss(base.model, family.batch())
    for key, value in statistics(base.model).items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NORMED)
def test_answers_do_not_depend_on_the_other_rows_of_a_training_batch(name, family_bases):
    family = FAMILIES[name]
    model: Any = load(family_bases(family), auto_class=family.auto_class, head=family.known, config=family.config).model
    model.train()
    images = family.batch()["pixel_values"]
    with torch.no_grad():
        together, alone = model(pixel_values=images).logits[:1], model(pixel_values=images[:1]).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_norms_of_the_head_train_as_ever():
    model = nn.ModuleDict({"body": nn.BatchNorm1d(3), "head": nn.Sequential(nn.BatchNorm1d(3))})
    assert freeze(model, head={"head"}) == 1
    copied = copy.deepcopy(model).train()
    for module in (copied["body"], copied["head"]):
        module(torch.randn(8, 3) + 5)
    assert torch.equal(copied["body"].running_mean, torch.zeros(3))
    assert (copied["head"][0].running_mean > 0.1).all()


def test_norms_that_keep_no_statistics_are_left_alone():
    assert freeze(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(3)), head=()) == 0


@pytest.mark.parametrize("auto_class", ["AutoModelForCTC", "AutoModelForAudioClassification"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_nothing_is_kept_for_gradients_below_the_layers_that_an_adapter_can_train(tmp_path, kind, auto_class):
    config = {"vocab_size": 32} if auto_class == "AutoModelForCTC" else {"num_labels": 3}
    head = ("lm_head", "classifier", "projector")
    model = load(make_base(tmp_path, kind, hidden=16), auto_class=auto_class, head=head, config=config).model
    model.train()
    seen = []
    model.base_model.feature_extractor.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    model(torch.randn(1, 3_200))
    assert seen == [False]
