"""Layers that are computed again: as many as a limit asks for, none below the lowest adapter, the same gradients."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lora_ft.train.activations import Account, Measuring, Storages, compute_again, layers_of
from lora_ft.train.run import RunOptions, TrainResult, train
from tests.bases import make_base
from tests.toy import read, write_recipe

LAYERS = 4
TOP = r".*layer\.[23]\..*(query|key|value|dense)"
SHORT = {"num_train_epochs": 1, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "epoch"}


@pytest.fixture(scope="module")
def deep_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "bert", layers=LAYERS)


def adapted(base: Path, *, targets: str | list[str]) -> Any:
    """An adapted encoder in training mode, with the dropouts of its base."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, attn_implementation="sdpa")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=targets, lora_dropout=0.1, init_lora_weights=False
    )
    return peft.get_peft_model(model, config).train()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (6, 24), generator=generator)
    mask = torch.ones_like(ids)
    mask[:3, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1] * 3)}


def account_of(model: Any) -> Account:
    measuring = Measuring(model, layers_of(model))
    with measuring.running():
        model(**batch())
    return measuring.account


def gradients(model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    model.zero_grad()
    model(**batch()).loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_gradients_are_the_same_to_the_last_bit_whatever_is_computed_again(deep_bert: Path) -> None:
    model = adapted(deep_bert, targets="all-linear")
    plain = gradients(model)
    assert len(plain) == LAYERS * 6 * 2 + 4, "of every adapter, of pooler and classifier"
    for again in ([0], [1, 3], range(LAYERS)):
        compute_again(layers_of(model), again)
        found = gradients(model)
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], one) for name, one in plain.items()), again


def test_what_is_kept_is_what_was_foretold(deep_bert: Path) -> None:
    model = adapted(deep_bert, targets="all-linear")
    account, layers = account_of(model), layers_of(model)
    assert account.layers == list(range(LAYERS))
    for again in ([0], [1, 2], [0, 1, 2]):
        compute_again(layers, again)
        assert account_of(model).held_bytes() == account.held_bytes(again), again
    assert account.held_bytes([0, 1, 2]) < account.held_bytes() / 2


def test_only_layers_from_the_lowest_adapter_up_are_ever_chosen(deep_bert: Path) -> None:
    model = adapted(deep_bert, targets=TOP)
    account = account_of(model)
    assert account.layers == [2, 3]
    assert account.choose(0) in ([2], [2, 3]), "nothing is enough, so what keeps least"
    assert account.choose(account.held_bytes()) == []
    assert account.choose(account.held_bytes() - 1) == [2]


def test_the_fewest_layers_are_chosen_and_the_one_that_is_there_again_counts() -> None:
    keep: list[torch.Tensor] = []

    def made(size: int) -> Storages:
        keep.append(torch.empty(size, dtype=torch.uint8))
        storage = keep[-1].untyped_storage()
        return {torch.multiprocessing.reductions.StorageWeakRef(storage): size}

    saved = tuple(made(size) for size in (100, 100, 300, 100))
    account = Account(saved, tuple(made(10) for _ in saved), ({}, {}, {}, {}, made(50)))
    assert account.held_bytes() == 650
    assert account.held_bytes([2]) == 360
    assert account.peak_bytes([2]) == 500, "when it is there again, the last one and what is outside are gone"
    assert account.choose(500) == [2]
    assert account.choose(499) == [0, 2]
    assert account.peak_bytes([0, 2]) == 410
    assert account.choose(1) == [0, 1, 2]
    assert account.peak_bytes([0, 1, 2]) == 320


def run(folder: Path, base: Path, *, targets: str | list[str] = "all-linear", **sections: Any) -> TrainResult:
    arguments = {**SHORT, **sections.pop("training_args", {})}
    recipe = write_recipe(
        folder, base, training_args=arguments, model={"dropout": 0.1},
        peft_config={"lora_dropout": 0.1, "target_modules": targets}, **sections,
    )  # fmt: skip
    return train(read(recipe), RunOptions())


