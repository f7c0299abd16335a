"""Metrics of detected objects: COCO's mean average precision, by faster-coco-eval.

One row's references: {"boxes": [[12.0, 8.5, 40.0, 30.0]], "labels": ["cat"]}; a box is x, y, width, height in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.libraries import library
from lora_ft.metrics.totals import row_weights

DESCRIPTION = """COCO's metrics of boxes. `map`: average precision, mean over classes and over the ten overlaps
(intersection over union) 0.50 to 0.95; `map_50` and `map_75`: at one overlap; `mar_100`: recall with at most 100
boxes an image and class, mean over classes and overlaps; `map/<class>`: average precision of one class. A class
without a reference has no part in the means, whatever is predicted of it; its own map/<class> is 0.0, and so is all
where there are no references. The best 100 boxes of a class in an image count."""

INPUTS = """
Args:
    predictions: For each row {"boxes": [[x, y, width, height]], "scores": [...], "labels": [...]}.
    references: For each row {"boxes": [[x, y, width, height]], "labels": [...]}.
    label_names: Classes that get a map/<class> even where they do not occur; may be left out.
"""

CITATION = """@inproceedings{coco, title={Microsoft {COCO}: Common Objects in Context},
author={Lin, Tsung-Yi and others}, booktitle={ECCV}, year={2014}}"""

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AT_50, AT_75 = 0, 5
MOST_BOXES = 100

Row = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class ClassCounts:
    """The boxes of one class in all rows.

    Attributes:
        objects: How many references each row has, `(rows,)`.
        rows: The row of each prediction, the surest prediction first, `(predictions,)`.
        hits: For each overlap the predictions that found an object, as positions in `rows`, in order.
    """

    objects: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    hits: tuple[npt.NDArray[np.int64], ...]


@dataclass(frozen=True)
class DetectionCounts:
    """What the metrics of any rows are computed from.

    Attributes:
        count: How many rows there are.
        classes: The boxes of each class, in the order of the metrics.
    """

    count: int
    classes: Mapping[str, ClassCounts]


@dataclass
class _Collected:
    """The boxes of one class while rows are read; as `ClassCounts`, predictions in the order of the rows."""

    objects: npt.NDArray[np.float64]
    rows: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    found: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def finished(self) -> ClassCounts:
        """The same, the surest prediction first; equals in the order of the rows, as in COCO."""
        order = np.argsort(-np.asarray(self.scores), kind="stable")
        found = np.concatenate([np.zeros((len(OVERLAPS), 0), dtype=np.bool_), *self.found], axis=1)[:, order]
        return ClassCounts(
            self.objects, np.asarray(self.rows, dtype=np.int64)[order], tuple(map(np.flatnonzero, found))
        )


def detection_counts(
    predictions: Sequence[Row], references: Sequence[Row], *, label_names: Sequence[str] = ()
) -> DetectionCounts:
    """Finds which predictions hit an object, once for all draws of a bootstrap.

    Args:
        predictions: For each row `boxes` (x, y, width, height in pixels), `scores` and `labels`.
        references: For each row `boxes` and `labels`.
        label_names: Classes that get a map/<class> even where they do not occur.

    Returns:
        The counts.

    Raises:
        InputError: faster-coco-eval is not installed.
    """
    names = _class_names(references, label_names)
    collected = {name: _Collected(np.zeros(len(references))) for name in names}
    for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
        theirs = _by_label(true)
        for name, objects in theirs.items():
            collected[name].objects[row] = len(objects)
        for name, scored in _by_label(predicted).items():
            if name not in collected:
                continue
            best = sorted(scored, key=lambda pair: -pair[0])[:MOST_BOXES]
            ours = [(score, box) for score, box in best if box[2] * box[3] >= 0]  # COCO's smallest area is 0
            one = collected[name]
            one.rows += [row] * len(ours)
            one.scores += [score for score, _ in ours]
            one.found.append(_matches([box for _, box in ours], [box for _, box in theirs.get(name, ())]))
    return DetectionCounts(len(references), {name: one.finished() for name, one in collected.items()})


def detection_scores(counts: DetectionCounts, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn rows; a row that is drawn twice counts as two images.

    Args:
        counts: As `detection_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value.
    """
    weights = row_weights(rows, counts.count)
    curves = {name: _class_curves(boxes, weights) for name, boxes in counts.classes.items()}
    precisions = {name: curve[0] for name, curve in curves.items() if curve is not None}
    recalls = [curve[1] for curve in curves.values() if curve is not None]
    return _named(list(counts.classes), precisions, np.asarray(recalls))


