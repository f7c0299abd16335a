"""Ours learns what plain peft learns, step by step, on the same batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lean.same_curve import curves
from tests.bases import make_base
from tests.toy import read, write_recipe

STEPS = 10


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    """A recipe of text generation on the toy reviews' texts as completions."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "the {thing} was", "completion": " good and {word} ."}}\n' for thing, word in PAIRS),
        encoding="utf-8",
    )
    base = make_base(tmp_path / "llama", "llama", auto_class="AutoModelForCausalLM")
    return write_recipe(
        tmp_path,
        base,
        task="text-generation",
        dataset={"data_files": {"train": str(rows)}},  # type: ignore[arg-type]
    )


PAIRS = [(thing, word) for thing in ("pan", "book", "shirt", "cable") for word in ("soft", "fast", "sturdy", "cheap")]


def test_first_losses_of_a_classifier_are_those_of_plain_peft(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, make_base(tmp_path / "bert"))
    ours, plain = curves(read(file), steps=STEPS)
    assert ours == pytest.approx(plain, abs=1e-4)
    assert abs(ours[-1] - ours[0]) > 1e-3


def test_first_losses_of_a_language_model_are_those_of_plain_peft(generation: Path) -> None:
    ours, plain = curves(read(generation), steps=STEPS)
    assert ours == pytest.approx(plain, abs=1e-4)
    assert ours[-1] < ours[0] - 0.1
