"""The last line of a run: a command to try next that works as it stands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.cli.recipes import predict_command
from lora_ft.tasks.base import load_task
from tests.cli.calls import Run
from tests.toy import write_recipe

TEXTS = [f"the {thing} was good and my pan is soft and nice ." for thing in ("book", "pan", "cable", "phone")]
QUESTIONS = [{"question": "what was good", "context": text, "answers": text.split()[1]} for text in TEXTS]
FEW = {"num_train_epochs": 3, "per_device_train_batch_size": 4}


def _trained(run: Run, folder: Path, base: Path, rows: list[dict[str, Any]], **sections: Any) -> str:
    recipe = write_recipe(
        folder, base, dataset={"data_files": {"train": "rows.jsonl", "validation": "rows.jsonl"}}, **sections
    )
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content["dataset"]["data_files"]["validation"] = "more.jsonl"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    for name in ("rows", "more"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    code, out, error = run("train", recipe)
    assert code == 0, error
    return out.splitlines()[-1].strip()


def _answer(run: Run, command: str) -> Mapping[str, Any]:
    """What the command prints; a pipe is done by hand."""
    words = shlex.split(command)
    stdin = None
    if words[0] == "echo":
        stdin, words = words[1] + "\n", words[3:]
    code, out, error = run(*words[1:], "--offline", stdin=stdin)
    assert code == 0, error
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_next_command_of_questions_and_of_gaps_works(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    for folder in ("qa", "mask"):
        (tmp_path / folder).mkdir()
    asked = _trained(run, tmp_path / "qa", tiny_bert, QUESTIONS, task="question-answering", training_args=FEW)
    assert asked.startswith("echo ")
    assert "answer" in _answer(run, asked)
    rows = [{"text": text} for text in TEXTS]
    filled = _trained(run, tmp_path / "mask", tiny_bert, rows, task="fill-mask", training_args=FEW)
    assert "[MASK]" in filled
    assert len(_answer(run, filled)["predictions"]) == 1


def test_a_pair_is_given_as_a_row_and_a_photo_as_a_file() -> None:
    pair = predict_command("a b/adapter", load_task("text-classification"), needed=["text", "text_pair"], example="x")
    assert (
        pair
        == """echo '{"text": "a new text", "text_pair": "a new text_pair"}' | lora-ft predict 'a b/adapter' --input -"""
    )
    photo = predict_command("run", load_task("image-classification"), needed=["image"], example="photo.jpg")
    assert photo == "lora-ft predict run photo.jpg"
