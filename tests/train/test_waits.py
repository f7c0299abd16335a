"""A step asks no tensor for its value: on a GPU each such question waits for all that was computed before it."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.toy import read, write_recipe

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")
ON_THE_CPU = ("get_batch_samples",)
"""Where batches are put together, before they are sent to a device."""
NOT_EACH_STEP = ("look", "_maybe_log_save_evaluate", "on_pre_optimizer_step")
"""The losses (every ten steps on a GPU), what is logged, and the gradients of the first steps."""
THEIRS = ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa")
"""transformers (5.23) looks whether a batch is padded at all; a mask that is not needed is dropped."""


class Questions(TorchDispatchMode):
    """Remembers from where tensors are asked for their values."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in WAITS:
            self.asked.append([frame.name for frame in traceback.extract_stack()])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "task"), [("bert", "text-classification"), ("gpt2", "text-classification")])
def test_a_step_waits_for_nothing(tmp_path: Path, kind: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Questions()
    whole = ResumableTrainer._run_epoch

    def _run_epoch(trainer: Any, **context: Any) -> None:
        with questions:
            whole(trainer, **context)

    monkeypatch.setattr(ResumableTrainer, "_run_epoch", _run_epoch)
    arguments = {"max_steps": 8, "eval_strategy": "no", "save_strategy": "no", "gradient_accumulation_steps": 2}
    recipe = write_recipe(tmp_path, make_base(tmp_path / "base", kind), task=task, training_args=arguments)
    train(read(recipe), RunOptions())
    passed = {*ON_THE_CPU, *NOT_EACH_STEP, *THEIRS}
    assert any("look" in frames for frames in questions.asked), "what is asked is seen"
    assert [frames[-4:] for frames in questions.asked if not passed & set(frames)] == []
