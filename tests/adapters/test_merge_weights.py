"""Adapters combined by peft: which methods are exact, how heads are averaged, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lora_ft.adapters.merge_plan import DENSITY, METHODS, Plan, Source, prunes, read_sources
from lora_ft.adapters.merge_weights import (
    Sources,
    answering,
    attach_combined,
    attach_sources,
    average_heads,
    combined,
    true_difference,
)
from tests.adapters.build import LABELS, load, logits, trained, write

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}
Make = Callable[..., list[Source]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Make:
    """Writes adapters with these configs, each from another start."""

    def make_sources(*configs: dict[str, Any]) -> list[Source]:
        root = tmp_path_factory.mktemp("sources")
        for index, config in enumerate(configs):
            torch.manual_seed(10 + index)
            model = trained(tiny_bert, {**PLAIN, **config}, seed=20 + index)
            write(root / f"run{index}" / "adapter", model, tiny_bert)
        return read_sources([root / f"run{index}" for index in range(len(configs))])

    return make_sources


@pytest.fixture(scope="module")
def three(make: Make) -> list[Source]:
    return make({}, {}, {})


def attached(base: Path, sources: list[Source]) -> Sources:
    return attach_sources(load(base), sources, orders=[None] * len(sources), labelled=())


def plan(method: str, *weights: float, seed: int = 0, rank: int | None = None) -> Plan:
    return Plan(method, weights, DENSITY if prunes(method) else None, seed, rank)


def test_each_adapter_answers_on_the_shared_base_as_it_does_alone(three: list[Source], tiny_bert: Path) -> None:
    sources = attached(tiny_bert, three)
    for index, source in enumerate(three):
        alone = PeftModel.from_pretrained(load(tiny_bert), str(source.folder)).eval()
        with answering(sources, index) as model:
            assert torch.equal(logits(model), logits(alone))


def test_cat_is_the_weighted_sum_of_the_deltas_and_linear_is_not(three: list[Source], tiny_bert: Path) -> None:
    sources = attached(tiny_bert, three)
    assert true_difference(sources, plan("cat", 0.5, 0.3, 0.2)) < 1e-6
    assert true_difference(sources, plan("svd", 0.5, 0.3, 0.2, rank=12)) < 1e-5
    assert true_difference(sources, plan("svd", 0.5, 0.3, 0.2)) > 0.05
    assert true_difference(sources, plan("linear", 0.5, 0.3, 0.2)) > 0.5


@pytest.mark.parametrize(
    "configs",
    [
        pytest.param([{"r": 2}, {"r": 8, "lora_alpha": 3}], id="ranks and alphas"),
        pytest.param([{"use_rslora": True}, {"r": 8, "use_rslora": True}], id="rsLoRA"),
        pytest.param([{"use_rslora": True}, {}], id="rsLoRA and LoRA"),
        pytest.param([{"target_modules": ["query"]}, {"target_modules": ["value", "key"]}], id="targets"),
        pytest.param([{"target_modules": r".*\.query"}, {"target_modules": ["value"]}], id="a pattern of targets"),
        pytest.param([{"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}}, {}], id="patterns"),
        pytest.param([{"layers_to_transform": [0]}, {"layers_to_transform": [1]}], id="layers"),
    ],
)
def test_cat_is_exact_and_loads_for_adapters_that_differ(
    configs: list[dict[str, Any]], make: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    sources = attached(tiny_bert, make(*configs))
    how = plan("cat", 0.7, 0.6)
    assert true_difference(sources, how) < 1e-6
    with combined(sources, how) as (model, new):
        wanted = logits(model)
    final = attach_combined(sources, new)
    assert (logits(final) - wanted).abs().max() < 1e-5
    write(tmp_path / "merged", final, tiny_bert)
    loaded = PeftModel.from_pretrained(load(tiny_bert), str(tmp_path / "merged")).eval()
    assert (logits(loaded) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_loads_in_plain_peft_and_answers_as_it_was_measured(
    method: str, three: list[Source], tiny_bert: Path, tmp_path: Path
) -> None:
    sources = attached(tiny_bert, three)
    with combined(sources, plan(method, 0.5, 0.3, 0.2)) as (model, new):
        wanted = logits(model)
    write(tmp_path / "merged", attach_combined(sources, new), tiny_bert)
    loaded = PeftModel.from_pretrained(load(tiny_bert), str(tmp_path / "merged")).eval()
    assert (logits(loaded) - wanted).abs().max() < 1e-5


def test_an_svd_of_a_rank_that_the_layer_has_not_still_loads(
    three: list[Source], tiny_bert: Path, tmp_path: Path
) -> None:
    sources = attached(tiny_bert, three)
    with combined(sources, plan("svd", 1, 1, 1, rank=40)) as (model, new):  # the layers are 32 wide
        wanted = logits(model)
    write(tmp_path / "merged", attach_combined(sources, new), tiny_bert)
    loaded = PeftModel.from_pretrained(load(tiny_bert), str(tmp_path / "merged")).eval()
    assert (logits(loaded) - wanted).abs().max() < 1e-5


def test_dare_follows_its_seed_and_leaves_the_global_generator_alone(three: list[Source], tiny_bert: Path) -> None:
    sources = attached(tiny_bert, three)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = []
    for seed in (1, 1, 2):
        with combined(sources, plan("dare_linear", 1, 1, 1, seed=seed)) as (model, _):
            found.append(logits(model))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_adapter_of_weight_0_has_no_say_and_takes_no_rank(three: list[Source], tiny_bert: Path) -> None:
    sources = attached(tiny_bert, three)
    with combined(sources, plan("ties", 0.5, 0.5, 0.0)) as (model, new):
        with_zero = logits(model)
    assert new.config.r == 4
    two = attached(tiny_bert, three[:2])
    with combined(two, plan("ties", 0.5, 0.5)) as (model, _):
        assert torch.equal(logits(model), with_zero)
    with combined(sources, plan("cat", 0.0, 1.0, 0.0)) as (model, new):
        single = logits(model)
    assert new.config.r == 4
    with answering(sources, 1) as model:
        assert (logits(model) - single).abs().max() < 1e-5


def test_a_combination_leaves_no_trace(three: list[Source], tiny_bert: Path) -> None:
    sources = attached(tiny_bert, three)
    before = {name: value.clone() for name, value in sources.model.state_dict().items()}
    for method in ("cat", "ties_svd"):
        with combined(sources, plan(method, 0.5, 0.3, 0.2)):
            pass
    after = sources.model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_heads_are_averaged_by_the_weights_with_labels_matched_by_name(
    make: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    first, second = make({}, {})
    order = [2, 0, 1]  # where the labels of the first lie in the second
    turned = attach_sources(load(tiny_bert), [first, second], orders=[None, order], labelled=["classifier"])
    name = "base_model.model.classifier.weight"
    ours, theirs = (load_file(one.folder / "adapter_model.safetensors")[name] for one in (first, second))
    with combined(turned, plan("cat", 3.0, 1.0)) as (_, new):
        assert torch.allclose(new.tensors[name], 0.75 * ours + 0.25 * theirs[order])
    pooler = "base_model.model.bert.pooler.dense.weight"
    straight = attached(tiny_bert, [first, second])
    with combined(straight, plan("cat", 3.0, 1.0)) as (_, plain):
        assert torch.equal(plain.tensors[pooler], new.tensors[pooler]), "only the rows of labels are sorted"
    assert len(LABELS) == ours.shape[0]


def test_averaged_heads_do_not_grow_with_the_sum_of_the_weights() -> None:
    heads = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}]
    assert torch.equal(average_heads(heads, (1.0, 1.0))["w"], torch.tensor([2.0, 4.0]))
    assert torch.equal(average_heads(heads, (0.5, 0.5))["w"], torch.tensor([2.0, 4.0]))
