"""`lora-ft data preview` from outside."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.assemble.test_previewed import media_recipe
from tests.cli.calls import Run
from tests.toy import write_recipe

WAYS = {"variants": 2, "random_deletion": 0.2, "random_swap": 0.2}


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "data", "preview")


def test_the_terminal_shows_rows_variants_and_what_the_model_gets(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    code, out, _ = run(write_recipe(tmp_path, tiny_bert, augmentation=WAYS), "--rows", 2)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "recipe.yaml: text-classification, 2 of 128 train rows"
    assert lines[1].startswith("train: 256 varied rows beside the 128 of the data (random_deletion ")
    assert sum("train.csv, row " in line for line in lines) == 2
    assert sum(line.startswith("  variant ") for line in lines) == 4
    assert sum(line.startswith("    the model gets: [CLS] ") and "tokens" in line for line in lines) == 6
    assert "{-" in out
    assert "to see or hear it" not in out


def test_a_long_text_is_shortened_on_the_terminal(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert)
    (tmp_path / "data" / "train.csv").write_text(
        f"text,label\n{'good ' * 400},positive\n{'bad ' * 400},negative\n", encoding="utf-8"
    )
    _, out, _ = run(recipe)
    assert max(map(len, out.splitlines())) < 2000
    assert "more characters" in out
    assert "32 tokens; cut off: " in out


def test_other_splits_show_that_nothing_is_varied(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    code, out, _ = run(write_recipe(tmp_path, tiny_bert, augmentation=WAYS), "--split", "validation", "--rows", 1)
    assert code == 0
    assert "validation: nothing is varied; only training rows are" in out
    assert "variant" not in out


def test_pictures_are_described_and_the_page_shows_them(run: Run, tmp_path: Path) -> None:
    recipe = media_recipe(tmp_path, "image-classification", "single_label_classification", "vit", horizontal_flip=0.5)
    code, out, _ = run(recipe, "--rows", 1)
    assert code == 0
    assert "48 x 48 pixels" in out
    assert "  epoch 3" in out
    assert out.splitlines()[-1] == "to see or hear it: --html FILE"
    page = tmp_path / "page.html"
    code, out, _ = run(recipe, "--rows", 2, "--html", page)
    assert (code, out.strip()) == (0, f"2 of 4 train rows: {page}")
    assert page.read_text(encoding="utf-8").count("<img") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validaton"], "Did you mean 'validation'? It has: train, validation"),
        (["--html", "absent/page.html"], "there is no folder absent"),
        (["--rows", "0"], "0 is not in the range x>=1"),
        (["augmentation.random_swap=2"], "expected a number at least 0 and at most 1"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    run: Run, tmp_path: Path, tiny_bert: Path, arguments: list[str], message: str
) -> None:
    code, _, err = run(write_recipe(tmp_path, tiny_bert), *arguments)
    assert code == 2
    assert message in err


def test_nothing_is_written_and_weights_play_no_part(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, augmentation=WAYS)
    base = tmp_path / "bare"
    base.mkdir()
    for file in tiny_bert.iterdir():
        content = file.read_bytes()
        if file.suffix == ".safetensors":  # its header, and nothing but ones that are no numbers behind it
            header = 8 + int.from_bytes(content[:8], "little")
            content = content[:header] + b"\xff" * (len(content) - header)
        (base / file.name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    _, expected, _ = run(recipe)
    code, out, err = run(recipe, f"model.pretrained_model_name_or_path={base}")
    assert code == 0, err
    assert out == expected
    assert sorted(tmp_path.rglob("*")) == before
