"""The last layer computes the first token alone where the head reads no other, and everywhere else all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_ft.models.first_token import go_on_with_first_token
from tests.bases import make_base


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def model_of(folder: Path, auto_class: str = "AutoModelForSequenceClassification") -> Any:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    return getattr(transformers, auto_class).from_pretrained(folder, pad_token_id=0).eval()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch()).logits.square().sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_logits_and_gradients_stay_and_the_last_layer_has_one_token(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(make_base(tmp_path, kind))
    wanted, plain = gradients(model), model(**batch()).logits
    assert go_on_with_first_token(model, lambda: model(**batch())) is None
    widths, looked = [], []
    seen = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *others, **named: looked.append(query.shape[2]) or seen(query, *others, **named),
    )
    for name, module in model.named_modules():
        if name.endswith(("layer.1.intermediate", "layer.1.ffn")):
            module.register_forward_hook(lambda _, arguments, output: widths.append(arguments[0].shape[1]))
    torch.testing.assert_close(model(**batch()).logits, plain)
    found = gradients(model)
    assert set(widths) == {1}
    assert looked == [9, 1, 9, 1]
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, plain)
    assert widths[-1] == looked[-1] == 9  # evaluations are computed as ever


@pytest.mark.parametrize(
    ("kind", "auto_class"),
    [("bert", "AutoModelForTokenClassification"), ("bert", "AutoModelForQuestionAnswering"), ("bert", "AutoModel")],
)
def test_heads_that_say_something_of_each_token_keep_all_of_them(tmp_path: Path, kind: str, auto_class: str) -> None:
    model = model_of(make_base(tmp_path, kind), auto_class)
    assert go_on_with_first_token(model, lambda: model(**batch())) == "something is said of each token"
    assert next(iter(model(**batch()).values())).shape[:2] != (3, 1)


def test_a_base_of_another_kind_keeps_all_tokens(tmp_path: Path) -> None:
    model = model_of(make_base(tmp_path, "llama"))
    why = go_on_with_first_token(model, lambda: model(**batch()))
    assert why == "the base is not known as an encoder whose head may read the first token alone"


def test_a_head_that_reads_the_mean_keeps_all_tokens_and_the_model_is_as_it_was(tmp_path: Path) -> None:
    model = model_of(make_base(tmp_path, "bert"))

    def mean(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (arguments[0].mean(1, keepdim=True),)

    model.bert.pooler.register_forward_pre_hook(mean)
    plain = model(**batch()).logits
    assert go_on_with_first_token(model, lambda: model(**batch())) == "the head reads other tokens too"
    assert torch.equal(model(**batch()).logits, plain)
    assert model.bert.encoder.layer[-1].attention.self.config is model.config


def test_a_pass_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = model_of(make_base(tmp_path, "bert"))
    plain = model(**batch()).logits
    answers = iter([model(**batch())])
    with pytest.raises(StopIteration):
        go_on_with_first_token(model, lambda: next(answers))
    assert torch.equal(model(**batch()).logits, plain)


def test_in_16_bits_logits_differ_by_rounding(tmp_path: Path) -> None:
    model = model_of(make_base(tmp_path, "bert"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert go_on_with_first_token(model, lambda: model(**batch())) is None


def test_where_nothing_up_to_the_last_layer_is_trained_it_stays(tmp_path: Path) -> None:
    model = model_of(make_base(tmp_path, "bert"))
    model.bert.requires_grad_(False)
    assert go_on_with_first_token(model, lambda: model(**batch())) == "nothing is trained up to the last layer"


def test_a_first_token_that_sees_itself_alone_stays(tmp_path: Path) -> None:
    model = model_of(make_base(tmp_path, "bert"))
    model.bert.encoder.layer[-1].attention.self.is_causal = True
    assert go_on_with_first_token(model, lambda: model(**batch())) == "the first token sees itself alone"
