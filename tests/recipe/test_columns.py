"""Which columns rows must have: by sets, by what the recipe names, and by what each kind of file gives."""

# ruff: noqa: E501 - a message is compared on the line that it is

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.columns import choose_set
from lora_ft.errors import DataError
from lora_ft.recipe.column_sets import possible_sets
from lora_ft.recipe.schema import TaskFacts
from tests.recipe.stub import (
    FILES,
    IMAGE_CLASSIFICATION,
    OBJECT_DETECTION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    fault,
    faults,
    of_task,
    read,
    write_files,
)

CHAT_SETS = "text, or prompt + completion, or messages"


@pytest.mark.parametrize(
    ("task", "file", "overrides"),
    [
        (TOKEN_CLASSIFICATION, "words.conll", []),
        (TOKEN_CLASSIFICATION, "spans.jsonl", []),
        (TEXT_GENERATION, "plain.txt", ["dataset.sample_by=document"]),
        (TEXT_GENERATION, "asked.csv", []),
        (TEXT_GENERATION, "asked.csv", ["dataset.columns={prompt: question}"]),
        (TEXT_GENERATION, "asked.csv", ["dataset.columns={text: question}"]),
        (IMAGE_CLASSIFICATION, "photos", ["dataset.media_dir=photos"]),
        (OBJECT_DETECTION, "coco.json", ["dataset.on_bad_row=skip"]),
    ],
    ids=str,
)
def test_rows_of_every_kind_that_a_task_reads_pass(
    tmp_path: Path, task: TaskFacts, file: str, overrides: list[str]
) -> None:
    write_files(tmp_path)
    recipe = read(tmp_path, *overrides, text=of_task(task, file))
    assert recipe.dataset.data_files == {"train": (str(tmp_path / file),)}
    if "media_dir" in str(overrides):
        assert recipe.dataset.media_dir == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("task", "file", "overrides", "message"),
    [
        (
            TEXT_GENERATION, "train.csv", ["dataset.columns={label: a}"],
            "dataset.columns of the task text-generation has no key 'label'. Known: text, prompt, completion, messages",
        ),
        (
            TEXT_GENERATION, "words.conll", [],
            f"x.yaml:6: dataset.columns: the task needs the columns {CHAT_SETS}, and words.conll has none of these sets. "
            "Write columns: {text: NAME}. Its columns: tokens, tags",
        ),
        (
            TEXT_GENERATION, "plain.txt", ["dataset.columns={prompt: text}"],
            "dataset.columns.completion: the task needs a column 'completion' (what is to be said), and "
            "plain.txt has none of that name. Write columns: {completion: NAME}. Its columns: text",
        ),
        (
            TEXT_GENERATION, "asked.csv", ["dataset.columns={prompt: question, text: completion}"],
            f"no row has all of these. Expected the columns of one kind: {CHAT_SETS}",
        ),
        (
            TOKEN_CLASSIFICATION, "spans.jsonl", ["model.problem_type=tokens", "dataset.columns={tokens: text}"],
            "the task needs a column 'tags' (one tag for each word), and spans.jsonl has none of that name. Write columns: "
            "{tags: NAME}. Its columns: text, spans",
        ),
        (
            TOKEN_CLASSIFICATION, "[words.conll, spans.jsonl]", [],
            "the files hold different kinds of rows. Expected all of them to have tokens + tags, or text + spans",
        ),
        (
            TOKEN_CLASSIFICATION, "words.conll", ["dataset.columns={id: name}"],
            "dataset.columns={id: name}: dataset.columns.id = 'name': words.conll has no column 'name'. "
            "Its columns: tokens, tags",
        ),
        (
            IMAGE_CLASSIFICATION, "sounds", [],
            "the task needs a column 'image' (the picture), and sounds has none of that name. Write columns: {image: NAME}. "
            "Its columns: audio, label",
        ),
        (
            OBJECT_DETECTION, "photos", [],
            "the task needs a column 'objects' (boxes with their classes), and photos has none of that name. Write columns: "
            "{objects: NAME}. Its columns: image, label",
        ),
        (
            TEXT_CLASSIFICATION, "photos", [],
            "x.yaml:7: dataset.data_files = 'photos': it is a folder. Expected files: write photos/*.csv",
        ),
        (
            IMAGE_CLASSIFICATION, "photos/cat", [],
            "the task needs a column 'label' (its class), and photos/cat has none of that name. Write columns: {label: NAME}. "
            "Its columns: image",
        ),
        (
            IMAGE_CLASSIFICATION, "empty", [],
            "empty: it is a folder without images (.jpg, ...) or sounds (.wav, ...). Expected a subfolder for each class, with "
            "files in it, or files: write empty/*.json",
        ),
    ],
)  # fmt: skip
def test_rows_that_a_task_does_not_read_are_one_fault(
    tmp_path: Path, task: TaskFacts, file: str, overrides: list[str], message: str
) -> None:
    write_files(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.json").write_text("[]")
    found = fault(tmp_path, *overrides, text=of_task(task, file))
    assert found.endswith(message), found


def test_a_folder_within_that_of_another_split_is_a_fault(tmp_path: Path) -> None:
    write_files(tmp_path)
    found = faults(tmp_path, text=of_task(IMAGE_CLASSIFICATION, "{train: photos, validation: photos/dog}"))
    assert found[1].endswith("dog lies in photos, which is the train split. Give each split a folder of its own")


def test_files_with_our_names_need_none_of_the_recipes_names(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "words.jsonl").write_text('{"words": ["EU"], "ner_tags": ["O"]}\n')
    text = of_task(TOKEN_CLASSIFICATION, "{train: words.jsonl, test: words.conll}")
    read(tmp_path, "dataset.columns={tokens: words, tags: ner_tags}", text=text)
    found = fault(tmp_path, "dataset.columns={tokens: words, tags: tag}", text=text)
    assert "words.jsonl has no column 'tag'" in found


def test_a_fault_of_the_sets_is_told_once_for_files_of_one_layout(tmp_path: Path) -> None:
    write_files(tmp_path)
    text = of_task(TEXT_GENERATION, "[words.conll, train.csv, dev.csv, spans.jsonl]")
    (tmp_path / "spans.jsonl").write_text('{"spans": []}\n')
    found = faults(tmp_path, "dataset.columns={completion: label}", text=text)
    assert (
        sum("the task needs a column 'prompt'" in one for one in found) == 4
    )  # one set is left: a fault for each file
    text = of_task(TEXT_GENERATION, "[spans.jsonl, words.conll, more.conll]")
    (tmp_path / "more.conll").write_text(FILES["words.conll"])
    assert len(faults(tmp_path, text=text)) == 2


def test_a_misspelt_column_is_not_reported_as_a_missing_one_too(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "asked.csv").write_text("question,answer\na,b\n")
    text = of_task(TEXT_GENERATION, "asked.csv")
    found = fault(tmp_path, "dataset.columns={promt: question, completion: answer}", text=text)
    assert found.endswith("has no key 'promt'. Did you mean 'prompt'?")


def test_a_right_column_with_a_near_name_does_not_hide_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("review,pair\na,b\n")
    found = fault(tmp_path, "dataset={data_files: other.csv, columns: {text: review, text_pair: pair}}")
    assert "the task needs a column 'label'" in found


def test_a_column_set_to_null_is_looked_for_under_our_name(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("review,label\na,b\n")
    found = fault(tmp_path, "dataset={data_files: other.csv, columns: {text: null}}")
    assert "the task needs a column 'text'" in found


def test_the_metric_follows_the_set_that_the_columns_name(tmp_path: Path) -> None:
    write_files(tmp_path)
    text = of_task(TOKEN_CLASSIFICATION, "words.conll")
    best = ["dataset.validation=0.1", "training_args.metric_for_best_model=accuracy"]
    read(tmp_path, *best, text=text)
    read(tmp_path, *best, "dataset.columns={tokens: tokens}", text=text)
    spans = of_task(TOKEN_CLASSIFICATION, "spans.jsonl")
    found = fault(tmp_path, *best, "dataset.columns={spans: spans}", text=spans)
    assert found.endswith("the problem type spans has no such metric. Known: f1, loss")
    arguments = read(tmp_path, best[0], "dataset.columns={spans: spans}", text=spans).training_args
    assert (arguments["metric_for_best_model"], arguments["greater_is_better"]) == ("f1", True)


def test_a_task_with_one_problem_type_names_its_metric(tmp_path: Path) -> None:
    write_files(tmp_path)
    text = of_task(OBJECT_DETECTION, "coco.json")
    assert read(tmp_path, "dataset.validation=0.1", text=text).training_args["metric_for_best_model"] == "map"
    read(tmp_path, "dataset.validation=0.1", "training_args.metric_for_best_model=map/cat", text=text)


NAMES = ("text", "prompt", "completion", "messages")


@given(st.sets(st.sampled_from(NAMES)))
def test_every_possible_set_has_all_mapped_names_and_none_is_left_out(mapped: set[str]) -> None:
    sets = TEXT_GENERATION.column_sets
    found = possible_sets(TEXT_GENERATION.columns, sets, mapped=mapped)
    assert list(found) == [kind for kind in sets if mapped <= set(sets[kind])]
    assert all(set(names) == set(sets[kind]) for kind, names in found.items())


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_the_data_room_chooses_the_first_possible_set_that_is_complete(mapped: set[str], available: set[str]) -> None:
    sets, columns = TEXT_GENERATION.column_sets, TEXT_GENERATION.columns
    possible = possible_sets(columns, sets, mapped=mapped)
    complete = [kind for kind, names in possible.items() if set(names) <= available]
    mapping = {name: name for name in mapped}
    if complete or len(possible) == 1:
        chosen = choose_set(columns, mapping, available=sorted(available), where="x", column_sets=sets)
        assert chosen == [*complete, *possible][0]
    else:
        with pytest.raises(DataError):
            choose_set(columns, mapping, available=sorted(available), where="x", column_sets=sets)


def test_a_required_column_outside_of_the_sets_belongs_to_all_of_them() -> None:
    columns = (*TOKEN_CLASSIFICATION.columns, TEXT_CLASSIFICATION.columns[2])
    found = possible_sets(columns, TOKEN_CLASSIFICATION.column_sets, mapped={"label", "id", "tags"})
    assert found == {"tokens": ("tokens", "tags", "label")}
    assert possible_sets(columns, {}) == {"": ("label",)}
