"""What `lora-ft check` says of the augmentation of texts, without torch: what is missing, and rows that it would spoil."""

# ruff: noqa: E501 - a message is compared on the line that it is

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.stub import TEXT_GENERATION, fault, faults, of_task, read, write_files

CHAT = of_task(TEXT_GENERATION, "plain.txt")
ASKED = of_task(TEXT_GENERATION, "asked.csv")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path) -> None:
    write_files(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["augmentation.variants=2"],
            "nothing says how texts are varied. Write one or more of random_deletion, synonym_replacement, back_translation, or leave the section out",
        ),
        (["augmentation={variants: 0, random_deletion: 0.1}"], "expected a number at least 1"),
        (["augmentation.random_deletion=1.5"], "expected a number at least 0 and at most 1"),
        (["augmentation.random_deletio=0.1"], "has no key 'random_deletio'. Did you mean 'random_deletion'?"),
        (["augmentation.synonym_replacement=0.1"], "it needs a file of synonyms. Write augmentation.synonyms: "),
        (
            ["augmentation={random_deletion: 0.1, synonyms: words.tsv}"],
            "it has no effect without augmentation.synonym_replacement. Write it (0.1), or leave the file out",
        ),
        (["augmentation={synonym_replacement: 0.1, synonyms: wrods.tsv}"], "there is no such file. Did you mean 'words.tsv'?"),
        (["augmentation={synonym_replacement: 0.1, synonyms: plain.txt}"], "expected a file of synonyms: .dat, .tsv, .jsonl"),
        (["augmentation.back_translation=translate"], "expected package.module:function, such as my_translator:there_and_back"),
        (["augmentation.back_translation='no_such_module:back'"], "there is no module no_such_module, neither on the Python path nor"),
        (
            ["augmentation.random_deletion=0.1", "dataset.columns={text: a}"],
            "of rows with text every word is learned, and what is varied would be learned as right. Only prompt of other rows",
        ),
    ],
)  # fmt: skip
def test_a_fault_says_what_to_write(tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "words.tsv").write_text("big\tlarge\n", encoding="utf-8")
    found = faults(tmp_path, *overrides, text=CHAT)
    assert any(message in one for one in found), found


def test_the_file_of_synonyms_starts_at_the_recipe_and_a_module_may_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("big\tlarge\n", encoding="utf-8")
    (tmp_path / "there_and_back.py").write_text("raise SystemExit('a check runs nothing')\n", encoding="utf-8")
    section = "augmentation={synonym_replacement: 0.1, synonyms: words.tsv, back_translation: 'there_and_back:turn'}"
    recipe = read(tmp_path, section, text=ASKED)
    assert recipe.augmentation["synonyms"] == str(tmp_path / "words.tsv")


def test_one_fault_is_told_once(tmp_path: Path) -> None:
    assert "expected a number at least 0" in fault(tmp_path, "augmentation.random_deletion=-1", text=ASKED)
