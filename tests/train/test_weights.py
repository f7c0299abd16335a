"""How a run makes up for unequal classes: what it learns from, draws and decides by, whatever the batches."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from lora_ft.adapters.pool_folder import read_pool
from lora_ft.assemble.pooled import open_pool, shared_by_rows
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import Interrupted, RecipeError
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.thresholds import known_thresholds
from lora_ft.train.run import RunOptions, train
from lora_ft.train.trainer import AdapterTrainer
from lora_ft.train.weights import class_draw, draw_line, training_loss
from tests.toy import read, sentence, write_recipe
from tests.train.test_run import interrupted_at

CLASSES = {"focal_gamma": 2.0, "logit_adjustment": 1.0, "class_weight": {"negative": 2.0}}


def unequal(folder: Path, base: Path, *, labels: Any = None, **sections: Any) -> Path:
    """The toy recipe on rows of which one in four is negative; `labels` turns that into another label."""
    file = write_recipe(folder, base, **sections)
    rng = random.Random(3)
    for split, rows in (("train", 64), ("dev", 48)):
        with (folder / "data" / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            for index in range(rows):
                name = "positive" if index % 4 else "negative"
                writer.writerow([sentence(rng, positive=index % 4 > 0), labels(index) if labels else name])
    return file


def test_the_priors_are_those_of_the_rows_before_any_are_drawn_more_often(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = read(unequal(tmp_path, tiny_bert, loss={"logit_adjustment": 2.0, "focal_gamma": 1.5}))
    found = training_loss(prepare(recipe))
    assert found == {"focal_gamma": 1.5, "logit_offsets": pytest.approx([2 * math.log(0.25), 2 * math.log(0.75)])}
    assert class_draw(prepare(recipe), seed=0) is None


def test_what_is_drawn_is_counted_and_said(tmp_path: Path, tiny_bert: Path) -> None:
    prepared = prepare(read(unequal(tmp_path, tiny_bert, balancing={"strategy": "oversample"})))
    draw = class_draw(prepared, seed=0)
    assert draw is not None
    assert draw_line(draw, labels=prepared.problem.labels) == (
        "balancing (oversample): an epoch draws 96 rows: negative 48 of 16, positive 48 of 48"
    )


def run_weights(folder: Path, base: Path, *, sections: dict[str, Any], **arguments: Any) -> dict[str, torch.Tensor]:
    given = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no", **arguments}
    result = train(read(unequal(folder, base, training_args=given, **sections)), RunOptions())
    assert result.manifest is not None
    return load_file(result.folder / "adapter_model.safetensors")


@pytest.mark.parametrize("sections", [{"loss": CLASSES}, {"balancing": {"strategy": "oversample", "ratio": 0.5}}])
def test_accumulated_batches_learn_what_whole_ones_do(
    tmp_path: Path, tiny_bert: Path, sections: dict[str, Any]
) -> None:
    whole = run_weights(tmp_path / "whole", tiny_bert, sections=sections, per_device_train_batch_size=8)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    small = run_weights(tmp_path / "parts", tiny_bert, sections=sections, **parts)
    plain = run_weights(tmp_path / "plain", tiny_bert, sections={}, per_device_train_batch_size=8)
    for name, tensor in whole.items():
        assert torch.allclose(small[name], tensor, atol=2e-3), name
    assert any(not torch.allclose(plain[name], tensor, atol=1e-4) for name, tensor in whole.items())


@pytest.mark.parametrize(("strategy", "steps"), [("oversample", 12), ("undersample", 4), ("balanced", 8)])
@pytest.mark.parametrize("order", ["group_by_length", "random"])
def test_an_epoch_has_as_many_steps_as_it_draws_rows(
    tmp_path: Path, tiny_bert: Path, strategy: str, steps: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(AdapterTrainer, "training_step", lambda trainer, *_: seen.append(1) or torch.zeros(()))
    monkeypatch.setattr("lora_ft.train.run.check_moved", lambda *_, **__: None)
    arguments = {"num_train_epochs": 1, "train_sampling_strategy": order, "save_strategy": "no", "eval_strategy": "no"}
    off = {"worst-batch-first": False, "gradients": False, "gap": False}
    train(
        read(unequal(tmp_path, tiny_bert, balancing={"strategy": strategy}, training_args=arguments, checks=off)),
        RunOptions(),
    )
    assert len(seen) == steps


def test_a_balanced_run_that_was_interrupted_ends_with_the_adapter_of_a_whole_one(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {"balancing": {"strategy": "undersample"}, "training_args": {"num_train_epochs": 3}}
    whole = train(read(unequal(tmp_path / "whole", tiny_bert, **sections)), RunOptions())
    file = unequal(tmp_path / "cut", tiny_bert, **sections)
    monkeypatch.setattr(AdapterTrainer, "training_step", interrupted_at(5))
    with pytest.raises(Interrupted, match="SIGINT: ended after step 6 of 12"):
        train(read(file), RunOptions())
    monkeypatch.undo()
    resumed = train(read(file), RunOptions(resume=True))
    first, second = (load_file(one.folder / "adapter_model.safetensors") for one in (whole, resumed))
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


def test_a_tuned_threshold_is_saved_and_decides_wherever_the_adapter_answers(tmp_path: Path, tiny_bert: Path) -> None:
    arguments = {"num_train_epochs": 1, "learning_rate": 5e-3}
    file = unequal(tmp_path, tiny_bert, decision={"threshold": "tuned"}, training_args=arguments)
    result = train(read(file), RunOptions())
    assert result.manifest is not None
    (threshold,) = known_thresholds(result.manifest.settings).values()
    adapter = open_adapter(result.folder, OpenOptions(offline=True))
    with (tmp_path / "data" / "dev.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    predictions = adapter.predict(datasets.Dataset.from_dict({"text": [row["text"] for row in rows]}), batch_size=16)
    assert all((one["label"] == "negative") == (one["scores"]["negative"] >= threshold) for one in predictions)
    right = sum(one["label"] == row["label"] for one, row in zip(predictions, rows, strict=True))
    assert right / len(rows) == pytest.approx(result.metrics["validation"]["accuracy"])
    pooled = open_pool(read_pool(tmp_path), OpenOptions(offline=True))
    (name,) = read_pool(tmp_path).folders
    several = pooled.predict([{"text": row["text"]} for row in rows], [name] * len(rows))
    assert [one["label"] for one in several] == [one["label"] for one in predictions]


def test_rows_of_adapters_with_other_thresholds_share_a_batch() -> None:
    one, other = (
        Problem("single_label_classification", ("a", "b"), None, {"thresholds": {"a": value}}) for value in (0.1, 0.2)
    )
    assert shared_by_rows(one) == shared_by_rows(other)


@pytest.mark.parametrize(
    ("sections", "labels", "message"),
    [
        ({"loss": {"focal_gamma": 2.0}}, lambda index: index / 3, r"loss.focal_gamma: the labels are numbers"),
        (
            {"balancing": {"strategy": "balanced"}},
            lambda index: index / 3,
            r"balancing.strategy: the labels are numbers",
        ),
        (
            {"decision": {"threshold": 0.3}},
            lambda index: "abc"[index % 3],
            r"there are 3 classes of which a row has one",
        ),
        ({"decision": {"threshold": {"negativ": 0.3}}}, None, r"'negativ' is no label. Did you mean 'negative'"),
        ({"decision": {"threshold": {"negative": 0.3, "positive": 0.6}}}, None, r"of two classes one has a threshold"),
    ],
)
def test_what_does_not_fit_the_labels_is_refused_before_the_model(
    tmp_path: Path, tiny_bert: Path, sections: dict[str, Any], labels: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        prepare(read(unequal(tmp_path, tiny_bert, labels=labels, **sections)))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.3, {"negative": 0.3}), ({"positive": 0.8}, {"positive": 0.8}), ("tuned", "tuned")],
)
def test_a_number_is_the_threshold_of_the_rarer_class(
    tmp_path: Path, tiny_bert: Path, threshold: Any, expected: Any
) -> None:
    prepared = prepare(read(unequal(tmp_path, tiny_bert, decision={"threshold": threshold})))
    assert prepared.problem.settings["thresholds"] == expected
    json.dumps(dict(prepared.problem.settings))
