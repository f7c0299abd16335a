"""Languages, contexts, numbers, entities, boxes and transcripts: what is found, and what is left alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lora_ft.assemble.examined import examine
from lora_ft.data.doctor.boxes import BoxCheck, overlaps
from lora_ft.data.doctor.contexts import ContextCheck
from lora_ft.data.doctor.entities import EntityCheck, entities
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.languages import MOST_ROWS, LanguageCheck
from lora_ft.data.doctor.numbers import NumberCheck
from lora_ft.data.doctor.stream import Batch
from lora_ft.data.doctor.transcripts import TranscriptCheck
from tests.bases import make_base
from tests.data.doctor.seeded import clean_text
from tests.toy import read, write_recipe

GERMAN = "Der Griff ist nach zwei Tagen abgebrochen und niemand hat auf meine Briefe geantwortet."
NORWEGIAN = "Håndtaket gikk i stykker etter to dager, og ingen har svart på brevene mine siden."
DANISH = "Håndtaget gik i stykker efter to dage, og ingen har svaret på mine breve siden da."


def batch(texts: Sequence[str], *, split: str = "train", start: int = 0, **raw: Sequence[Any]) -> Batch:
    return Batch(split, start, {"text": texts}, texts, [None] * len(texts), [[]] * len(texts), raw)


def rows_of(findings: Sequence[Finding], name: str, split: str = "train") -> list[int]:
    return [row for one in findings if (one.name, one.split) == (name, split) for row in one.rows.tolist()]


def english(count: int) -> list[str]:
    rng = random.Random(0)
    return [clean_text(rng) for _ in range(count)]


def test_a_language_that_few_rows_have_is_found_and_one_that_many_have_belongs_to_the_data() -> None:
    few, many = LanguageCheck({"train": 62}), LanguageCheck({"train": 70})
    few.add(batch([*english(60), GERMAN, GERMAN]))
    many.add(batch([*english(60), *[GERMAN] * 10]))
    assert rows_of(few.findings(), "unexpected-language") == [60, 61]
    assert many.findings() == []


def test_a_language_that_is_easily_taken_for_a_usual_one_is_none() -> None:
    check = LanguageCheck({"train": 61})
    check.add(batch([*[DANISH] * 60, NORWEGIAN]))
    assert check.findings() == []


def test_another_script_is_left_to_the_check_of_scripts() -> None:
    check = LanguageCheck({"train": 61})
    check.add(batch([*english(60), "Ручка сломалась через два дня, и никто не ответил на мои письма."]))
    assert check.findings() == []


def test_of_many_rows_languages_are_asked_of_an_evenly_spaced_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(texts: Sequence[str]) -> list[tuple[str, float]]:
        asked.append(len(texts))
        return [("de" if text == GERMAN else "en", 1.0) for text in texts]

    monkeypatch.setattr("lora_ft.data.doctor.languages.languages_of", count)
    check = LanguageCheck({"train": 3 * MOST_ROWS - 1})
    for start in range(0, 3 * MOST_ROWS - 1, 1_000):
        texts = ["a text of words"] * min(1_000, 3 * MOST_ROWS - 1 - start)
        if start == 1_000:
            texts[2] = GERMAN  # row 1,002 is a multiple of three
        check.add(batch(texts, start=start))
    (finding,) = check.findings()
    assert sum(asked) == MOST_ROWS == finding.of
    assert finding.rows.tolist() == [1_002]


def test_questions_about_a_context_that_training_has_read_are_leaked() -> None:
    check = ContextCheck("context")
    for split, contexts in (("train", ["a b", "c d", "a b"]), ("validation", ["e f", "A  b", "a b"])):
        check.add(Batch(split, 0, {"question": contexts, "context": contexts}, contexts, [None] * 3, [[]] * 3))
    (finding,) = check.findings()
    assert (finding.name, finding.split, finding.rows.tolist()) == ("context-leakage", "validation", [1, 2])
    assert list(finding.others) == [("train", 0), ("train", 0)]
    assert "(1 texts)" in finding.told


def numbers(values: Sequence[float], texts: Sequence[str] | None = None) -> list[Finding]:
    check = NumberCheck("label")
    check.add(batch(texts or [f"text {row}" for row in range(len(values))], label=values))
    return check.findings()


def test_numbers_far_away_from_all_others_are_found() -> None:
    rng = np.random.default_rng(0)
    values = [*rng.normal(3, 1, 500), 999.0, -99.0]
    assert rows_of(numbers(values), "outlying-numbers") == [500, 501]


def test_long_tails_are_no_outliers() -> None:
    rng = np.random.default_rng(0)
    assert numbers(rng.lognormal(3, 1, 20_000).tolist()) == []
    assert numbers(rng.normal(0, 1, 20_000).tolist()) == []
    assert numbers([1.5] * 90 + [2.5] * 10) == []


def test_one_text_with_clearly_different_numbers_is_a_conflict() -> None:
    rng = np.random.default_rng(0)
    values = [*rng.normal(3, 1, 100), 1.0, 1.1, 5.0, 1.0]
    texts = [*(f"text {row}" for row in range(100)), "near", "near", "far", "Far "]
    assert rows_of(numbers(values, texts), "conflicting-numbers") == [102, 103]


def test_entities_are_read_off_all_ways_of_tagging() -> None:
    words = ["Ann", "Lee", "of", "New", "York", "met", "Bo"]
    bio = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "B-PER"]
    io = ["PER", "PER", "O", "LOC", "LOC", "O", "PER"]
    found = [("Ann Lee", "PER"), ("of", "O"), ("New York", "LOC"), ("met", "O"), ("Bo", "PER")]
    assert list(entities(words, bio)) == found == list(entities(words, io))
    assert list(entities(["Ann", "Bo"], ["B-PER", "B-PER"])) == [("Ann", "PER"), ("Bo", "PER")]


def test_an_entity_that_is_overlooked_or_tagged_otherwise_is_found() -> None:
    rows = [(["in", "Paris"], ["O", "B-LOC"])] * 30
    rows += [(["in", "Paris"], ["O", "O"]), (["Paris", "sang"], ["B-PER", "O"])]
    check = EntityCheck(tokens=True)
    tokens, tags = [words for words, _ in rows], [tags for _, tags in rows]
    check.add(batch([" ".join(words) for words in tokens], tokens=tokens, tags=tags))
    assert rows_of(check.findings(), "inconsistent-tags") == [30, 31]


def test_spans_are_looked_at_as_tags_are() -> None:
    texts = ["in Paris"] * 12
    spans = [[{"start": 3, "end": 8, "label": "LOC"}]] * 11 + [[{"start": 3, "end": 8, "label": "PER"}]]
    check = EntityCheck(tokens=False)
    check.add(batch(texts, text=texts, spans=spans))
    assert rows_of(check.findings(), "inconsistent-tags") == [11]


def test_faults_of_boxes_are_found() -> None:
    good = [10.0, 10.0, 40.0, 30.0]
    boxes: list[list[list[float]]] = [
        [good, [60.0, 10.0, 20.0, 20.0]], [good, [10.5, 10.0, 40.0, 30.0]], [[5.0, 5.0, 1.0, 20.0]], [], [good, good],
    ]  # fmt: skip
    names = [["a", "b"], ["a", "a"], ["a"], [], ["a", "b"]]  # one thing under two names is no duplicate
    check = BoxCheck()
    for row, (box, name) in enumerate(zip(boxes, names, strict=True)):
        check.add("train", row, {"bbox": box, "category": name})
    assert {one.name: one.rows.tolist() for one in check.findings()} == {
        "duplicate-boxes": [1], "degenerate-boxes": [2], "images-without-boxes": [3],
    }  # fmt: skip


def test_overlaps_are_those_of_counting_pixels() -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 2, 4, 4], [8, 8, 2, 2]], dtype=np.float64)
    grids = np.zeros((3, 12, 12), dtype=bool)
    for grid, (x, y, w, h) in zip(grids, boxes.astype(int), strict=True):
        grid[y : y + h, x : x + w] = True
    slow = [[(a & b).sum() / (a | b).sum() for b in grids] for a in grids]
    assert np.allclose(overlaps(boxes), slow)


def test_a_transcript_that_does_not_fit_its_sound_is_found() -> None:
    check = TranscriptCheck()
    for row in range(60):
        check.add("train", row, "a text of words", seconds=1.0 + row / 60)
    check.add("train", 60, "a text of words " * 8, seconds=1.0)
    check.add("train", 61, "a", seconds=2.0)
    assert rows_of(check.findings(), "odd-transcripts") == [60, 61]


def test_questions_and_numbers_are_asked_by_the_recipe(tmp_path: Path, tiny_bert: Path) -> None:
    texts = english(60)
    first = [{"text": [text.split()[0]], "answer_start": [0]} for text in texts]
    lines = [
        json.dumps({"question": f"what is {row}", "context": f"{text} {row}", "answers": answers})
        for row, (text, answers) in enumerate(zip(texts, first, strict=True))
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "val.jsonl").write_text("\n".join(lines[3:4]).replace("what", "who"), encoding="utf-8")
    files = {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "val.jsonl")}
    recipe = write_recipe(
        tmp_path, tiny_bert, task="question-answering", dataset={"data_files": files}, processor={"stride": 8}
    )
    assert rows_of(examine(read(recipe)).findings, "context-leakage", "validation") == [0]
    for split in ("train", "validation"):
        labels = [f'"{text}",{row % 5 + 0.5}' for row, text in enumerate(texts[:-1])] + [f'"{texts[-1]}",999.5']
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *labels]), encoding="utf-8")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    recipe = write_recipe(tmp_path, tiny_bert, dataset={"data_files": files})
    assert rows_of(examine(read(recipe)).findings, "outlying-numbers") == [59]


def test_transcripts_are_asked_by_the_recipe(tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(0), ["audio,text"]
    for row in range(24):
        soundfile.write(tmp_path / f"{row:02d}.wav", 0.3 * rng.standard_normal(8_000).clip(-3, 3), 16_000)
        lines.append(f"{row:02d}.wav,{'seven' if row != 5 else 'seven ' * 8}")
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    base = make_base(tmp_path / "base", "wav2vec2")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    recipe = write_recipe(tmp_path, base, task="automatic-speech-recognition", dataset={"data_files": files})
    recipe.write_text(recipe.read_text(encoding="utf-8").replace('"max_length": 32', ""), encoding="utf-8")
    assert rows_of(examine(read(recipe)).findings, "odd-transcripts") == [5]