def coco_scores(
    predictions: Sequence[Row], references: Sequence[Row], *, label_names: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of all rows by faster-coco-eval alone; what `detection_scores` is held to.

    Args:
        predictions: As in `detection_counts`.
        references: As in `detection_counts`.
        label_names: As in `detection_counts`.

    Returns:
        Metric -> value.

    Raises:
        InputError: faster-coco-eval is not installed.
    """
    coco = library("faster_coco_eval", metrics="of boxes", extra="vision")
    quiet = logging.getLogger(__name__).debug
    names = _class_names(references, label_names)
    number = {name: index for index, name in enumerate(names, start=1)}
    true = coco.COCO(
        {
            "images": [{"id": row} for row in range(len(references))],
            "categories": [{"id": index, "name": name} for name, index in number.items()],
            "annotations": _annotations(references, number),
        },
        print_function=quiet,
    )
    found = true.loadRes(_annotations(predictions, number))
    evaluation = coco.COCOeval_faster(true, found, iouType="bbox", print_function=quiet)
    evaluation.evaluate()
    evaluation.accumulate()
    # (overlaps, recalls, classes, areas, most boxes) and the same without recalls; -1 where nothing is defined
    precision = evaluation.eval["precision"][..., 0, -1]
    recall = evaluation.eval["recall"][..., 0, -1]
    occurs = [index for index in range(len(names)) if (precision[..., index] > -1).any()]
    precisions = {names[index]: precision[..., index].mean(axis=1) for index in occurs}
    return _named(names, precisions, recall[:, occurs].T)


def _named(
    names: Sequence[str], precisions: Mapping[str, npt.NDArray[np.float64]], recalls: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Metrics from the average precisions `(overlaps,)` and recalls `(classes, overlaps)` of the classes that occur."""
    table = np.asarray(list(precisions.values())) if precisions else np.zeros((1, len(OVERLAPS)))
    scores = {
        "map": float(table.mean()),
        "map_50": float(table[:, AT_50].mean()),
        "map_75": float(table[:, AT_75].mean()),
        "mar_100": float(recalls.mean()) if recalls.size else 0.0,
    }
    each = {f"map/{name}": float(precisions[name].mean()) if name in precisions else 0.0 for name in names}
    return scores | each


def _class_names(references: Sequence[Row], label_names: Sequence[str]) -> list[str]:
    found = {str(label) for row in references for label in row["labels"]}
    return [*dict.fromkeys(label_names), *sorted(found - set(label_names))]


def _annotations(rows: Sequence[Row], number: Mapping[str, int]) -> list[dict[str, Any]]:
    """Boxes as COCO's lists have them; those of classes that have no number are left out."""
    annotations: list[dict[str, Any]] = []
    for image, row in enumerate(rows):
        scores = row["scores"] if "scores" in row else [1.0] * len(row["boxes"])
        for box, label, score in zip(row["boxes"], row["labels"], scores, strict=True):
            if label in number:
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # 0 would read as "not matched"
                        "image_id": image,
                        "category_id": number[label],
                        "bbox": [float(value) for value in box],
                        "area": float(box[2]) * float(box[3]),
                        "iscrowd": 0,
                        "score": float(score),
                    }
                )
    return annotations


def _by_label(row: Row) -> dict[str, list[tuple[float, Any]]]:
    """Label -> scores and boxes; references have no scores and get 1."""
    scores = row["scores"] if "scores" in row else [1.0] * len(row["boxes"])
    grouped: dict[str, list[tuple[float, Any]]] = {}
    for box, label, score in zip(row["boxes"], row["labels"], scores, strict=True):
        grouped.setdefault(label, []).append((float(score), box))
    return grouped


def _matches(ours: Sequence[Any], theirs: Sequence[Any]) -> npt.NDArray[np.bool_]:
    """Which predictions of one image find an object that no surer one has found, `(overlaps, predictions)`.

    Source: `COCOeval.evaluateImg` of pycocotools 2.0: each takes the free object that it overlaps most, the last of
    equals.
    """
    found = np.zeros((len(OVERLAPS), len(ours)), dtype=np.bool_)
    if not ours or not theirs:
        return found
    boxes = [np.asarray(side, dtype=np.float64).reshape(-1, 4) for side in (ours, theirs)]
    masks = library("faster_coco_eval.core.mask", metrics="of boxes", extra="vision")
    overlap = np.asarray(masks.iou(*boxes, [0] * len(theirs)))[:, ::-1]  # (predictions, objects), last object first
    for index, needed in enumerate(OVERLAPS):
        free = np.where(overlap >= min(needed, 1 - 1e-10), overlap, -1.0)
        for one in np.flatnonzero(free.max(axis=1) >= 0):
            best = free[one].argmax()
            if free[one, best] >= 0:
                found[index, one] = True
                free[:, best] = -1.0
    return found


def _class_curves(
    boxes: ClassCounts, weights: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Average precision and recall of a class, `(overlaps,)` each; None where the drawn rows have no object of it.

    Precision falls with each miss and rises with each hit, so only hits are looked at.
    """
    objects = float(weights @ boxes.objects)
    if objects == 0:
        return None
    drawn = weights[boxes.rows]
    seen = np.cumsum(drawn)
    precisions, recalls = np.zeros(len(OVERLAPS)), np.zeros(len(OVERLAPS))
    for index, hits in enumerate(boxes.hits):
        if not len(hits):
            continue
        right = np.cumsum(drawn[hits])
        precision = right / np.maximum(seen[hits], 1)
        from_here_on = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        precisions[index] = from_here_on[np.searchsorted(right / objects, RECALLS, side="left")].mean()
        recalls[index] = right[-1] / objects
    return precisions, recalls


class Detection(evaluate.Metric):  # type: ignore[misc]
    """Metrics of boxes against boxes."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.List(datasets.List(datasets.Value("float64")))
        labels = datasets.List(datasets.Value("string"))
        scores = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": {"boxes": boxes, "scores": scores, "labels": labels},
                    "references": {"boxes": boxes, "labels": labels},
                }
            ),
            reference_urls=["https://cocodataset.org/#detection-eval"],
        )

    def _compute(self, predictions: Any, references: Any, *, label_names: Sequence[str] = ()) -> dict[str, float]:
        return coco_scores(predictions, references, label_names=label_names)
