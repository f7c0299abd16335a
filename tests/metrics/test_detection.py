"""Boxes score as faster-coco-eval scores them, on all rows and on any drawn ones, without a word."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.metrics.detection import coco_scores, detection_counts, detection_scores
from lora_ft.metrics.load import load_metric

coco = pytest.importorskip("faster_coco_eval", reason="metrics of boxes are of the extra vision")

CAT = [10.0, 20.0, 40.0, 40.0]
NOTHING = {"boxes": [], "scores": [], "labels": []}
EMPTY = {"map": 0.0, "map_50": 0.0, "map_75": 0.0, "mar_100": 0.0}


def row(*boxes: list[float], label: str = "cat", score: float = 0.9) -> dict[str, Any]:
    return {"boxes": list(boxes), "scores": [score] * len(boxes), "labels": [label] * len(boxes)}


def rows_of(seed: int, count: int, *, ties: bool = False) -> tuple[list[Any], list[Any]]:
    """Objects, and predictions near them: shifted, doubled, of another class, of a class that has no object."""
    generator = np.random.default_rng(seed)

    def box() -> list[float]:
        return [float(v) for v in (*generator.integers(0, 60, 2), *generator.integers(5, 40, 2))]

    predictions, references = [], []
    for _ in range(count):
        true = [(box(), str(generator.choice(["cat", "cow", "dog"]))) for _ in range(generator.integers(0, 5))]
        found = [
            ([v + float(generator.normal()) * 2 for v in place], label if generator.random() < 0.8 else "yak")
            for place, label in true
            for _ in range(generator.integers(0, 3))
        ]
        found += [(box(), str(generator.choice(["cat", "dog", "yak"]))) for _ in range(generator.integers(0, 3))]
        scores = generator.integers(0, 4, len(found)) / 4 if ties else generator.random(len(found))
        references.append({"boxes": [place for place, _ in true], "labels": [label for _, label in true]})
        predictions.append(
            {
                "boxes": [place for place, _ in found],
                "scores": [float(score) for score in scores],
                "labels": [label for _, label in found],
            }
        )
    return predictions, references


@given(st.integers(0, 10_000), st.integers(1, 20), st.booleans())
@settings(deadline=None, max_examples=40)
def test_all_rows_score_as_faster_coco_eval_scores_them(seed: int, count: int, ties: bool) -> None:
    predictions, references = rows_of(seed, count, ties=ties)
    theirs = coco_scores(predictions, references, label_names=["cow"])
    with np.errstate(all="raise"):
        ours = detection_scores(detection_counts(predictions, references, label_names=["cow"]))
    assert list(ours) == list(theirs)
    assert ours == pytest.approx(theirs, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_drawn_rows_score_as_if_they_were_all(seed: int, count: int) -> None:
    predictions, references = rows_of(seed, count)
    counts = detection_counts(predictions, references)
    drawn = np.random.default_rng(seed).integers(0, count, size=count)
    theirs = coco_scores(
        [predictions[i] for i in drawn], [references[i] for i in drawn], label_names=list(counts.classes)
    )
    assert detection_scores(counts, drawn) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("function", [coco_scores, lambda *rows: detection_scores(detection_counts(*rows))])
def test_hand_made_boxes(function: Any) -> None:
    true = [{"boxes": [CAT], "labels": ["cat"]}]
    perfect = function([row(CAT)], true)
    assert perfect == pytest.approx(dict.fromkeys(EMPTY, 1.0) | {"map/cat": 1.0})
    shifted = function([row([18.0, 20.0, 40.0, 40.0])], true)  # overlap 32 / 48 = 0.667: right at 0.50 to 0.65
    assert (shifted["map"], shifted["map_50"], shifted["map_75"]) == pytest.approx((0.4, 1.0, 0.0))
    assert shifted["mar_100"] == pytest.approx(0.4)
    assert function([row(CAT, label="dog")], true) == EMPTY | {"map/cat": 0.0}
    doubled = function([row(CAT, CAT)], true)
    assert doubled["map"] == pytest.approx(1.0)  # the second is a miss behind full recall
    wrong_first = {"boxes": [[200.0, 200.0, 9.0, 9.0], CAT], "scores": [0.9, 0.8], "labels": ["cat", "cat"]}
    assert function([wrong_first], true)["map"] == pytest.approx(0.5)


@pytest.mark.parametrize("function", [coco_scores, lambda *rows: detection_scores(detection_counts(*rows))])
def test_empty_sides_are_zero_and_never_nan(function: Any) -> None:
    assert function([], []) == EMPTY
    assert function([NOTHING], [{"boxes": [], "labels": []}]) == EMPTY
    assert function([row(CAT)], [{"boxes": [], "labels": []}]) == EMPTY
    assert function([NOTHING], [{"boxes": [CAT], "labels": ["cat"]}]) == EMPTY | {"map/cat": 0.0}


def test_only_the_best_hundred_boxes_of_an_image_and_class_count() -> None:
    true = [{"boxes": [CAT], "labels": ["cat"]}]
    found = row(*([[200.0, 200.0, 9.0, 9.0]] * 100))
    late = {"boxes": [*found["boxes"], CAT], "scores": [*found["scores"], 0.1], "labels": [*found["labels"], "cat"]}
    for scores in (coco_scores([late], true), detection_scores(detection_counts([late], true))):
        assert scores["mar_100"] == 0.0


def test_a_box_of_negative_area_is_not_held_against_anybody() -> None:
    true = [{"boxes": [CAT], "labels": ["cat"]}]
    found = {"boxes": [[0.0, 0.0, -5.0, 9.0], CAT], "scores": [0.9, 0.8], "labels": ["cat", "cat"]}
    for scores in (coco_scores([found], true), detection_scores(detection_counts([found], true))):
        assert scores["map"] == pytest.approx(1.0)


def test_scores_are_those_of_cocos_own_files(tmp_path: Path) -> None:
    predictions, references = rows_of(7, 12)
    number = {"cat": 3, "cow": 8, "dog": 5}
    truth = {"images": [{"id": i + 1} for i in range(12)], "annotations": []}
    truth["categories"] = [{"id": index, "name": name} for name, index in number.items()]
    results = []
    for image, (found, true) in enumerate(zip(predictions, references, strict=True), start=1):
        for box, label in zip(true["boxes"], true["labels"], strict=True):
            known = {
                "image_id": image,
                "category_id": number[label],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            truth["annotations"].append(known | {"id": len(truth["annotations"]) + 1})
        for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
            if label in number:
                results.append({"image_id": image, "category_id": number[label], "bbox": box, "score": score})
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    api = coco.COCO(str(tmp_path / "truth.json"))
    evaluation = coco.COCOeval_faster(api, api.loadRes(str(tmp_path / "results.json")), iouType="bbox")
    evaluation.run()
    theirs = evaluation.stats_as_dict
    ours = detection_scores(detection_counts(predictions, references))
    names = {"map": "AP_all", "map_50": "AP_50", "map_75": "AP_75", "mar_100": "AR_third"}
    assert {name: ours[name] for name in names} == pytest.approx({name: theirs[key] for name, key in names.items()})


def test_nothing_is_printed_or_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO)
    coco_scores(*rows_of(1, 5))
    detection_scores(detection_counts(*rows_of(1, 5)))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_the_evaluate_module_gives_the_same_numbers_and_changes_no_rows() -> None:
    predictions, references = rows_of(3, 6)
    before = json.dumps([predictions, references])
    scores = load_metric("detection").compute(predictions=predictions, references=references, label_names=["yak"])
    assert scores == pytest.approx(
        detection_scores(detection_counts(predictions, references, label_names=["yak"])), abs=1e-12
    )
    assert scores["map/yak"] == 0.0
    assert json.dumps([predictions, references]) == before
