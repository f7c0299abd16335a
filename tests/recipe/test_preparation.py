"""`lora-ft check` knows what is wrong with a preparation, without torch and before anything is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_ft.recipe.mixing import source_of
from lora_ft.recipe.read import read_recipe, resolved_yaml
from lora_ft.recipe.schema import TEXT_STEPS, PreparationSection
from tests.recipe.prepared_wrong import ALONE, PHOTOS, TAGS
from tests.recipe.stub import GOOD, TASKS, TEXT_GENERATION, fault, faults, of_task, read, write, write_files

SHARE = ALONE.replace("train.csv", "train.csv\n  validation: 0.2")
TWO = "dataset.data_files.train=[train.csv, more.csv]"

WRONG = [
    (TAGS, "preparation.lowercase=true", "the labels of token-classification are places in its texts, and rewriting a"),
    (PHOTOS, "preparation.lowercase=true", "image-classification has no texts that may be rewritten. Leave it out"),
    (PHOTOS, "preparation.deduplicate=near", "image-classification is not given texts to look at. Leave it out"),
    (GOOD, "preparation.lowercas=true", "preparation has no key 'lowercas'. Did you mean 'lowercase'?"),
    (GOOD, "preparation.lowercase=yes", "expected true or false. YAML 1.2 reads yes as text: write true"),
    (GOOD, "preparation.normalization=NFKX", "expected one of 'NFC', 'NFKC', 'NFD', 'NFKD' or null. Did you mean 'NFK"),
    (GOOD, "preparation.replace=[[a, b, c]]", "expected a list of 2 (text, text)"),
    (GOOD, "preparation.replace=[['(', x]]", "'(' -> 'x' is no replacement by Python's `re`: missing ), unterminated"),
    (GOOD, r"preparation.replace=[[a, '\1']]", "is no replacement by Python's `re`: invalid group reference 1 at"),
    (GOOD, r"preparation.replace=[[a, '\g<x>']]", "is no replacement by Python's `re`: unknown group name 'x'"),
    (GOOD, "preparation.replace=[['a{99999999999}', b]]", "is no replacement by Python's `re`: the repetition number"),
    (GOOD, "preparation.min_words=0", "expected a number at least 1"),
    (GOOD, "preparation={min_words: 5, max_words: 4}", "it is above max_words = 4, and no row would be left. Lower it"),
    (GOOD, "preparation.languages=[english]", "expected the code of a language, as en, de or zh (ISO 639)"),
    (GOOD, "preparation.languages=en", "expected a list (text each). Write [en]"),
    (GOOD, "preparation.language_threshold=0.5", "it needs preparation.languages. Leave it out"),
    (ALONE, "preparation.decontaminate=exact", "there is neither a validation nor a test split to compare with. Leave"),
    (GOOD, "preparation.sample=2.5", "expected a whole number of rows, or below 1 a share of them"),
    (GOOD, "preparation.sample=0", "expected a number above 0"),
    (GOOD, "preparation.stopping_strategy=all_exhausted", "it needs preparation.mixing_weights. Leave it out"),
    (GOOD, "preparation.mixing_weights={train.csv: 1}", "one source alone is not mixed. Give several files a weight"),
    (GOOD, "preparation.mixing_weights={trian.csv: 1}", "there is no such file. Did you mean 'train.csv'?"),
    (GOOD, "dataset.group=review", "it says how rows are split off, and none are. Write dataset.validation or dataset"),
    (SHARE, "dataset.group=reviw", "train.csv has no column 'reviw'. Did you mean 'review'? Its columns: text, label"),
    (SHARE, "dataset.time=day", "train.csv has no column 'day'. Its columns: text, label, review, stars, pair"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "override", "message"), WRONG, ids=lambda one: one[:40])
def test_a_wrong_preparation_is_told_with_what_to_do(tmp_path: Path, text: str, override: str, message: str) -> None:
    write_files(tmp_path)
    found = faults(tmp_path, override, text=text)
    assert any(message in one for one in found), found
    assert all(one.startswith(f"override {override}") for one in found)


def test_all_of_several_wrong_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text,label\nfine,pos\n")
    (tmp_path / "other.csv").write_text("text,label\nfine,pos\n")
    found = faults(tmp_path, TWO, "preparation.mixing_weights={train.csv: 0, other.csv: 1}")
    assert [one.partition("}: ")[2] for one in found] == [
        "preparation.mixing_weights.train.csv = 0: expected a weight above 0; to leave a file out, take it out",
        "more.csv has no weight. Give each training file one",
        "preparation.mixing_weights.other.csv = 1: it is none of the training files. Did you mean 'more.csv'? Take it "
        "out",
    ]


def test_turns_of_a_chat_are_not_rewritten(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    text = of_task(TEXT_GENERATION, "chat.jsonl")
    found = fault(tmp_path, "preparation.strip_html=true", "dataset.columns.messages=messages", text=text)
    assert "the rows are chats, whose turns are kept as they are. Leave it out" in found


def test_group_and_time_exclude_each_other(tmp_path: Path) -> None:
    found = fault(tmp_path, "dataset.group=review", "dataset.time=stars", text=SHARE)
    assert "group and time exclude each other" in found


def test_a_preparation_is_read_and_written_back_whole(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text,label\nfine,pos\n")
    given = (
        "preparation={fix_encoding: true, normalization: NFC, replace_urls: '', replace: [[a, b]], stop_words: [the], "
        "languages: [en], min_words: 2, sample: 0.5, mixing_weights: {train.csv: 3, 'mor*.csv': 1}}"
    )
    recipe = read(tmp_path, given, TWO)
    assert recipe.preparation == PreparationSection(
        fix_encoding=True, normalization="NFC", replace_urls="", replace=(("a", "b"),), stop_words=("the",),
        languages=("en",), min_words=2, sample=0.5,
        mixing_weights={str(tmp_path / "train.csv"): 3, str(tmp_path / "mor*.csv"): 1},
    )  # fmt: skip
    again = tmp_path / "elsewhere" / "recipe.yaml"
    again.parent.mkdir()
    again.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert read_recipe(again, tasks=TASKS).preparation == recipe.preparation


def test_without_the_section_nothing_is_prepared(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert recipe.preparation == PreparationSection()
    assert "preparation" not in resolved_yaml(recipe)


def test_the_order_of_the_text_steps_is_that_of_the_words() -> None:
    fields = list(PreparationSection.__dataclass_fields__)
    assert fields[: len(TEXT_STEPS)] == list(TEXT_STEPS)


def test_a_file_belongs_to_the_first_key_that_names_it() -> None:
    keys = ["/d/a.csv", "/d/photos", "/d/b-*.csv"]
    found = [source_of(file, keys) for file in ("/d/a.csv", "/d/photos/cat/1.jpg", "/d/b-7.csv", "/d/c.csv")]
    assert found == [*keys, None]


def test_the_check_of_a_preparation_imports_neither_torch_nor_the_libraries_of_its_steps(tmp_path: Path) -> None:
    file = write(tmp_path)
    asked = (
        "import atexit, sys\n"
        "heavy = {'torch', 'datasets', 'ftfy', 'sklearn', 'py3langid'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        "from lora_ft.cli.main import main\n"
        f"sys.argv = ['lora-ft', 'check', {str(file)!r}, 'preparation.lowercase=true', 'preparation.min_words=0']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
    assert "preparation.min_words=0: expected a number at least 1" in done.stdout + done.stderr
