"""The gap between training and validation rows: each verdict on made-up curves, and a run that learns by heart."""

from __future__ import annotations

import csv
import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ft.train.gap import Both, Evaluation, Setup, evaluations_of, judge
from lora_ft.train.run import RunOptions, train
from tests.toy import read, sentence, write_recipe

SETUP = Setup(epochs=10, max_steps=None, steps=1000, learning_rate=5e-4, weight_decay=0.01, dropout=0.0, rank=8)


def curve(*losses: tuple[float, float]) -> list[Evaluation]:
    """Training and validation loss after each epoch."""
    return [Evaluation(epoch + 1.0, train, validation) for epoch, (train, validation) in enumerate(losses)]


def both(
    train: float, validation: float, *, rows: int = 500, known: bool = True, losses: tuple[float, float] = (0.3, 0.3)
) -> Both:
    return Both(
        metric="f1_macro",
        lower_is_better=False,
        train={"f1_macro": train, "loss": losses[0]},
        validation={"f1_macro": validation, "loss": losses[1]},
        rows=(rows, rows),
        knows_training_rows=known,
    )


FLAT = curve((0.5, 0.4), (0.3, 0.3), (0.28, 0.298))
RISING = curve((0.6, 0.5), (0.4, 0.40), (0.2, 0.48), (0.1, 0.61))


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_overfitting_and_ends_at_the_best_epoch() -> None:
    gap = judge(RISING, both(0.92, 0.90), SETUP)
    assert gap.verdict == "overfitted"
    assert gap.change == "training_args.num_train_epochs: 2 (now 10)"
    assert (
        "lowest at epoch 2 (0.400) and rose to 0.610 at epoch 4, while the training loss fell from 0.400 to 0.100"
        in (gap.line())
    )


FALLING = curve((0.6, 0.5), (0.4, 0.3), (0.3, 0.2))


@pytest.mark.parametrize(("metric", "verdict"), [(1.0, "even"), (0.99, "underfitted")])
def test_a_loss_that_still_falls_is_no_underfit_where_the_metric_can_be_no_better(metric: float, verdict: str) -> None:
    assert judge(FALLING, both(1.0, metric), SETUP).verdict == verdict
    errors = replace(both(0.0, 1 - metric), metric="wer", lower_is_better=True)
    errors = replace(errors, train={"wer": 0.0, "loss": 0.3}, validation={"wer": 1 - metric, "loss": 0.3})
    assert judge(FALLING, errors, SETUP).verdict == verdict


def test_where_the_recipe_counts_steps_they_are_named() -> None:
    gap = judge(RISING, both(0.92, 0.90), replace(SETUP, max_steps=1000))
    assert gap.change == "training_args.max_steps: 200 (now 1000)"


def test_a_part_of_an_epoch_is_named_as_the_recipe_has_it(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 0.5})
    assert Setup.of(read(file), epochs=1.0, steps=8).epochs == 0.5  # the Trainer's state rounds it up
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 0.5, "max_steps": 40})
    assert Setup.of(read(file), epochs=3.0, steps=40).epochs == 3.0


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ({"learning_rate": 0.05}, "training_args.learning_rate: 0.0005 (now 0.05)"),
        ({"learning_rate": 3e-3, "unequal": 9.0}, "training_args.learning_rate: 0.001 (now 0.003)"),
        ({"unequal": 9.0}, "loss.class_weight: balanced (one class has 9 times the rows of another)"),
        ({"unequal": 3.0}, "training_args.num_train_epochs: 20 (now 10)"),
    ],
)
def test_what_keeps_a_run_from_learning_comes_before_its_length(setting: dict[str, float], change: str) -> None:
    setup = replace(SETUP, steps=20, **setting)
    assert judge(FLAT, both(0.49, 0.49, known=False), setup).change == change


def test_a_recipe_that_makes_up_for_rare_classes_has_no_unequal_ones(tmp_path: Path, tiny_bert: Path) -> None:
    plain, weighed = (read(write_recipe(tmp_path, tiny_bert, loss=loss)) for loss in ({}, {"class_weight": "balanced"}))
    assert Setup.of(plain, epochs=1.0, steps=8, unequal=9.0).unequal == 9.0
    assert Setup.of(weighed, epochs=1.0, steps=8, unequal=9.0).unequal == 1.0


def test_both_losses_rising_is_no_overfitting() -> None:
    rising = curve((0.4, 0.40), (0.6, 0.48), (0.7, 0.61))
    assert judge(rising, both(0.90, 0.90), SETUP).verdict == "even"


def test_a_wobble_is_no_rise() -> None:
    assert judge(curve((0.5, 0.41), (0.3, 0.400), (0.2, 0.405)), both(0.90, 0.90), SETUP).verdict == "even"


def test_training_rows_that_are_known_much_better_are_overfitting() -> None:
    gap = judge(FLAT, both(0.99, 0.85), SETUP)
    assert gap.verdict == "overfitted"
    assert "f1_macro 0.990 on training rows and 0.850 on validation" in gap.line()
    assert gap.change == "peft_config.lora_dropout: 0.1 (now 0)"


@pytest.mark.parametrize(("train", "validation", "rows"), [(0.99, 0.85, 20), (0.92, 0.89, 5000), (0.80, 0.95, 500)])
def test_a_gap_that_chance_explains_or_that_is_small_or_turned_round_is_none(
    train: float, validation: float, rows: int
) -> None:
    assert judge(FLAT, both(train, validation, rows=rows), SETUP).verdict == "even"


