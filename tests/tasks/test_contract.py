"""The contract suite: everything a task promises, for every task in the folder and each of its problem types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_ft.adapters.attach import attach
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import plan_precision
from lora_ft.models.resolve import resolve_base
from lora_ft.tasks.base import Task, load_task, task_names
from tests.bases import make_base

CASES = [(name, kind) for name in task_names() for kind in load_task(name).metrics]
BASE_OF = {"AutoModelForSequenceClassification": "bert"}
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
SETTINGS = {"max_length": 32}


class Built:
    """A task with its example rows encoded, and a fresh adapted model."""

    def __init__(self, task: Task, kind: str, base: Path) -> None:
        self.task, self.kind = task, kind
        rows = task.example_rows(kind)
        values = rows["label"]
        flat = [value for row in values for value in (row if isinstance(row, list) else [row])]
        self.labels = () if kind == "regression" else tuple(sorted(set(flat)))
        folder = resolve_base(str(base), revision=None, offline=True)
        self.processor = load_processor(folder, trust_remote_code=False)
        self.encoded = task.encode(rows, self.processor, labels=self.labels, problem_type=kind, settings=SETTINGS)
        self.count = len(values)
        transformers.set_seed(0)
        loaded = load_base(
            folder, auto_class=task.auto_class, head=task.head,
            config=task.model_config(labels=self.labels, problem_type=kind),
            precision=plan_precision(device="cpu", dtype="float32"), quantization_config=None, dropout=0.0,
            attn_implementation=None, dtype=None, trust_remote_code=False,
        )  # fmt: skip
        self.head = loaded.head
        self.model = attach(loaded.model, PEFT, task_type=task.peft_task_type, head=loaded.head)

    def batch(self, indices: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        names = [name for name in self.encoded if name not in ("length", "truncated")]
        collate = self.task.collator(self.processor, problem_type=self.kind, settings=SETTINGS)
        chosen = range(self.count) if indices is None else indices
        return collate([{name: self.encoded[name][index] for name in names} for index in chosen])

    def loss(self, batch: dict[str, torch.Tensor], items: Any = None, **options: Any) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        options = {"class_weight": None, "label_smoothing": 0.0, **options}
        loss_of = self.task.loss(problem_type=self.kind, **options)
        return loss_of(self.model(**inputs), batch["labels"], num_items_in_batch=items)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return found


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    name, kind = request.param
    task = load_task(name)
    yield Built(task, kind, make_base(tmp_path_factory.mktemp("base"), BASE_OF[task.auto_class]))


def test_example_rows_encode_to_features_of_one_length_each(built: Built) -> None:
    assert all(len(values) == built.count for values in built.encoded.values())
    assert {"length", "truncated", "labels"} <= set(built.encoded)


def test_the_loss_of_the_example_rows_is_finite_and_thirty_steps_lower_it(built: Built) -> None:
    batch = built.batch()
    optimizer = torch.optim.AdamW([p for p in built.model.parameters() if p.requires_grad], lr=1e-2)
    first = built.loss(batch)
    assert torch.isfinite(first)
    for _ in range(30):
        optimizer.zero_grad()
        loss = built.loss(batch)
        loss.backward()
        optimizer.step()
    assert float(built.loss(batch)) < 0.7 * float(first)


def test_only_adapter_and_head_get_gradients(built: Built) -> None:
    built.loss(built.batch()).backward()
    for name, parameter in built.model.named_parameters():
        ours = "lora_" in name or "modules_to_save" in name
        assert (parameter.grad is not None) == ours, name
    assert any("modules_to_save" in name for name in built.gradients())


def test_one_batch_of_four_gives_the_gradients_of_four_batches_of_one(built: Built) -> None:
    whole = built.batch()
    items = whole["labels"].numel()
    built.loss(whole, items).backward()
    expected = built.gradients()
    for index in range(built.count):
        built.loss(built.batch([index]), items).backward()
    for name, gradient in built.gradients().items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_decoding_a_perfect_output_scores_perfectly(built: Built) -> None:
    truth = np.asarray(built.encoded["labels"], dtype=np.float64)
    if built.kind == "regression":
        logits = truth[:, None]
    elif built.kind == "multi_label_classification":
        logits = np.where(truth > 0, 9.0, -9.0)
    else:
        logits = np.eye(len(built.labels))[truth.astype(int)] * 9.0
    decoded = built.task.decode(logits, labels=built.labels, problem_type=built.kind)
    scores = built.task.score(decoded, built.encoded["labels"], labels=built.labels, problem_type=built.kind)
    assert set(built.task.metrics[built.kind]) <= set(scores)
    for name, value in scores.items():
        assert value == pytest.approx(0.0 if name in built.task.lower_is_better else 1.0), name


def test_switching_the_adapter_off_and_on_restores_logits_exactly(built: Built) -> None:
    inputs = {name: tensor for name, tensor in built.batch().items() if name != "labels"}
    built.model.eval()
    for name, parameter in built.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        before = built.model(**inputs).logits
        with built.model.disable_adapter():
            bare = built.model(**inputs).logits
        after = built.model(**inputs).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, bare)


def test_predictions_do_not_depend_on_the_rest_of_the_batch(built: Built) -> None:
    built.model.eval()
    with torch.no_grad():
        inputs = {name: tensor for name, tensor in built.batch().items() if name != "labels"}
        together = built.model(**inputs).logits
        for index in range(built.count):
            alone = {name: tensor for name, tensor in built.batch([index]).items() if name != "labels"}
            assert torch.allclose(built.model(**alone).logits[0], together[index], atol=1e-5)


def test_the_facts_of_a_task_name_its_columns_and_metrics(built: Built) -> None:
    facts = built.task.facts()
    assert facts.name in task_names()
    assert any(column.required and column.kind == "label" for column in facts.columns)
    assert all(facts.metrics[kind] for kind in facts.metrics)