def curve(result: TrainResult) -> list[float]:
    (state,) = result.folder.parent.glob("checkpoint-*/trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    "quantization_config",
    [{}, pytest.param({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, marks=pytest.mark.slow)],
)
def test_a_run_with_a_limit_is_the_run_without_to_the_last_bit(
    tmp_path: Path, deep_bert: Path, caplog: pytest.LogCaptureFixture, quantization_config: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, logger="lora_ft")
    sections = {"quantization_config": quantization_config} if quantization_config else {}
    steps = {"training_args": {"max_steps": 8}, **sections}
    plain = run(tmp_path / "plain", deep_bert, **steps)
    limited = run(tmp_path / "limited", deep_bert, lean={"activation_limit_gb": 0.0005}, **steps)
    told = [one.message for one in caplog.records if one.message.startswith("activation checkpointing:")]
    assert len(told) == 1
    assert "8 rows x 16 tokens keep 0.000" in told[0]
    again = limited.manifest.run["lean"]["checkpointed_layers"]  # type: ignore[union-attr]
    assert 0 < again < LAYERS
    assert plain.manifest.run["lean"]["checkpointed_layers"] == 0  # type: ignore[union-attr]
    assert len(curve(plain)) == 8
    assert curve(plain) == curve(limited)
    one, other = (load_file(result.folder / "adapter_model.safetensors") for result in (plain, limited))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_limit_that_cannot_be_kept_is_said_with_what_to_do(
    tmp_path: Path, deep_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, deep_bert, lean={"activation_limit_gb": 1e-6}, training_args={"max_steps": 2})
    (told,) = [one.message for one in caplog.records if "cannot be kept" in one.message]
    assert told.startswith("lean.activation_limit_gb: 1e-06 cannot be kept, 0.000")
    assert "Halve training_args.per_device_train_batch_size" in told
    assert told.endswith("or lower processor.max_length")


def test_under_a_budget_of_tokens_the_budget_is_what_to_halve(
    tmp_path: Path, deep_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lean = {"activation_limit_gb": 1e-6, "max_tokens_per_batch": 64}
    result = run(tmp_path, deep_bert, lean=lean, training_args={"max_steps": 2})
    (told,) = [one.message for one in caplog.records if "cannot be kept" in one.message]
    assert "Halve lean.max_tokens_per_batch, and double gradient_accumulation_steps" in told
    kept = result.manifest.run["lean"]["kept_for_backward"]  # type: ignore[union-attr]
    assert kept["limit"] == 1000 < kept["bytes"] < kept["without"]


def test_nothing_below_the_lowest_adapter_is_sent_backward_or_computed_again(
    tmp_path: Path, deep_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of transformers alone asks gradients of the embeddings, and computes all layers again."""
    whole = transformers.models.bert.modeling_bert.BertEmbeddings.forward
    seen: list[bool] = []
    runs: list[Any] = []
    own = transformers.models.bert.modeling_bert.BertSelfAttention.forward

    def embeddings(module: Any, *args: Any, **kwargs: Any) -> Any:
        output = whole(module, *args, **kwargs)
        seen.append(output.requires_grad)
        return output

    def attention(module: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append((module, module.training and torch.is_grad_enabled()))
        return own(module, *args, **kwargs)

    monkeypatch.setattr(transformers.models.bert.modeling_bert.BertEmbeddings, "forward", embeddings)
    monkeypatch.setattr(transformers.models.bert.modeling_bert.BertSelfAttention, "forward", attention)
    arguments = {"gradient_checkpointing": True, "max_steps": 2}
    result = run(tmp_path, deep_bert, targets=TOP, training_args=arguments)
    assert result.manifest.run["lean"]["checkpointed_layers"] == 2  # type: ignore[union-attr]
    assert seen
    assert not any(seen)
    modules = list(dict.fromkeys(module for module, _ in runs))
    counts = [sum(training for one, training in runs if one is module) for module in modules]
    assert counts == [4, 4, 7, 7], (
        "one measured, the worst batch and two steps; the upper layers all but the first twice"
    )