def test_a_metric_without_bounds_is_judged_by_the_loss() -> None:
    numbers = Both("perplexity", True, {"perplexity": 4.0, "loss": 1.4}, {"perplexity": 9.0, "loss": 2.2}, (100, 100))
    assert judge(FLAT, numbers, SETUP).verdict == "overfitted"
    near = replace(numbers, validation={"perplexity": 5.0, "loss": 1.6})
    assert judge(FLAT, near, SETUP).verdict == "even"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"dropout": 0.0}, "peft_config.lora_dropout: 0.1"),
        ({"dropout": 0.1}, "training_args.weight_decay: 0.1"),
        ({"dropout": None}, "training_args.weight_decay: 0.1"),
        ({"dropout": 0.1, "weight_decay": 0.1}, "peft_config.r: 4 (now 8)"),
        ({"dropout": 0.1, "weight_decay": 0.1, "rank": 4}, "more training rows, or the section augmentation"),
        ({"dropout": 0.1, "weight_decay": 0.1, "rank": None}, "more training rows, or the section augmentation"),
    ],
)
def test_what_is_not_done_yet_is_the_first_change(changed: dict[str, float], told: str) -> None:
    assert judge(FLAT, both(0.99, 0.80), replace(SETUP, **changed)).change.startswith(told)


def test_a_run_that_ends_while_it_still_learns_wants_more_epochs() -> None:
    gap = judge(curve((0.6, 0.55), (0.5, 0.45), (0.4, 0.36)), both(0.80, 0.79), SETUP)
    assert gap.verdict == "underfitted"
    assert "still falling at the end, from 0.450 to 0.360" in gap.line()
    assert gap.change == "training_args.num_train_epochs: 20 (now 10)"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, "peft_config.r: 16 (now 8), with lora_alpha: 32"),
        ({"learning_rate": 3e-3}, "training_args.learning_rate: 0.001 (now 0.003)"),
        ({"learning_rate": 1e-5}, "training_args.learning_rate: 0.0005 (now 1e-05)"),
        ({"steps": 30}, "training_args.num_train_epochs: 20 (now 10)"),
    ],
)
def test_a_run_that_does_not_even_know_its_training_rows_underfits(changed: dict[str, float], told: str) -> None:
    gap = judge(FLAT, both(0.5, 0.5, known=False), replace(SETUP, **changed))
    assert gap.verdict == "underfitted"
    assert gap.change == told


def test_a_run_with_nothing_to_say_says_so() -> None:
    gap = judge(FLAT, both(0.9, 0.9), SETUP)
    assert gap.line().startswith("neither overfitted nor underfitted: f1_macro 0.900 on training rows and 0.900")
    assert judge([], both(0.9, 0.9), SETUP).change == ""


def test_the_training_loss_between_two_evaluations_is_their_mean() -> None:
    history = [{"loss": 0.8}, {"loss": 0.6}, {"epoch": 1.0, "eval_loss": 0.5}, {"epoch": 2.0, "eval_loss": 0.4}]
    history += [{"loss": 0.2}, {"epoch": 3.0, "eval_loss": 0.3}, {"train_runtime": 3.0}]
    assert evaluations_of(history) == [
        Evaluation(1.0, pytest.approx(0.7), 0.5),
        Evaluation(2.0, None, 0.4),
        Evaluation(3.0, 0.2, 0.3),
    ]


def write_by_heart(folder: Path) -> None:
    """Labels that say nothing of the texts: what can be learned of them is each by heart."""
    rng = random.Random(0)
    for split, rows in (("train", 40), ("dev", 60)):
        with (folder / "data" / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            for index in range(rows):
                writer.writerow([f"{sentence(rng, positive=rng.random() < 0.5)} {index}", ("no", "yes")[index % 2]])


def test_a_run_that_learns_by_heart_says_so_and_what_to_change(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_recipe(
        tmp_path,
        tiny_bert,
        training_args={"num_train_epochs": 20, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 50},
    )
    write_by_heart(tmp_path)
    with caplog.at_level(logging.INFO):
        result = train(read(file), RunOptions())
    assert result.manifest is not None
    gap = result.manifest.run["gap"]
    assert gap["verdict"] == "overfitted"
    assert gap["rows"] == 40  # not more than there are
    assert gap["train"]["f1_macro"] > 0.85 > 0.7 > result.metrics["validation"]["f1_macro"]
    assert "gap: overfitted: f1_macro" in caplog.text
    assert "overfitted" in (result.folder / "README.md").read_text(encoding="utf-8")


def test_a_run_that_weighs_classes_is_not_judged_by_its_plain_loss(tmp_path: Path, tiny_bert: Path) -> None:
    weights = {"class_weight": {"positive": 30.0, "negative": 1.0}}  # which draw the plain loss away from its lowest
    often = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    short = {**often, "load_best_model_at_end": False, "learning_rate": 5e-3}
    result = train(read(write_recipe(tmp_path, tiny_bert, training_args=short, loss=weights)), RunOptions())
    assert result.manifest is not None
    assert "the validation loss" not in " ".join(result.manifest.run["gap"]["reasons"])


def test_the_look_at_the_gap_can_be_turned_off(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1}, checks={"gap": False})
    result = train(read(file), RunOptions())
    assert result.manifest is not None
    assert result.manifest.run["gap"] is None
    assert "gap" in result.manifest.checks_off
