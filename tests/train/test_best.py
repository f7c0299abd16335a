"""Which checkpoint is the best one: the better metric, and of equal ones the lower loss."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from lora_ft.train.run import RunOptions, train
from lora_ft.train.trainer import AdapterTrainer
from tests.toy import read, write_recipe, write_reviews


def judged(evaluations: list[dict[str, float]], **arguments: Any) -> list[int | None]:
    """The best step after each of some evaluations, one a step."""
    trainer: Any = AdapterTrainer.__new__(AdapterTrainer)
    trainer.args = SimpleNamespace(
        **{"metric_for_best_model": "f1", "greater_is_better": True, "save_strategy": "epoch", **arguments}
    )
    trainer.state = transformers.TrainerState()
    best = []
    for step, metrics in enumerate(evaluations, start=1):
        trainer.state.global_step = step
        trainer.state.log_history += [{"loss": 9.0, "step": step}, {**metrics, "step": step}]
        before, state = trainer.state.best_global_step, trainer.state
        found = trainer._determine_best_metric(metrics=metrics, trial=None)
        assert found or state.best_global_step == before
        best.append(state.best_global_step)
    return best


@pytest.mark.parametrize(
    ("losses", "best"),
    [([0.5, 0.3, 0.2], [1, 2, 3]), ([0.5, 0.6, 0.4], [1, 1, 3]), ([0.5, 0.5], [1, 1]), ([0.5, float("nan")], [1, 1])],
)
def test_of_equal_metrics_the_lower_loss_wins(losses: list[float], best: list[int]) -> None:
    assert judged([{"eval_f1": 1.0, "eval_loss": loss} for loss in losses]) == best


def test_a_better_metric_wins_whatever_its_loss() -> None:
    evaluations = [(0.8, 0.3), (0.9, 0.7), (0.8, 0.1), (0.9, 0.6)]
    assert judged([{"eval_f1": f1, "eval_loss": loss} for f1, loss in evaluations]) == [1, 2, 2, 4]


def test_where_less_is_better_and_where_no_loss_is_measured() -> None:
    rates = [
        {"eval_wer": 0.2, "eval_loss": 0.5},
        {"eval_wer": 0.2, "eval_loss": 0.4},
        {"eval_wer": 0.3, "eval_loss": 0.1},
    ]
    assert judged(rates, metric_for_best_model="eval_wer", greater_is_better=False) == [1, 2, 2]
    assert judged([{"eval_f1": 1.0}, {"eval_f1": 1.0}]) == [1, 1]


def test_without_a_metric_or_without_checkpoints_none_is_the_best() -> None:
    assert judged([{"eval_loss": 0.5}, {"eval_loss": 0.4}], metric_for_best_model=None) == [None, None]
    assert judged([{"eval_f1": 1.0, "eval_loss": 0.5}] * 2, save_strategy="no") == [None, None]


def test_a_run_that_is_perfect_early_keeps_the_checkpoint_that_is_surest_and_is_not_told_to_go_on(
    tmp_path: Path, tiny_bert: Path
) -> None:
    arguments = {
        "num_train_epochs": 8, "learning_rate": 2e-2, "eval_strategy": "epoch", "save_strategy": "epoch",
        "save_total_limit": 10,
    }  # fmt: skip
    file = write_recipe(tmp_path, tiny_bert, training_args=arguments)
    write_reviews(tmp_path / "data" / "dev.csv", 8, seed=2)  # few: soon all of them are right
    result = train(read(file), RunOptions())
    newest = max(result.folder.parent.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    seen = [one for one in state["log_history"] if "eval_loss" in one]
    perfect = [one for one in seen if one["eval_f1_macro"] == 1.0]
    assert len(perfect) > 1, [one["eval_f1_macro"] for one in seen]
    assert state["best_global_step"] == min(perfect, key=lambda one: one["eval_loss"])["step"] != perfect[0]["step"]
    assert result.metrics["validation"]["loss"] == pytest.approx(min(one["eval_loss"] for one in perfect), abs=1e-5)
    assert result.manifest is not None
    assert result.manifest.run["gap"]["verdict"] != "underfitted"
