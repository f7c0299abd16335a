"""What is refused at once: before torch is there, with one message and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.cli.hints import file_hint, hinted
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Problem
from tests.bases import tiny_tokenizer
from tests.cli.calls import ROOT, refused
from tests.toy import write_recipe, write_reviews


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    recipe = write_recipe(folder, tiny_bert)
    subprocess.run([sys.executable, "-m", "lora_ft", "train", str(recipe)], check=True, cwd=ROOT, capture_output=True)
    return folder / "run"


def test_what_cannot_be_done_is_refused_before_torch(adapter: Path, tmp_path: Path) -> None:
    rows = write_reviews(tmp_path / "rows.csv", 4, seed=1)
    other = tmp_path / "other" / "adapter"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine", encoding="utf-8")
    recipe = adapter.parent / "recipe.yaml"
    told = refused(
        ["predict", adapter, "a text", "--output", tmp_path / "no" / "answers.jsonl"],
        ["predict", adapter, "a text", "--stream"],
        ["predict", adapter, "a text", "--pictures", tmp_path],
        ["evaluate", adapter, "--data", rows, "--split", "validation"],
        ["evaluate", adapter, "--data", tmp_path / "no.csv"],
        ["evaluate", adapter, "--split", "test"],
        ["evaluate", adapter, "--predictions", tmp_path / "no" / "p.jsonl"],
        ["train", recipe, f"training_args.output_dir={other.parent}", "--overwrite"],
    )
    expected = (
        "there is no folder", "--stream: text-classification generates no text", "has nothing to draw",
        "Give one of them", "no.csv: there is no such file", "has: train, validation", "there is no folder",
        "is no adapter folder; it is never deleted",
    )  # fmt: skip
    for message, words in zip(told, expected, strict=True):
        assert words in message
    assert (other / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_image_that_is_not_there_is_refused_before_torch(adapter: Path, tmp_path: Path) -> None:
    """The folder of another task is enough: nothing of it is opened."""
    from dataclasses import replace

    from lora_ft.adapters.verify import read_manifest
    from lora_ft.cli.refusals import refuse_question
    from lora_ft.errors import InputError

    manifest = replace(read_manifest(adapter / "adapter"), task="image-classification")
    (tmp_path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    with pytest.raises(InputError, match=r"no\.jpg: there is no such file or folder"):
        refuse_question(tmp_path, ["no.jpg"], stream=False, pictures=None)
    refuse_question(tmp_path, [str(tmp_path)], stream=False, pictures=None)


@pytest.mark.parametrize(
    ("word", "is_file"),
    [
        ("photo.jpg", True),
        ("a/b.WAV", True),
        ("rows.csv", True),
        ("see photo.jpg", False),
        ("fine.", False),
        ("", False),
    ],
)
def test_a_text_that_looks_like_a_file_is_said_once(word: str, is_file: bool) -> None:
    assert (file_hint(word) is not None) == is_file


def test_a_text_without_a_gap_names_the_mask_token_once(capsys: pytest.CaptureFixture[str]) -> None:
    task, problem = load_task("fill-mask"), Problem("masked_language_modeling", (), tiny_tokenizer(), {})
    rows = [{"text": "a [MASK] book"}, {"text": "a book"}, {"text": "a pan"}]
    assert list(hinted(rows, task, problem, words=True)) == rows
    assert capsys.readouterr().err.splitlines() == [
        "there is no [MASK] in the text, so nothing is filled in. Write [MASK] where a word is to be found"
    ]
    assert list(hinted(rows[:1], task, problem, words=True)) == rows[:1]
    assert capsys.readouterr().err == ""
