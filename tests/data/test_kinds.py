"""Every accepted form of a value becomes the one form that tasks read, and anything else says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.data.kinds import FEATURES, class_names, reader_of, with_class_names
from lora_ft.data.values import BadValue
from lora_ft.recipe.schema import ColumnKind

SPAN = {"start": 0, "end": 2, "label": "ORG"}
BOX = [1.0, 2.0, 3.5, 4.0]
SPANS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 40), st.sampled_from(["ORG", "LOC"])).map(
        lambda span: {"start": span[0], "end": span[0] + span[1], "label": span[2]}
    ),
    max_size=5,
)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=9)}),
    min_size=1,
    max_size=4,
)


def fault(kind: ColumnKind, value: Any, **how: Any) -> str:
    with pytest.raises(BadValue) as caught:
        reader_of(kind, **how)(value)
    return str(caught.value)


def test_every_kind_but_label_has_a_reader_and_a_type() -> None:
    kinds = set(get_args(ColumnKind)) - {"label"}
    assert set(FEATURES) == kinds
    for kind in kinds:
        reader_of(kind)


@pytest.mark.parametrize(
    ("kind", "value", "canonical"),
    [
        ("text", 3, "3"),
        ("texts", ["EU", 7], ["EU", "7"]),
        ("labels", [" B-ORG", 1, 2.0], ["B-ORG", "1", "2"]),
        ("spans", [[0, 2, "ORG"]], [SPAN]),
        ("spans", {"start": [0], "end": [2.0], "label": ["ORG"], "text": ["EU"]}, [SPAN]),
        ("spans", [{**SPAN, "text": "EU"}], [SPAN]),
        ("spans", [], []),
        ("answers", {"text": ["308"], "answer_start": [34]}, {"text": ["308"], "answer_start": [34]}),
        ("answers", [{"text": "308", "answer_start": 34}], {"text": ["308"], "answer_start": [34]}),
        ("answers", {"text": "308", "answer_start": 34}, {"text": ["308"], "answer_start": [34]}),
        ("answers", " 308 ", {"text": ["308"], "answer_start": [-1]}),
        ("answers", None, {"text": [], "answer_start": []}),
        ("answers", {"text": [], "answer_start": []}, {"text": [], "answer_start": []}),
        ("answers", [], {"text": [], "answer_start": []}),
        (
            "messages",
            [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        ),
        ("objects", {"bbox": [[1, 2, 3.5, 4]], "category": ["WBC"]}, {"bbox": [BOX], "category": ["WBC"]}),
        ("objects", [{"bbox": BOX, "category": 2, "id": 9}], {"bbox": [BOX], "category": ["2"]}),
        ("objects", {"bbox": [], "category": []}, {"bbox": [], "category": []}),
        ("image", b"\x89PNG", {"bytes": b"\x89PNG", "path": None}),
        ("audio", {"bytes": b"RIFF", "path": "a.wav"}, {"bytes": b"RIFF", "path": "a.wav"}),
    ],
)
def test_a_value_becomes_canonical(kind: ColumnKind, value: Any, canonical: Any) -> None:
    assert reader_of(kind)(value) == canonical


@pytest.mark.parametrize(
    ("kind", "cell", "canonical"),
    [
        ("texts", "EU  rejects\tit", ["EU", "rejects", "it"]),
        ("texts", "[1]", ["[1]"]),
        ("labels", "B-ORG O O", ["B-ORG", "O", "O"]),
        ("spans", '[[0, 2, "ORG"]]', [SPAN]),
        ("answers", "[1]", {"text": ["[1]"], "answer_start": [-1]}),
        ("answers", '{"text": ["308"], "answer_start": [34]}', {"text": ["308"], "answer_start": [34]}),
        ("answers", "", {"text": [], "answer_start": []}),
        ("messages", '[{"role": "user", "content": "Hi"}]', [{"role": "user", "content": "Hi"}]),
        ("objects", '{"bbox": [[1, 2, 3.5, 4]], "category": ["WBC"]}', {"bbox": [BOX], "category": ["WBC"]}),
    ],
)
def test_a_cell_of_a_table_is_split_or_read_as_json(kind: ColumnKind, cell: str, canonical: Any) -> None:
    assert reader_of(kind, cells=True)(cell) == canonical


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("text", None, "is null"),
        ("text", ["x"], "is a list or an object"),
        ("texts", "EU rejects", "is a text, expected a list of texts"),
        ("texts", ["EU", None], "[1] is null, expected a text"),
        ("labels", ["O", " "], "[1] is empty or null, expected a label"),
        ("labels", [["O"]], "[0] is a list, expected a label"),
        ("spans", None, "is null, expected a list of objects with start, end, label"),
        ("spans", [{"start": 0, "end": 2, "type": "ORG"}], "[0] has no 'label', it has: start, end, type"),
        ("spans", [{"start": 3, "end": 3, "label": "ORG"}], "[0] goes from 3 to 3, expected 0 <= start < end"),
        ("spans", [{"start": -1, "end": 3, "label": "ORG"}], "[0] goes from -1 to 3"),
        ("spans", [{"start": "0", "end": 3, "label": "ORG"}], "[0].start = '0': expected a whole number"),
        ("spans", [{"start": True, "end": 3, "label": "ORG"}], "[0].start = True: expected a whole number"),
        ("spans", {"start": [0, 1], "end": [2], "label": ["A"]}, "different lengths: 2 of start, 1 of end, 1 of label"),
        ("spans", [SPAN, "ORG"], "[1] is a text, expected an object"),
        ("answers", {"text": [""], "answer_start": [0]}, ".text[0] is empty"),
        ("answers", {"text": ["x"], "answer_start": [-7]}, ".answer_start[0] = -7"),
        ("answers", {"text": "x", "answer_start": [3]}, "mixes lists and single values"),
        ("answers", 3, "is a number, expected a list of objects with text, answer_start"),
        ("messages", [], "is empty, expected at least one message"),
        ("messages", [{"from": "bot", "value": "Hi"}], "[0].from = 'bot': expected one of human, gpt, system"),
        ("messages", [{"role": "user", "content": None}], "[0] has null as its content, expected a text"),
        ("messages", [{"role": "user"}], "[0] has no 'content'"),
        ("objects", {"bbox": [[1, 2, 3]], "category": ["a"]}, ".bbox[0] = [1, 2, 3]: expected [x, y, width, height]"),
        ("objects", {"bbox": [[1, 2, 3, float("nan")]], "category": ["a"]}, ".bbox[0] = [1, 2, 3, nan]: expected"),
        ("objects", {"bbox": [[1, 2, 0, 4]], "category": ["a"]}, "the box has no area"),
        ("objects", {"bbox": [BOX], "category": [None]}, ".category[0] is empty or null"),
        ("objects", None, "is null, expected a list of objects with bbox, category"),
        ("image", None, "is null, expected a path"),
        ("image", "", "is an empty path"),
        ("image", {"bytes": None, "path": None}, "has neither bytes nor a path"),
        ("image", "https://a.b/c.png", "is an address, expected a file"),
        ("image", "c.png", "a relative path, say where it starts with dataset.media_dir"),
    ],
)
def test_a_value_of_another_kind_says_why(kind: ColumnKind, value: Any, reason: str) -> None:
    assert reason in fault(kind, value)


def test_a_cell_that_is_no_json_is_refused() -> None:
    assert "= 'ORG 0 2': a cell of this column is JSON" in fault("spans", "ORG 0 2", cells=True)


def test_relative_paths_start_at_the_folder_and_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.png").write_bytes(b"x")
    read = reader_of("image", folder=tmp_path)
    assert read("a b.png") == {"bytes": None, "path": str(tmp_path / "a b.png")}
    assert read({"path": str(tmp_path / "a b.png")}) == read("a b.png")
    told = fault("image", "c.png", folder=tmp_path)
    assert told == f"= 'c.png': there is no such file in {tmp_path} (dataset.media_dir says where paths start)"
    assert fault("image", "/no/c.png", folder=tmp_path) == "= '/no/c.png': there is no such file"
    monkeypatch.chdir(tmp_path)
    assert reader_of("image", folder=Path())("a b.png") == read("a b.png")


@given(spans=SPANS)
def test_spans_of_all_forms_are_the_same(spans: list[dict[str, Any]]) -> None:
    read = reader_of("spans")
    columns = {key: [span[key] for span in spans] for key in ("start", "end", "label")}
    triples = [tuple(span.values()) for span in spans]
    assert read(spans) == read(triples) == read(columns) == spans
    assert reader_of("spans", cells=True)(json.dumps(spans)) == spans


@given(chat=CHATS)
def test_chats_of_all_forms_are_the_same(chat: list[dict[str, str]]) -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in chat]
    assert reader_of("messages")(chat) == reader_of("messages")(sharegpt) == chat


@given(spans=SPANS, chat=CHATS)
@settings(max_examples=20, deadline=None)
def test_canonical_values_stay_as_they_are_and_survive_arrow(spans: list[dict[str, Any]], chat: list[Any]) -> None:
    values: dict[ColumnKind, Any] = {
        "texts": ["a", ""],
        "labels": ["O"],
        "spans": spans,
        "answers": {"text": [], "answer_start": []},
        "messages": chat,
        "image": {"bytes": b"x", "path": None},
        "objects": {"bbox": [BOX], "category": ["WBC"]},
    }
    features = datasets.Features({kind: FEATURES[kind] for kind in values})
    row = datasets.Dataset.from_dict({kind: [value] for kind, value in values.items()}, features=features)[0]
    assert row == values
    assert {kind: reader_of(kind)(value) for kind, value in row.items()} == values


def test_class_numbers_get_their_names_however_deep_they_lie() -> None:
    label = datasets.ClassLabel(names=["O", "B-ORG"])
    assert class_names(datasets.List({"bbox": datasets.Value("int64"), "category": label})) == ("O", "B-ORG")
    assert class_names({"a": datasets.Value("string")}) is None
    assert with_class_names([1, 0, -1, None], datasets.List(label)) == ["B-ORG", "O", None, None]
    legacy = datasets.Sequence({"start": datasets.Value("int64"), "label": label})
    assert with_class_names({"start": [3], "label": [1]}, legacy) == {"start": [3], "label": ["B-ORG"]}
    assert with_class_names([{"start": 3, "label": 1}], legacy) == [{"start": 3, "label": "B-ORG"}]


@pytest.mark.parametrize(
    ("value", "cells", "told"),
    [
        ("hello", False, "is a text, expected a list of objects with role and content"),
        (["hello"], False, "[0] is a text, expected an object with role and content"),
        ("hello", True, "= 'hello': a cell of this column is JSON, expected a list of objects with role and content"),
    ],
)
def test_a_wrong_chat_is_told_what_a_chat_is(value: Any, cells: bool, told: str) -> None:
    with pytest.raises(BadValue) as caught:
        reader_of("messages", cells=cells)(value)
    assert str(caught.value) == told
