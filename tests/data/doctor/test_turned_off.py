"""What a recipe turns off is neither said nor, where it is a whole check, computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_ft.assemble import examined_texts
from lora_ft.assemble.examined import examine
from lora_ft.assemble.examined_short import examined_in_short
from lora_ft.assemble.prepare import prepare
from lora_ft.cli.main import main
from lora_ft.data.doctor.duplicates import DuplicateCheck
from lora_ft.data.doctor.images import ImageCheck
from lora_ft.data.doctor.media_names import IMAGE_FINDINGS
from lora_ft.recipe.check_names import FINDINGS
from tests.bases import make_base
from tests.data.doctor.seeded import seeded_rows
from tests.toy import read, write_recipe


def recipe_without(folder: Path, base: Path, names: Sequence[str]) -> Path:
    files = {split: str(file) for split, file in seeded_rows().write(folder).items()}
    return write_recipe(folder, base, dataset={"data_files": files}, checks=dict.fromkeys(names, False))


def test_every_finding_can_be_turned_off(tmp_path: Path, tiny_bert: Path) -> None:
    found = examine(read(recipe_without(tmp_path, tiny_bert, FINDINGS)))
    assert found.findings == []
    assert sorted(found.off) == sorted(FINDINGS)
    assert found.splits["train"].labels["positive"] > 300  # what is counted is counted all the same


@pytest.mark.parametrize("name", ["mojibake", "near-duplicates", "rare-labels", "boilerplate", "unexpected-language"])
def test_one_finding_turned_off_leaves_all_others(tmp_path: Path, tiny_bert: Path, name: str) -> None:
    all_of_them = {one.name for one in examine(read(recipe_without(tmp_path, tiny_bert, ()))).findings}
    rest = {one.name for one in examine(read(recipe_without(tmp_path, tiny_bert, [name]))).findings}
    assert name in all_of_them
    assert rest == all_of_them - {name}


def test_whole_checks_that_are_turned_off_cost_nothing(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> object:
        raise AssertionError("was turned off")

    monkeypatch.setattr(DuplicateCheck, "_bands", never)
    for check in ("ScriptCheck", "LanguageCheck", "BoilerplateCheck"):
        monkeypatch.setattr(getattr(examined_texts, check), "add", never)
    off = [
        "near-duplicates", "near-leakage", "unexpected-script", "mixed-script-words", "unexpected-language",
        "boilerplate",
    ]  # fmt: skip
    names = {one.name for one in examine(read(recipe_without(tmp_path, tiny_bert, off))).findings}
    assert {"exact-duplicates", "exact-leakage", "mojibake"} <= names


def test_images_are_not_opened_where_all_of_their_findings_are_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> object:
        raise AssertionError("was turned off")

    from PIL import Image

    for row in range(6):
        Image.new("RGB", (32, 32), (40 * row, 0, 0)).save(tmp_path / f"{row}.png")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    for file in files.values():
        lines = ["image,label", *(f"{row}.png,{'ab'[row % 2]}" for row in range(6))]
        Path(file).write_text("\n".join(lines), encoding="utf-8")
    base = make_base(tmp_path / "vit", "vit")
    recipe = write_recipe(
        tmp_path, base, task="image-classification", dataset={"data_files": files},
        checks=dict.fromkeys(IMAGE_FINDINGS, False),
    )  # fmt: skip
    recipe.write_text(recipe.read_text(encoding="utf-8").replace('"max_length": 32', ""), encoding="utf-8")
    monkeypatch.setattr(ImageCheck, "add", never)
    assert {one.name for one in examine(read(recipe)).findings} <= {"rare-labels"}


def test_the_short_look_does_not_say_what_is_turned_off(tmp_path: Path, tiny_bert: Path) -> None:
    rows = seeded_rows()
    rows.rows["validation"] = rows.rows["validation"][:150]
    rows.rows["train"] = [(text, label) for text, label in rows.rows["train"] if label in ("positive", "negative")]
    files = {split: str(file) for split, file in rows.write(tmp_path).items()}
    kept = examined_in_short(prepare(read(write_recipe(tmp_path, tiny_bert, dataset={"data_files": files}))))
    off = {"left-over-html": False, "conflicting-labels": False}
    silent = write_recipe(tmp_path, tiny_bert, dataset={"data_files": files}, checks=off)
    fewer = examined_in_short(prepare(read(silent)))
    gone = [line for line in kept if line not in fewer]
    assert len(gone) == 2
    assert all("left-over-html" in line or "conflicting-labels" in line for line in gone)


def test_the_report_before_training_does_not_say_what_is_turned_off(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert)
    train = (tmp_path / "data" / "train.csv").read_text(encoding="utf-8")
    validation = "".join(line for line in train.splitlines(keepends=True)[:9] if not line.endswith("negative\n"))
    (tmp_path / "data" / "dev.csv").write_text(validation + '" ",positive\n', encoding="utf-8")
    said = prepare(read(recipe)).report.notes
    assert len([note for note in said if "empty text" in note or "in the training rows too" in note]) == 2
    assert any("no row of label" in note for note in said)
    off = dict.fromkeys(("empty-texts", "exact-leakage", "absent-labels"), False)
    assert prepare(read(write_recipe_again(tmp_path, tiny_bert, validation, off))).report.notes == ()


def write_recipe_again(folder: Path, base: Path, validation: str, off: dict[str, bool]) -> Path:
    recipe = write_recipe(folder, base, checks=off)
    (folder / "data" / "dev.csv").write_text(validation + '" ",positive\n', encoding="utf-8")
    return recipe


def test_json_and_page_and_table_say_what_is_turned_off(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, page = recipe_without(tmp_path, tiny_bert, ["mojibake"]), tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["lora-ft", "data", "check", str(recipe), "--html", str(page), "--json"])
    main()
    assert json.loads(capsys.readouterr().out)["checks_off"] == ["mojibake"]
    assert "Turned off in the recipe: mojibake." in page.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["lora-ft", "data", "check", str(recipe)])
    main()
    assert "turned off in the recipe: mojibake" in capsys.readouterr().out


def test_label_errors_that_are_turned_off_and_asked_for_are_refused(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_without(tmp_path, tiny_bert, ["probable-label-errors"])
    monkeypatch.setattr(sys, "argv", ["lora-ft", "data", "check", str(recipe), "--label-errors"])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 2
    assert "checks.probable-label-errors: false" in capsys.readouterr().err
