"""Texts by sample, tagged words, SQuAD, COCO, VOC and folders of media become rows under our column names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_ft.data.files import read_rows
from lora_ft.data.lines import SampleBy
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_file, load_splits
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column, DatasetSection
from tests.data.rows_of import ASKED, COLUMNS, DETECTED, HEARD, PICTURED, TAGGED, TAGGED_SETS, WRITTEN, section

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=6).filter(
    lambda word: not word.startswith("#") and word != "-DOCSTART-"
)
SENTENCES = st.lists(
    st.lists(st.tuples(WORDS, st.sampled_from(["O", "B-LOC", "I-LOC"])), min_size=1, max_size=5), min_size=1, max_size=4
)
BOXES = st.lists(
    st.tuples(
        st.integers(0, 90), st.integers(0, 90), st.integers(1, 60), st.integers(1, 60), st.sampled_from(["WBC", "RBC"])
    ),
    max_size=4,
)
PAGES = st.lists(BOXES, min_size=1, max_size=4)


def load(dataset: DatasetSection, wanted: tuple[Column, ...], **changes: Any) -> Splits:
    sets = TAGGED_SETS if wanted is TAGGED else None
    return load_splits(dataclasses.replace(dataset, **changes), columns=wanted, column_sets=sets, offline=True)


def fault(dataset: DatasetSection, wanted: tuple[Column, ...], **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, wanted, **changes)
    return str(caught.value)


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (200, 0, 0)).save(file)
    return file


def sound(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros(800, dtype=np.float32), 8000)
    return file


# Texts


@pytest.mark.parametrize(
    ("sample_by", "texts", "numbers"),
    [
        ("line", ["one", "two", "", "", "  three", " "], [1, 2, 3, 4, 5, 6]),
        ("paragraph", ["one\ntwo", "  three"], [1, 5]),
        ("document", ["one\ntwo\n\n\n  three\n \n"], [1]),
    ],
)
def test_a_text_file_is_lines_paragraphs_or_one_document(
    tmp_path: Path, sample_by: SampleBy, texts: list[str], numbers: list[int]
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\ntwo\r\n\r\n\r\n  three\r\n \r\n")
    rows = read_rows(file, sample_by=sample_by)
    assert (rows.columns, list(rows.numbers)) == ({"text": texts}, numbers)


def test_a_text_file_trains_a_task_without_labels_whatever_the_column_is_called_elsewhere(tmp_path: Path) -> None:
    train = write(tmp_path / "a.txt", "one\n\ntwo\n")
    other = write(tmp_path / "b.jsonl", '{"story": "three"}\n')
    splits = load(section(train=train, validation=other), WRITTEN[3:], columns={"text": "story"}, sample_by="paragraph")
    assert list(splits["train"]["text"]) == ["one", "two"]
    assert list(splits["validation"]["text"]) == ["three"]


def test_the_lines_of_a_text_file_are_the_only_text_that_rows_to_predict_need(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "Say hi.\n")
    sets = {"text": ("text",), "completion": ("prompt", "completion")}
    rows = load_file(file, columns={"prompt": "question"}, wanted=WRITTEN[1:2], column_sets=sets)
    assert rows[:] == {"prompt": ["Say hi."]}
    with pytest.raises(DataError, match=r"no column 'question'.*The columns are: 'text'"):
        load_file(file, columns={}, wanted=ASKED)


# Tagged words


def test_conll_keeps_first_and_last_column_and_leaves_comments_and_document_marks_out(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- -X- O\n\n# id 7\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n# CD B-NP O\n. . O O\n"
    rows = read_rows(write(tmp_path / "a.conll", content))
    assert rows.columns == {
        "tokens": [["EU", "rejects"], ["#", "."]],
        "tags": [["B-ORG", "O"], ["O", "O"]],
    }
    assert list(rows.numbers) == [4, 8]


def test_conll_without_tags_can_be_predicted_and_not_trained_on(tmp_path: Path) -> None:
    file = write(tmp_path / "a.bio", "EU\nrejects\n\nit\n")
    assert load_file(file, columns={"tags": "ner"}, wanted=TAGGED, column_sets=TAGGED_SETS)[:] == {
        "tokens": [["EU", "rejects"], ["it"]]
    }
    message = fault(section(train=file), TAGGED)
    assert "there is no 'tags'" in message
    assert f"{file}:1: the line has one field ('EU') where two are needed" in message


def test_a_conll_line_without_its_tag_is_a_fault_of_its_sentence(tmp_path: Path) -> None:
    file = write(tmp_path / "a.iob2", "EU\tB-ORG\n\nrejects\n\n\tO\n\nit\tO\n")
    message = fault(section(train=file), TAGGED)
    assert message.splitlines()[:3] == [
        f"train, {file}: 2 of 4 rows cannot be used",
        "  row 3: tags: line 3 has 1 fields, most others have 2",
        "  row 5: tokens: line 5 has no word",
    ]
    assert "there is no word in it" in fault(section(train=write(tmp_path / "b.conll", "# nothing\n")), TAGGED)


@given(
    sentences=SENTENCES, separator=st.sampled_from(["\t", " ", "  "]), extra=st.booleans(), end=st.sampled_from("\n ")
)
@QUICK
def test_conll_that_was_written_comes_back_word_by_word(
    tmp_path: Path, sentences: list[list[tuple[str, str]]], separator: str, extra: bool, end: str
) -> None:
    lines = [
        "\n".join(separator.join([word, *(["NN"] if extra else []), tag]) for word, tag in sentence)
        for sentence in sentences
    ]
    rows = read_rows(write(tmp_path / "a.conll", f"\n{end.strip()}\n".join(lines) + "\n"))
    assert rows.faults == []
    read = zip(rows.columns["tokens"], rows.columns["tags"], strict=True)
    assert [list(zip(tokens, tags, strict=True)) for tokens, tags in read] == sentences


# Questions


def squad(*questions: dict[str, Any], context: Any = "He scored 308 points.") -> dict[str, Any]:
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_nested_squad_gives_a_row_for_each_question(tmp_path: Path) -> None:
    answer = {"text": "308", "answer_start": 10}
    content = squad(
        {"id": "a", "question": "How many?", "answers": [answer, answer], "is_impossible": False},
        {"id": "b", "question": "Who?", "answers": [], "plausible_answers": [answer], "is_impossible": True},
    )
    splits = load(section(train=write(tmp_path / "a.json", content)), ASKED, columns={"id": "id"})
    assert splits["train"][:] == {
        "question": ["How many?", "Who?"],
        "context": ["He scored 308 points."] * 2,
        "answers": [{"text": ["308", "308"], "answer_start": [10, 10]}, {"text": [], "answer_start": []}],
        "id": ["a", "b"],
    }


def test_squad_without_answers_can_be_predicted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", squad({"id": "a", "question": "How many?"}))
    assert load_file(file, columns={"question": "q"}, wanted=ASKED).column_names == ["question", "context"]


def test_broken_squad_says_where(tmp_path: Path) -> None:
    bad = write(tmp_path / "a.json", squad({"id": "a", "answers": []}))
    assert f"{bad}, row 1: question is null" in fault(section(train=bad), ASKED)
    bad = write(tmp_path / "a.json", {"data": [{"paragraphs": [{"context": "x"}]}]})
    assert "data[0].paragraphs[0]: has no list 'qas'" in fault(section(train=bad), ASKED)
    bad = write(tmp_path / "a.json", {"data": [{"paragraphs": []}, {"text": "x"}]})
    assert "data[1]: has no list 'paragraphs'" in fault(section(train=bad), ASKED)
    bad = write(tmp_path / "a.json", {"data": [{"paragraphs": [{"context": "x", "qas": ["why?"]}]}]})
    assert "data[0].paragraphs[0].qas[0]: is a text" in fault(section(train=bad), ASKED)


# Boxes


def coco(pages: list[list[tuple[int, int, int, int, str]]]) -> dict[str, Any]:
    ids = {"WBC": 9, "RBC": 4}
    return {
        "images": [{"id": 100 + at, "file_name": f"{at}.png", "width": 4, "height": 3} for at in range(len(pages))],
        "annotations": [
            {"id": at, "image_id": 100 + page, "category_id": ids[box[4]], "bbox": list(box[:4]), "iscrowd": 0}
            for page, boxes in enumerate(pages)
            for at, box in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def voc(file: Path, name: str, boxes: list[tuple[int, int, int, int, str]]) -> Path:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = name
    for x, y, width, height, label in boxes:
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = label
        bounds = ElementTree.SubElement(entry, "bndbox")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        for corner, value in corners.items():
            ElementTree.SubElement(bounds, corner).text = str(value)
    file.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(file)
    return file


def as_objects(boxes: list[tuple[int, int, int, int, str]]) -> dict[str, list[Any]]:
    return {"bbox": [[float(side) for side in box[:4]] for box in boxes], "category": [box[4] for box in boxes]}


@given(pages=PAGES)
@QUICK
def test_boxes_come_back_from_coco_and_from_voc_exactly(tmp_path: Path, pages: list[Any]) -> None:
    files = [picture(tmp_path / "photos" / f"{at}.png") for at in range(len(pages))]
    annotations = [
        voc(tmp_path / "marks" / f"{at}.xml", file.name, boxes)
        for at, (file, boxes) in enumerate(zip(files, pages, strict=True))
    ]
    media = {"media_dir": str(tmp_path / "photos")}
    one = load(section(train=write(tmp_path / "a.json", coco(pages))), DETECTED, **media)
    two = load(section(train=annotations), DETECTED, **media)
    assert one["train"][:] == two["train"][:]
    assert one["train"].features == two["train"].features
    assert list(one["train"]["objects"]) == [as_objects(boxes) for boxes in pages]
    assert [image["path"] for image in one["train"]["image"]] == list(map(str, files))
    assert one.label_names == ("RBC", "WBC")


def test_boxes_around_crowds_are_left_out_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    content = coco([[(0, 0, 2, 2, "WBC"), (1, 1, 2, 2, "RBC")]])
    content["annotations"][0]["iscrowd"] = 1
    splits = load(section(train=write(tmp_path / "a.json", content)), DETECTED)
    assert splits["train"][0]["objects"] == {"bbox": [[1, 1, 2, 2]], "category": ["RBC"]}
    assert splits.notes == (f"{tmp_path / 'a.json'}: 1 boxes around crowds (iscrowd) are left out",)


def test_files_that_order_their_categories_differently_leave_the_order_open(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    one, two = coco([[]]), coco([[]])
    two["categories"].reverse()
    two["categories"][0]["id"], two["categories"][1]["id"] = 9, 4
    files = [write(tmp_path / f"{at}.json", content) for at, content in enumerate((one, two))]
    assert load(section(train=files), DETECTED).label_names is None


def test_coco_without_annotations_can_be_predicted(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    content = coco([[]])
    del content["annotations"]
    rows = load_file(write(tmp_path / "a.json", content), columns={"objects": "x"}, wanted=DETECTED)
    assert rows[:] == {"image": [{"bytes": None, "path": str(tmp_path / "0.png")}]}


@pytest.mark.parametrize(
    ("part", "at", "change", "told"),
    [
        ("annotations", 0, {"image_id": 5}, "annotations[0].image_id = 5: there is no image of this id"),
        ("annotations", 0, {"category_id": 5}, "image 0.png: objects: annotation 0: category_id = 5 is not among"),
        (
            "annotations",
            0,
            {"bbox": [1, 2]},
            "image 0.png: objects: annotation 0: bbox = [1, 2]: expected [x, y, width, height]",
        ),
        ("annotations", 0, {"bbox": None}, "image 0.png: objects: annotation 0: bbox = None"),
        ("images", 1, {"id": 100}, "images: 2 entries, only 1 ids"),
        ("images", 1, {"file_name": "no.png"}, "image no.png: image = 'no.png': there is no such file in"),
    ],
)
def test_broken_coco_says_where(tmp_path: Path, part: str, at: int, change: dict[str, Any], told: str) -> None:
    picture(tmp_path / "0.png"), picture(tmp_path / "1.png")
    content = coco([[(0, 0, 2, 2, "WBC")], []])
    content[part][at].update(change)
    assert told in fault(section(train=write(tmp_path / "a.json", content)), DETECTED)


def test_coco_without_a_key_says_which(tmp_path: Path) -> None:
    content = coco([[]])
    del content["images"][0]["file_name"]
    assert "images[0] has no 'file_name'" in fault(section(train=write(tmp_path / "a.json", content)), DETECTED)
    content = coco([[]])
    content["categories"].append("WBC")
    assert "categories[2] is a text" in fault(section(train=write(tmp_path / "a.json", content)), DETECTED)


def test_voc_files_that_are_broken_are_faults_of_their_rows_named_by_file(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    good = [voc(tmp_path / f"{at}.xml", "0.png", [(0, 0, 2, 2, "WBC")]) for at in range(4)]
    broken = write(tmp_path / "4.xml", "<annotation><object>")
    empty = write(tmp_path / "5.xml", "<annotation/>")
    cornerless = write(
        tmp_path / "6.xml", "<annotation><filename>0.png</filename><object><name>a</name></object></annotation>"
    )
    files = section(train=[*good, broken, empty, cornerless])
    message = fault(files, DETECTED)
    assert f"{broken}: objects: the file is not XML" in message
    assert f"{empty}: image: the file is no VOC annotation, expected <annotation> with a <filename>" in message
    assert f"{cornerless}: objects: <bndbox> of object 1 has xmin None" in message
    assert "null" not in message
    splits = load(files, DETECTED, on_bad_row="skip")
    assert (len(splits["train"]), splits.skipped) == (4, {"train": 3})


# Folders


def test_a_folder_of_folders_is_images_and_their_classes(tmp_path: Path) -> None:
    names = ["pear/b.JPG", "pear/a.jpeg", "apple/c.png", "apple/notes.txt", "pear/.hidden.png"]
    for name in names:
        write(tmp_path / name, "x") if name.endswith("txt") else picture(tmp_path / name)
    splits = load(section(train=tmp_path), PICTURED, columns={"label": "kind"})
    assert [Path(image["path"]).name for image in splits["train"]["image"]] == ["c.png", "a.jpeg", "b.JPG"]
    assert list(splits["train"]["label"]) == ["apple", "pear", "pear"]
    assert splits.label_names == ("apple", "pear")
    assert splits.origins["train"].describe([0]) == str(tmp_path / "apple" / "c.png")


def test_classes_that_are_called_by_numbers_stay_names(tmp_path: Path) -> None:
    for name in ("0", "1"):
        sound(tmp_path / name / "a.wav")
    heard = (HEARD[0], PICTURED[1])
    assert list(load(section(train=tmp_path), heard)["train"]["label"]) == ["0", "1"]


def test_a_folder_or_a_file_of_images_can_be_predicted(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    for given_path in (tmp_path, file):
        rows = load_file(given_path, columns={}, wanted=PICTURED)
        assert rows[:] == {"image": [{"bytes": None, "path": str(file)}]}
    picture(tmp_path / "pear" / "b.png")
    only = load_file(tmp_path, columns={}, wanted=PICTURED[:1])
    assert len(only) == 2


def test_a_folder_that_cannot_be_read_as_classes_says_why(tmp_path: Path) -> None:
    assert "there are no images or sounds in this folder" in fault(section(train=tmp_path), PICTURED)
    picture(tmp_path / "train" / "pear" / "a.png")
    message = fault(section(train=tmp_path), PICTURED)
    assert f"{tmp_path / 'train' / 'pear'}: is a folder within 'train'" in message
    assert f"give {tmp_path / 'train'} as the data of one split" in message
    picture(tmp_path / "train" / "loose.png")
    message = fault(section(train=tmp_path / "train"), PICTURED)
    assert f"{tmp_path / 'train' / 'loose.png'}: label is empty or null in 1 of 2 rows" in message
    sound(tmp_path / "train" / "pear" / "a.wav")
    assert "has images and sounds" in fault(section(train=tmp_path / "train"), PICTURED)


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert "no column 'label'" in fault(section(train=tmp_path), PICTURED)
    assert "no column 'audio'" in fault(section(train=tmp_path), HEARD)


def test_a_table_of_paths_finds_them_beside_itself_or_in_media_dir(tmp_path: Path) -> None:
    file = sound(tmp_path / "wav" / "a.flac")
    table = write(tmp_path / "a.csv", "path,said\nwav/a.flac,yes\n")
    names = {"audio": "path", "text": "said"}
    expected = {"audio": [{"bytes": None, "path": str(file)}], "text": ["yes"]}
    assert load(section(train=table), HEARD, columns=names)["train"][:] == expected
    moved = write(tmp_path / "lists" / "a.csv", table.read_text(encoding="utf-8"))
    assert "there is no such file in" in fault(section(train=moved), HEARD, columns=names)
    assert load(section(train=moved), HEARD, columns=names, media_dir=str(tmp_path))["train"][:] == expected
    assert load_file(moved, columns=names, wanted=HEARD, media_dir=tmp_path)[:] == expected


def test_files_of_one_kind_of_data_cannot_be_mixed_with_another(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n')
    two = write(tmp_path / "b.jsonl", '{"text": "a", "spans": []}\n')
    message = fault(section(train=[one, two]), TAGGED)
    assert "b.jsonl: dataset.columns.tokens: not given, and there is no column 'tokens'" in message
    assert list(load(section(train=[two, two]), TAGGED)["train"].column_names) == ["text", "spans"]


def test_text_classification_still_refuses_a_text_file(tmp_path: Path) -> None:
    assert "a .txt file has no labels" in fault(section(train=write(tmp_path / "a.txt", "x\n")), COLUMNS)
