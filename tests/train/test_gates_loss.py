"""Losses that begin where they cannot, or run away, stop a run; noisy and tiny ones do not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lora_ft.errors import GateError
from lora_ft.train.gates_loss import LossWatch, check_start
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.toy import read, write_recipe

CPU = torch.device("cpu")


def watch(losses: Any, *, norms: Any = None, uniform: float | None = None, off: frozenset[str] = frozenset()) -> int:
    """Feeds losses to a watch as the trainer does; how many it saw before it stopped the run, all if it did not."""
    one = LossWatch(CPU, off=off | {"loss-at-start"}, uniform=uniform, new_head=True)
    for step, loss in enumerate(losses):
        one.add(torch.tensor(float(loss)), last_of_step=True)
        one.look(step=step, learning_rate=1e-3, asked_rate=3e-3)
        one.add_norm(1.0 if norms is None else float(norms[step]))
    return len(losses)


def stopped(losses: Any, **options: Any) -> str:
    with pytest.raises(GateError) as caught:
        watch(losses, **options)
    return str(caught.value)


def test_a_loss_that_jumps_is_stopped_within_ten_steps_and_a_third_of_the_rate_proposed() -> None:
    told = stopped([0.7] * 30 + [4.0] * 6)
    assert told.startswith("divergence: the loss rose from 0.7 to ")
    assert "by step 35" in told
    assert "training_args.learning_rate: 0.001 (a third of 0.003)" in told
    assert told.endswith("(gate divergence; checks: {divergence: false} turns it off)")


def test_a_loss_that_stays_twice_as_high_for_fifty_steps_is_stopped_and_not_before() -> None:
    rising = [0.7] * 20 + [1.5] * 50
    assert watch(rising[:-1]) == 69
    assert "from 0.7 to 1.5" in stopped(rising)


def test_a_run_that_diverged_within_its_first_steps_is_measured_by_equal_probabilities() -> None:
    wild = [0.7, 9.0, 30.0, *[60.0] * 40]
    assert watch(wild) == 43
    assert "to 60" in stopped(wild, uniform=math.log(2))


def test_a_step_of_no_row_has_no_loss_and_one_of_few_rows_their_mean() -> None:
    one = LossWatch(CPU, off=frozenset(), uniform=None, new_head=True)
    total = torch.tensor(5)
    one.weigh(torch.tensor(0), total, processes=2)
    one.add(None, last_of_step=False)
    one.add(None, last_of_step=True)
    assert one.due
    one.look(step=0, learning_rate=1e-3, asked_rate=1e-3)
    assert one.start == []
    assert one.falls is None
    one.weigh(torch.tensor(1), total, processes=2)  # the loss of its one row is 0.7: 2 x 0.7 / 5 of that of all
    one.add(torch.tensor(2 * 0.7 / 5), last_of_step=False)
    one.add(None, last_of_step=True)
    one.look(step=1, learning_rate=1e-3, asked_rate=1e-3)
    assert one.start == pytest.approx([0.7])


def test_exploding_gradients_with_a_loss_that_does_not_fall_are_stopped() -> None:
    losses, norms = [0.7] * 20 + [0.8] * 30, [1.0] * 25 + [500.0] * 25
    assert "the norm of the gradients rose from 1 to 250" in stopped(losses, norms=norms)
    falling = [0.7] * 20 + [0.4] * 30
    assert watch(falling, norms=norms) == 50


@pytest.mark.parametrize("seed", range(40))
def test_noisy_runs_and_tiny_losses_go_on(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(400)
    for start, end in ((0.7, 0.1), (0.7, 0.69), (4.0, 3.5), (11.0, 2.0), (0.02, 0.001), (1e-6, 1e-7), (25.0, 1.0)):
        trend = end + (start - end) * np.exp(-steps / 80)
        noisy = trend * rng.lognormal(0.0, 0.6, len(steps))  # batches of one row: from a third to three times
        assert watch(noisy, norms=rng.lognormal(0.0, 1.0, len(steps))) == len(steps)
    overfitted = 0.7 * np.exp(-steps / 40) + rng.exponential(0.05, len(steps)) + (rng.random(len(steps)) < 0.05) * 3.0
    assert watch(overfitted, uniform=math.log(2)) == len(steps)


def test_losses_of_accumulated_batches_add_up_and_a_bad_one_stops_at_once() -> None:
    one = LossWatch(CPU, off=frozenset(), uniform=None, new_head=True)
    one.add(torch.tensor(0.25), last_of_step=False)
    one.add(torch.tensor(0.5), last_of_step=True)
    one.look(step=0, learning_rate=0.1, asked_rate=0.1)
    assert one.start == [0.75]
    one.add(torch.tensor(math.nan), last_of_step=False)
    with pytest.raises(GateError, match="not finite at or shortly before step 2"):
        one.look(step=1, learning_rate=0.1, asked_rate=0.1)


def test_a_base_that_is_far_worse_than_guessing_is_stopped_and_a_doubtful_one_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = math.log(50_000)
    with pytest.raises(GateError, match=r"loss at start: 25, and equal probabilities have 10\.8.*tokenizer"):
        check_start(25.0, uniform=chance, new_head=False)
    check_start(2.5, uniform=chance, new_head=False)
    check_start(1e-9, uniform=chance, new_head=False)
    assert not caplog.records
    check_start(1.3 * chance, uniform=chance, new_head=False)
    assert "worse than guessing" in caplog.text


@pytest.mark.parametrize(("loss", "told"), [(0.1, "do the rows hold their labels"), (4.0, "model.dtype"), (0.9, "")])
def test_a_new_head_begins_at_equal_probabilities(loss: float, told: str, caplog: pytest.LogCaptureFixture) -> None:
    check_start(loss, uniform=math.log(2), new_head=True)
    assert (told in caplog.text) if told else not caplog.records


def test_a_base_that_is_sure_of_other_classes_is_trained(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", auto_class="AutoModelForSequenceClassification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    model.config.id2label = {0: "negative", 1: "positive"}
    model.config.label2id = {"negative": 0, "positive": 1}
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.save_pretrained(base)
    recipe = read(write_recipe(tmp_path, base, training_args={"max_steps": 2}))
    result = train(recipe, RunOptions())
    assert result.manifest is not None
    assert not result.manifest.new_head


def test_the_last_evaluation_of_a_run_is_not_called_stuck(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"num_train_epochs": 1, "learning_rate": 1e-9}
    result = train(read(write_recipe(tmp_path, tiny_bert, training_args=short)), RunOptions())
    assert result.learned is False  # which is said anyway
    assert "stuck at chance" not in caplog.text


def test_a_run_that_diverges_writes_nothing_and_says_which_rate_to_take(tmp_path: Path, tiny_bert: Path) -> None:
    wild = {"learning_rate": 3.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}
    recipe = read(write_recipe(tmp_path, tiny_bert, training_args=wild))
    with pytest.raises(GateError, match=r"divergence: .*training_args\.learning_rate: 1 \(a third of 3\)"):
        train(recipe, RunOptions())
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_run_that_is_stuck_is_told_after_its_first_evaluation_and_one_that_learns_is_not(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(read(write_recipe(tmp_path / "learns", tiny_bert)), RunOptions())
    assert "stuck at chance" not in caplog.text
    file = write_recipe(tmp_path / "stuck", tiny_bert, training_args={"num_train_epochs": 3})
    for split, rows in (("train", 128), ("dev", 32)):  # the same text under both labels
        lines = [f"the book,{('good', 'bad')[index % 2]}" for index in range(rows)]
        (tmp_path / "stuck" / "data" / f"{split}.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    train(read(file), RunOptions())
    told = [record.message for record in caplog.records if "stuck at chance" in record.message]
    assert len(told) == 1
    assert "after step 16 of 48" in told[0]
    assert "training_args.learning_rate: 0.0067 (a third)" in told[0]
    caplog.clear()
    train(read(file, "checks.stuck-at-chance=false"), RunOptions(overwrite=True))
    assert "stuck at chance" not in caplog.text
