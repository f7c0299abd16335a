"""Adapters on convolutions: every one that peft can adapt, and plain words about the others."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from lora_ft.adapters.attach import attach
from lora_ft.adapters.convolutions import why_not
from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.method import build_config
from lora_ft.errors import InputError
from tests.adapters.test_families import LORA, adapt, answers, load, same, write
from tests.families import FAMILIES

METHODS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 4, "init_lora_weights": False},
    "ADALORA": {"total_step": 10, "target_r": 4, "init_lora_weights": False},
    "BOFT": {"boft_block_size": 4, "init_weights": False},
    "HIRA": {"r": 4, "init_weights": False},
    "HRA": {"r": 4, "init_weights": False},
    "IA3": {"feedforward_modules": [], "init_ia3_weights": False},
    "LOHA": {"r": 4, "init_weights": False},
    "LOKR": {"r": 4, "init_weights": False},
    "OFT": {"oft_block_size": 4, "r": 0, "init_weights": False},
}
LAYERS = {
    "plain": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "stride": lambda: nn.Conv2d(8, 8, 3, stride=2),
    "dilated": lambda: nn.Conv2d(8, 8, 3, dilation=2, padding=2),
    "grouped": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "1d": lambda: nn.Conv1d(8, 8, 3),
}


def works(layer: nn.Module, method: str) -> bool:
    """Whether peft adapts a convolution, and the answer keeps its shape."""
    model = nn.Sequential(layer)
    inputs = torch.randn(2, 8, *[9] * (layer.weight.dim() - 2))
    before = model(inputs)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method](target_modules=["0"], **METHODS[method])
    try:
        after = get_peft_model(model, config)(inputs)
    except (ValueError, RuntimeError, NotImplementedError, TypeError):
        return False
    return after.shape == before.shape and not torch.equal(after, before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_what_peft_cannot_adapt_is_known_before(kind, method):
    layer = LAYERS[kind]()
    config = build_config({"peft_type": method, **METHODS[method]}, task_type=None, head=(), total_steps=None)
    assert works(LAYERS[kind](), method) == (why_not(layer, "0", config) is None)


@pytest.mark.parametrize(("rank", "pattern", "adapted"), [(4, {}, False), (16, {}, True), (4, {"conv": 8}, True)])
def test_a_depthwise_convolution_needs_a_rank_that_its_groups_divide(rank, pattern, adapted):
    given = {"peft_type": "LORA", "r": rank, "rank_pattern": pattern}
    config = build_config(given, task_type=None, head=(), total_steps=None)
    assert (why_not(LAYERS["depthwise"](), "body.conv", config) is None) == adapted


def test_a_computed_weight_cannot_be_adapted():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    config = build_config(LORA, task_type=None, head=(), total_steps=None)
    assert why_not(layer, "conv", config) == "whose weight is computed (weight norm)"


def test_convolutions_left_out_are_counted_in_one_line(family_bases, caplog):
    family = FAMILIES["mobilenet-images"]
    base = load(family, family_bases(family))
    with caplog.at_level(logging.INFO, logger="lora_ft.adapters.targets"):
        attach(base.model, LORA, task_type=None, head=base.head)
    assert caplog.messages == [
        "all-conv: 35 of 52 convolutions get an adapter, without 17 depthwise ones, whose groups do not divide the"
        " rank (r = 4)"
    ]


def test_layers_to_transform_holds_for_convolutions_too(family_bases):
    family = FAMILIES["mobilenet-images"]
    base = load(family, family_bases(family))
    config = {**LORA, "target_modules": "all-conv", "layers_to_transform": [3], "layers_pattern": "layer"}
    model = attach(base.model, config, task_type=None, head=base.head)
    names = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(names) == 2 and all(".layer.3." in name for name in names)


def test_linear_layers_and_convolutions_together(family_bases):
    family = FAMILIES["detr-boxes"]
    base = load(family, family_bases(family))
    config = {**LORA, "target_modules": ["all-linear", "all-conv"]}
    model = attach(base.model, config, task_type=None, head=base.head)
    assert sum(name.endswith("lora_A") for name, _ in model.named_modules()) == family.linears + family.convolutions


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("resnet-images", {"target_modules": "all-linear"}, r"Expected names .*, or all-conv. There are: convolution"),
        ("resnet-images", {"target_modules": ["convolutoin"]}, r"Did you mean 'convolution'\?"),
        ("bert-tokens", {"target_modules": "all-conv"}, r"matches that peft can adapt. Expected .*, or all-linear"),
        (
            "wav2vec2-sounds",
            {"peft_type": "OFT", "r": 0, "oft_block_size": 4, "target_modules": "all-conv"},
            r"It left out 3 over one dimension, which peft's OFT does not know",
        ),
    ],
)
def test_targets_that_match_nothing_are_explained(family_bases, name, config, message):
    family = FAMILIES[name]
    base = load(family, family_bases(family))
    with pytest.raises(InputError, match=message):
        attach(base.model, {**LORA, **config} if "peft_type" not in config else config, task_type=None, head=base.head)


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "LORA", "r": 4, "use_dora": True},
        {"peft_type": "LOHA", "r": 4, "use_effective_conv2d": True},
        {"peft_type": "LOKR", "r": 4},
        {"peft_type": "OFT", "r": 0, "oft_block_size": 4},
        {"peft_type": "IA3"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
@pytest.mark.parametrize("name", ["resnet-images", "mobilenet-images"])
def test_methods_on_convolutions_come_back_as_they_were(family_bases, tmp_path, name, config):
    family = FAMILIES[name]
    folder = family_bases(family)
    model = adapt(family, folder, {**config, "target_modules": "all-conv"})
    then = answers(model, family)
    manifest = write(tmp_path / "adapter", model, family, folder)
    ours = attach_saved(load(family, folder, seed=8).model, tmp_path / "adapter", manifest)
    same(answers(ours, family), then)


def test_layers_of_detr_that_change_no_answer_get_no_adapter(family_bases):
    family = FAMILIES["detr-boxes"]
    base = load(family, family_bases(family))
    model = attach(base.model, LORA, task_type=None, head=base.head)
    names = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert not [name for name in names if "decoder.layers.0.self_attn" in name]
    assert [name for name in names if "decoder.layers.1.self_attn" in name]
