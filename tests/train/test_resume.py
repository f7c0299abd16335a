"""A run that was stopped goes on to the very same losses and the very same adapter, to the last bit."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_ft.assemble.answer import Answers, answer
from lora_ft.data.filled import FilledRows
from lora_ft.errors import AdapterError, Interrupted, RunError
from lora_ft.train import measure
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.run import RunOptions, TrainResult, train
from tests.bases import make_base
from tests.toy import read, write_recipe, write_reviews

HARD = {
    "num_train_epochs": 3, "max_steps": 30, "logging_steps": 3, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 5,
    "save_steps": 10, "save_total_limit": 2, "learning_rate": 5e-3, "report_to": "tensorboard",
    "lr_scheduler_type": "cosine",
}  # fmt: skip
"""What makes going on hard: an epoch of 11 steps with a short last one, evaluations where nothing is saved."""
CHANCE: dict[str, Any] = {
    "peft_config": {"lora_dropout": 0.1},
    "model": {"dropout": 0.1},
    "early_stopping": {"early_stopping_patience": 5},
}


def experiment(folder: Path, base: Path, **arguments: Any) -> Path:
    return write_recipe(folder, base, training_args={**HARD, **arguments}, **CHANCE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> TrainResult:
    return train(read(experiment(tmp_path_factory.mktemp("whole"), tiny_bert)), RunOptions())


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "adapter_model.safetensors")


def checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def curve(run: Path) -> list[dict[str, float]]:
    state = json.loads((checkpoints(run)[-1] / "trainer_state.json").read_text(encoding="utf-8"))
    return [
        {key: value for key, value in entry.items() if not key.endswith(("runtime", "per_second"))}
        for entry in state["log_history"]
    ]


def assert_same_run(one: TrainResult, other: TrainResult) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert curve(one.folder.parent) == curve(other.folder.parent)
    assert one.metrics == other.metrics
    assert not list(other.folder.parent.glob(".*")), "leftovers"


def signalled_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    whole_step = ResumableTrainer.training_step

    def training_step(trainer: ResumableTrainer, *arguments: Any) -> torch.Tensor:
        if trainer.state.global_step == step:
            signal.raise_signal(number)
        return whole_step(trainer, *arguments)

    monkeypatch.setattr(ResumableTrainer, "training_step", training_step)


def signalled_in_evaluation(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    seen = 0

    def signalled(*arguments: Any, advance: Callable[[int], None], **others: Any) -> Answers:
        def advanced(count: int) -> None:
            nonlocal seen
            seen += 1
            if seen == batch:
                signal.raise_signal(signal.SIGTERM)
            advance(count)

        return answer(*arguments, advance=advanced, **others)

    monkeypatch.setattr(measure, "answer", signalled)


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [
        (10, signal.SIGINT, 130),  # the last of an epoch
        (13, signal.SIGUSR1, 143),  # within one, between two logged steps
        (14, signal.SIGTERM, 143),  # an evaluation is due
        (29, signal.SIGTERM, 143),  # the last of all
    ],
)
def test_a_signal_in_a_step_and_a_resume_give_the_run_that_was_never_stopped(
    tmp_path: Path,
    tiny_bert: Path,
    whole: TrainResult,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
    code: int,
) -> None:
    file = experiment(tmp_path, tiny_bert)
    signalled_in_step(monkeypatch, step, number)
    with pytest.raises(
        Interrupted, match=f"{number.name}: ended after step {step + 1} of 30: a checkpoint was"
    ) as told:
        train(read(file), RunOptions())
    monkeypatch.undo()
    assert told.value.exit_code == code
    assert (tmp_path / "run" / f"checkpoint-{step + 1}").is_dir()
    assert not (tmp_path / "run" / "adapter").exists()
    assert_same_run(whole, train(read(file), RunOptions(resume=True)))


@pytest.mark.parametrize("batch", [3, 7])
def test_an_evaluation_that_was_given_up_is_made_up_for(
    tmp_path: Path, tiny_bert: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    file = experiment(tmp_path, tiny_bert)
    signalled_in_evaluation(monkeypatch, batch)
    with pytest.raises(Interrupted, match="SIGTERM: ended after") as told:
        train(read(file), RunOptions())
    monkeypatch.undo()
    if batch < 7:
        assert f"ended after step {5 * batch} of 30" in str(told.value)
    else:
        assert "ended after the last step, before the adapter was written. A checkpoint is in" in str(told.value)
    assert_same_run(whole, train(read(file), RunOptions(auto_resume=True)))


def test_a_run_moved_elsewhere_finds_its_best_checkpoint_and_one_curve_stays_one(
    tmp_path: Path, tiny_bert: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = experiment(tmp_path / "here", tiny_bert)
    signalled_in_step(monkeypatch, 27, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(read(first), RunOptions())
    monkeypatch.undo()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = train(read(tmp_path / "there" / "recipe.yaml"), RunOptions(resume=True))
    assert_same_run(whole, moved)
    both = [EventAccumulator(str(one.folder.parent / "tensorboard")).Reload() for one in (whole, moved)]
    for tag in ("train/loss", "train/grad_norm", "eval/accuracy"):
        told = [[(event.step, event.value) for event in one.Scalars(tag)] for one in both]
        assert told[0] == told[1]
        assert told[0]


def test_going_on_reads_no_row_that_was_learned_before(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment(tmp_path, tiny_bert)
    signalled_in_step(monkeypatch, 18, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(read(file), RunOptions())
    monkeypatch.undo()
    rows: list[int] = []
    get = FilledRows.__getitems__
    monkeypatch.setattr(FilledRows, "__getitems__", lambda split, numbers: rows.extend(numbers) or get(split, numbers))
    train(read(file, "checks.worst-batch-first=false"), RunOptions(resume=True))
    # 3 of 11 steps are left of the second epoch: 32 rows of 128; 8 of 11 of the third, and one batch ahead
    assert len(rows) == 32 + 8 * 12 + 4


@pytest.mark.parametrize("logging", ["epoch", "steps"])
def test_a_checkpoint_of_a_last_step_brings_the_end_of_its_epoch_back(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, logging: str
) -> None:
    """Saved by steps, evaluated by epochs: the evaluation of the epoch comes after the checkpoint of its last step."""
    words = {
        "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 16, "eval_strategy": "epoch",
        "load_best_model_at_end": False, "logging_strategy": logging, "logging_steps": 5,
    }  # fmt: skip
    uncut = train(read(write_recipe(tmp_path / "whole", tiny_bert, training_args=words)), RunOptions())
    file = write_recipe(tmp_path / "cut", tiny_bert, training_args=words)

    def burns(*_: Any, **__: Any) -> None:
        raise RunError("the machine burnt down")

    monkeypatch.setattr(ResumableTrainer, "_evaluate", burns)
    with pytest.raises(RunError, match="burnt"):
        train(read(file), RunOptions())
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "cut" / "run")] == ["checkpoint-16"]
    assert_same_run(uncut, train(read(file), RunOptions(resume=True)))


def test_adalora_goes_on_with_what_it_knows_of_its_ranks(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"peft_type": "ADALORA", "init_r": 6, "target_r": 2, "tinit": 4, "tfinal": 12, "deltaT": 2}
    files = []
    for name in ("whole", "cut"):
        files.append(write_recipe(tmp_path / name, tiny_bert, training_args={"num_train_epochs": 2}))
        content = json.loads(files[-1].read_text(encoding="utf-8"))
        content["peft_config"] = {**plan, "target_modules": "all-linear"}
        files[-1].write_text(json.dumps(content), encoding="utf-8")
    uncut = train(read(files[0]), RunOptions())
    signalled_in_step(monkeypatch, 11, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(read(files[1]), RunOptions())
    monkeypatch.undo()
    assert_same_run(uncut, train(read(files[1]), RunOptions(resume=True)))


def test_smaller_batches_go_on_where_a_step_learns_of_as_many_rows(
    tmp_path: Path, tiny_bert: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment(tmp_path, tiny_bert)
    signalled_in_step(monkeypatch, 3, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(read(file), RunOptions())
    monkeypatch.undo()
    with pytest.raises(AdapterError, match=r"learned of 12 rows on 1 processes, now it would be 6 on 1\. Set training"):
        train(read(file, "training_args.per_device_train_batch_size=2"), RunOptions(resume=True))
    smaller = (
        "training_args.per_device_train_batch_size=2", "training_args.gradient_accumulation_steps=6",
        "training_args.per_device_eval_batch_size=5",
    )  # fmt: skip
    resumed = train(read(file, *smaller), RunOptions(resume=True))
    assert resumed.manifest is not None
    assert resumed.manifest.run["steps"] == whole.manifest.run["steps"]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A run folder with the best checkpoint and that of step 20, and no adapter."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as monkeypatch:
        signalled_in_step(monkeypatch, 19, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(read(experiment(folder, tiny_bert)), RunOptions())
    _, newest = checkpoints(folder / "run")
    assert newest.name == "checkpoint-20"
    return folder


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copied"))


def test_other_rows_are_refused(copied: Path) -> None:
    write_reviews(copied / "data" / "dev.csv", 32, seed=3)
    with pytest.raises(AdapterError, match=r"checkpoint-20: the validation rows are not those of the checkpoint"):
        train(read(copied / "recipe.yaml"), RunOptions(resume=True))


def test_the_same_base_in_another_place_goes_on(
    copied: Path, tmp_path: Path, tiny_bert: Path, whole: TrainResult
) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    file = copied / "recipe.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(str(tiny_bert), str(base)), encoding="utf-8")
    assert_same_run(whole, train(read(file), RunOptions(resume=True)))


def test_a_base_whose_weights_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base")
    file = experiment(tmp_path, base)
    signalled_in_step(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(read(file), RunOptions())
    monkeypatch.undo()
    shutil.rmtree(base)
    make_base(base, seed=1)
    with pytest.raises(AdapterError, match=r"the base is not the one of the checkpoint \(weights differ"):
        train(read(file), RunOptions(resume=True))


def test_a_checkpoint_without_an_optimizer_is_refused(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment(tmp_path, tiny_bert, save_only_model=True)

    def fails(*_: Any) -> None:
        raise RunError("the machine burnt down")

    monkeypatch.setattr("lora_ft.train.run.finish", lambda *_, **__: fails())
    with pytest.raises(RunError, match="burnt"):
        train(read(file), RunOptions())
    monkeypatch.undo()
    with pytest.raises(AdapterError, match=r"holds the adapter alone, no optimizer"):
        train(read(file), RunOptions(resume=True))
