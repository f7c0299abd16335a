"""A run whose batches are cut by a budget of tokens: its steps, how it goes on, and what is tried and refused first."""

from __future__ import annotations

import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from lora_ft.data.filled import FilledRows
from lora_ft.data.token_budget import TokenBudget
from lora_ft.errors import AdapterError, GateError, InputError, Interrupted
from lora_ft.train.first_batch import Heaviest
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe
from tests.train.test_first_batch import too_small_for
from tests.train.test_resume import CHANCE, assert_same_run, signalled_in_step

BUDGET = {"max_tokens_per_batch": 64}
BOTH: dict[str, Any] = {
    "per_device_train_batch_size": 32, "gradient_accumulation_steps": 3, "num_train_epochs": 2, "logging_steps": 1,
    "learning_rate": 5e-3, "save_strategy": "epoch", "eval_strategy": "epoch",
}  # fmt: skip


def experiment(folder: Path, base: Path, **arguments: Any) -> Path:
    sections = {key: CHANCE[key] for key in ("peft_config", "model")}
    return write_recipe(
        folder, base, training_args={**BOTH, **arguments}, lean=BUDGET, checks={"gap": False}, **sections
    )


def test_a_run_that_was_stopped_within_an_epoch_goes_on_to_the_same_adapter_and_reads_no_row_again(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_ft")
    whole = train(read(experiment(tmp_path / "whole", tiny_bert)), RunOptions())
    assert whole.manifest is not None
    facts = whole.manifest.run
    an_epoch = facts["steps"] // 2
    cost = facts["lean"]["batches"]
    assert facts["steps"] == 2 * an_epoch
    assert facts["epochs"] == 2
    assert cost["padding"] < 1.05
    assert cost["rows_a_step"] == pytest.approx(128 / an_epoch, abs=0.05)
    assert 2 * 64 < cost["tokens_a_step"] < 3 * 64
    told = f"a step learns of {cost['rows_a_step']:.1f} rows with {cost['tokens_a_step']:.0f} tokens in the mean"
    assert any(one.message.startswith("padding: 1.0") and told in one.message for one in caplog.records)
    file = experiment(tmp_path / "cut", tiny_bert)
    stopped = an_epoch + 2
    signalled_in_step(monkeypatch, stopped, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(read(file), RunOptions())
    monkeypatch.undo()
    other = ["training_args.per_device_train_batch_size=96", "training_args.gradient_accumulation_steps=1"]
    with pytest.raises(AdapterError, match=r"3 batches of 32 rows at most on 1 processes, now it would be 1 of 96"):
        train(read(file, *other), RunOptions(resume=True))
    seen: list[int] = []
    get = FilledRows.__getitems__
    monkeypatch.setattr(FilledRows, "__getitems__", lambda split, numbers: seen.extend(numbers) or get(split, numbers))
    assert_same_run(whole, train(read(file, "checks.worst-batch-first=false"), RunOptions(resume=True)))
    real = [number for number in seen if number < 128]
    assert len(real) == len(set(real)) < 128, "each row that was left once"


def test_schedules_and_limits_count_the_steps_of_the_budget(tmp_path: Path, tiny_bert: Path) -> None:
    for order in ("random", "group_by_length"):
        words = {"max_steps": 25, "save_strategy": "steps", "save_steps": 25, "gradient_accumulation_steps": 1}
        words |= {"eval_strategy": "no", "load_best_model_at_end": False, "train_sampling_strategy": order}
        result = train(read(experiment(tmp_path / order, tiny_bert, **words)), RunOptions())
        state = json.loads((tmp_path / order / "run" / "checkpoint-25" / "trainer_state.json").read_text())
        rates = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
        assert result.manifest is not None
        assert result.manifest.run["steps"] == state["max_steps"] == 25
        assert len(rates) == 25
        assert 0 < rates[-1] < 5e-4 < rates[12]


def test_the_worst_batches_are_the_longest_rows_and_the_most_tokens() -> None:
    budget = TokenBudget(40, rows=8, pieces=1)
    assert Heaviest.under([21, 20, 20, 1], budget) == [Heaviest((0,), 21), Heaviest((1, 2), 20)]
    assert Heaviest.under([10, 3, 10, 10, 10], budget) == [Heaviest((0, 2, 3, 4), 10)]
    assert Heaviest.under([2] * 20, budget) == [Heaviest(tuple(range(8)), 2)]


def test_too_little_memory_is_told_with_a_budget_that_was_tried(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_small_for(monkeypatch, 2, training=True)
    with pytest.raises(GateError, match=r"4 rows x 16 tokens, does not fit") as caught:
        train(read(experiment(tmp_path, tiny_bert)), RunOptions())
    assert (
        "set lean.max_tokens_per_batch: 32 (tried: 2 x 16 fits), and training_args.gradient_accumulation_steps: 6 for "
        "steps of about as many tokens" in str(caught.value)
    )


def test_a_limit_of_memory_is_kept_by_the_batches_that_the_budget_allows(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_ft")
    file = write_recipe(
        tmp_path,
        tiny_bert,
        training_args={**BOTH, "max_steps": 3, "eval_strategy": "no", "save_strategy": "no"},
        lean={**BUDGET, "activation_limit_gb": 1.0},
    )
    train(read(file, "training_args.load_best_model_at_end=false"), RunOptions())
    (told,) = (one.message for one in caplog.records if one.message.startswith("activation checkpointing: "))
    rows, tokens = re.search(r"; (\d+) rows x (\d+) tokens", told).groups()  # type: ignore[union-attr]
    assert int(rows) * int(tokens) <= BUDGET["max_tokens_per_batch"]


def test_a_row_that_is_longer_than_the_budget_ends_the_run_before_it_begins(tmp_path: Path, tiny_bert: Path) -> None:
    file = experiment(tmp_path, tiny_bert)
    told = r"lean\.max_tokens_per_batch: 15: the longest training row alone has 16 tokens .* Write 16 or more, or proc"
    with pytest.raises(InputError, match=told):
        train(read(file, "lean.max_tokens_per_batch=15"), RunOptions())
    with pytest.raises(InputError, match=r"alone has 32 tokens with its padding\. Write 32 or more"):
        train(read(file, "lean.max_tokens_per_batch=31", "processor.padding=max_length"), RunOptions())
    with pytest.raises(InputError, match="alone has 24 tokens"):
        train(read(file, "lean.max_tokens_per_batch=23", "processor.pad_to_multiple_of=12"), RunOptions())
    assert not (tmp_path / "run").exists()
