"""Layers below the lowest adapter are found, compute nothing where their output is given, and stay as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from lora_ft.models.prefix import Prefix, find_prefix, passing_over, reach, run_prefix
from tests.bases import make_base

LAYERS, TOP = 4, [2, 3]
TARGETS = {
    "bert": ["query", "output.dense"],
    "distilbert": ["q_lin", "lin2"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "down_proj"],
}


@pytest.fixture(scope="module", params=TARGETS)
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = make_base(tmp_path_factory.mktemp(request.param), request.param, layers=LAYERS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    model.config.pad_token_id = 0
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=4,
            target_modules=TARGETS[request.param],
            layers_to_transform=TOP,
            init_lora_weights=False,
            task_type="SEQ_CLS",
        ),
    ).eval()


def batch(lengths: tuple[int, ...] = (9, 4, 6)) -> dict[str, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 40, mask.shape, generator=torch.Generator().manual_seed(len(lengths)))
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def prefix_of(model: nn.Module) -> Prefix:
    found = find_prefix(model)
    assert found is not None
    return found


@contextmanager
def calls_of(layers: nn.ModuleList) -> Iterator[Counter[int]]:
    seen: Counter[int] = Counter()
    hooks = [
        layer.register_forward_pre_hook(lambda *_, number=number: seen.update([number]))
        for number, layer in enumerate(layers)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def test_the_layers_below_are_found_and_have_no_graph_today(adapted: Any) -> None:
    prefix = prefix_of(adapted)
    assert (prefix.count, len(prefix.layers)) == (2, LAYERS)
    adapted.train()
    reached = reach(adapted, prefix, lambda: adapted(**batch()))
    adapted.eval()
    assert reached.order == (0, 1)
    assert reached.hidden.shape[:2] == (3, 9)
    assert not reached.hidden.requires_grad
    below = [name for name in reached.called if name.startswith(prefix.name + ".")]
    assert {name.removeprefix(prefix.name + ".").partition(".")[0] for name in below} == {"0", "1"}


def test_layers_that_are_passed_over_compute_nothing_and_the_answer_and_gradients_stay_the_same(adapted: Any) -> None:
    prefix, given = prefix_of(adapted), batch()
    trained = [one for one in adapted.parameters() if one.requires_grad]
    whole = adapted(**given).logits
    expected = torch.autograd.grad(whole.sum(), trained, allow_unused=True)
    hidden = run_prefix(prefix, lambda: adapted(**given)) * given["attention_mask"][..., None]
    with calls_of(prefix.layers) as calls, passing_over(prefix, hidden):
        found = adapted(**given).logits
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)
    assert calls == {2: 1, 3: 1}
    for one, other in zip(torch.autograd.grad(found.sum(), trained, allow_unused=True), expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_second_pass_and_one_of_another_shape_compute_all_layers(adapted: Any) -> None:
    prefix, given, other = prefix_of(adapted), batch(), batch((5, 2))
    hidden = run_prefix(prefix, lambda: adapted(**given))
    with passing_over(prefix, torch.zeros_like(hidden)):
        wrong = adapted(**given).logits
        again = adapted(**given).logits
    with passing_over(prefix, torch.zeros_like(hidden)):
        another = adapted(**other).logits
    assert not torch.allclose(wrong, adapted(**given).logits, atol=1e-3)
    assert torch.equal(again, adapted(**given).logits)
    assert torch.equal(another, adapted(**other).logits)


def test_all_is_put_back_also_after_an_error(adapted: Any) -> None:
    prefix, names = prefix_of(adapted), [name for name, _ in adapted.named_modules()]
    state = list(adapted.state_dict())
    with pytest.raises(ZeroDivisionError), passing_over(prefix, torch.zeros(1, 1, 1)):
        raise ZeroDivisionError
    run_prefix(prefix, lambda: adapted(**batch()))
    assert [name for name, _ in adapted.named_modules()] == names
    assert list(adapted.state_dict()) == state


def test_an_adapter_in_the_lowest_layer_leaves_nothing_below(tiny_bert: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    everywhere = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    assert find_prefix(everywhere) is None


def test_a_list_within_layers_is_no_list_of_layers() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))

    model = nn.Sequential()
    model.layers = nn.ModuleList(Layer() for _ in range(3))
    model.requires_grad_(False)
    model.layers[1].experts[0].weight.requires_grad_(True)
    found = prefix_of(model)
    assert (found.name, found.count, len(found.layers)) == ("layers", 1, 3)


def test_where_only_a_head_is_trained_all_layers_are_below(tiny_bert: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.bert.requires_grad_(False)
    assert prefix_of(model).count == 2
