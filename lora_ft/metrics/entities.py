"""Metrics of found entities, equal to seqeval's: exact start, end and label; micro, macro and for each type.

One row's references: [{"start": 0, "end": 2, "label": "PER"}, {"start": 5, "end": 6, "label": "LOC"}]
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.libraries import library
from lora_ft.metrics.totals import Table, ratio, totals

DESCRIPTION = """Precision, recall and F1 of entities: one is right where start, end and label are all
exact; the same span twice in one row counts once. `precision`, `recall` and `f1` are over all entities (micro),
`f1_macro` is the unweighted mean over the types that occur, `f1/<type>` the F1 of each type. Where tags are given,
`accuracy` is the share of tokens whose tag is right. A division by zero is 0.0. Equal to seqeval's default mode."""

INPUTS = """
Args:
    predictions: For each row a list of spans, {"start": int, "end": int, "label": str}.
    references: Likewise.
    types: Types that get an f1/<type> even where they do not occur; may be left out.
    predicted_tags: For each row a tag for each token; may be left out.
    reference_tags: Likewise.
"""

CITATION = """@misc{seqeval, title={{seqeval}: A Python framework for sequence labeling evaluation},
url={https://github.com/chakki-works/seqeval}, author={Hiroki Nakayama}, year={2018}}"""

Span = Mapping[str, Any] | Sequence[Any]
"""`{"start", "end", "label"}`, further keys are not read; or `(start, end, label)`."""

BILOU = {"L-": "E-", "U-": "S-"}


@dataclass(frozen=True)
class EntityCounts:
    """What the metrics of any rows are summed from.

    Attributes:
        types: All types in order.
        table: Entities of each type that are right, predicted and true, `(rows, 3 * types)`.
        tokens: Tags that are right, and all tags, `(rows, 2)`; None where no tags were given.
    """

    types: tuple[str, ...]
    table: Table
    tokens: Table | None


def entity_counts(
    predictions: Sequence[Iterable[Span]],
    references: Sequence[Iterable[Span]],
    *,
    types: Sequence[str] = (),
    predicted_tags: Sequence[Sequence[str]] | None = None,
    reference_tags: Sequence[Sequence[str]] | None = None,
) -> EntityCounts:
    """Counts the entities of each row, once for all draws of a bootstrap.

    Args:
        predictions: For each row its spans.
        references: For each row its spans.
        types: Types that get an f1/<type> even where they do not occur.
        predicted_tags: For each row a tag for each token, with `reference_tags`.
        reference_tags: Likewise, as many as predicted.

    Returns:
        The counts.
    """
    pairs = [(_spans(predicted), _spans(true)) for predicted, true in zip(predictions, references, strict=True)]
    found = {label for sides in pairs for side in sides for _, _, label in side}
    names = (*dict.fromkeys(types), *sorted(found - set(types)))
    column = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(pairs), 3, len(names)))
    for row, (predicted, true) in enumerate(pairs):
        for kind, side in enumerate((predicted & true, predicted, true)):
            for _, _, label in side:
                table[row, kind, column[label]] += 1
    return EntityCounts(names, table.reshape(len(pairs), -1), _token_counts(predicted_tags, reference_tags))


def entity_scores(counts: EntityCounts, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn rows.

    Args:
        counts: As `entity_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value.
    """
    right, predicted, true = totals(counts.table, rows).reshape(3, -1)  # (types,) each
    each = ratio(2 * right, predicted + true)
    occurs = (predicted + true) > 0
    scores = {
        "f1": float(ratio(2 * right.sum(), predicted.sum() + true.sum())),
        "precision": float(ratio(right.sum(), predicted.sum())),
        "recall": float(ratio(right.sum(), true.sum())),
        "f1_macro": float(each[occurs].mean()) if occurs.any() else 0.0,
    }
    if counts.tokens is not None:
        scores["accuracy"] = float(ratio(*totals(counts.tokens, rows)))
    return scores | {f"f1/{name}": float(value) for name, value in zip(counts.types, each, strict=True)}


def bio_spans(tags: Sequence[str]) -> list[dict[str, Any]]:
    """The spans that a row of tags names, as seqeval's default mode reads them.

    BIO, IOB1 and BIOES tags, and BILOU ones, which seqeval itself misreads in this mode. It is lenient: an `I-` that
    follows nothing of its type begins a span. Tags that mark no spans (NOUN, VERB) do not belong here.

    Args:
        tags: A tag for each token: `B-PER`, `I-PER`, `O`.

    Returns:
        Spans in token positions, `end` exclusive, in order.
    """
    get_entities = library("seqeval.metrics.sequence_labeling", metrics="of entities").get_entities
    plain = [BILOU.get(tag[:2], tag[:2]) + tag[2:] for tag in tags]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* seems not to be NE tag", category=UserWarning)
        entities = get_entities(plain)
    return [{"start": int(first), "end": int(last) + 1, "label": str(label)} for label, first, last in entities]


def _spans(spans: Iterable[Span]) -> set[tuple[int, int, str]]:
    triples = (
        (span["start"], span["end"], span["label"]) if isinstance(span, Mapping) else tuple(span) for span in spans
    )
    return {(int(start), int(end), str(label)) for start, end, label in triples}


def _token_counts(predicted: Sequence[Sequence[str]] | None, true: Sequence[Sequence[str]] | None) -> Table | None:
    if predicted is None or true is None:
        return None
    rows = [
        (sum(one == other for one, other in zip(ours, theirs, strict=True)), len(theirs))
        for ours, theirs in zip(predicted, true, strict=True)
    ]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 2)


class Entities(evaluate.Metric):  # type: ignore[misc]
    """Metrics of spans against spans."""

    def _info(self) -> evaluate.MetricInfo:
        spans = datasets.List(
            {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "label": datasets.Value("string")}
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": spans, "references": spans}),
            reference_urls=["https://github.com/chakki-works/seqeval"],
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        *,
        types: Sequence[str] = (),
        predicted_tags: Sequence[Sequence[str]] | None = None,
        reference_tags: Sequence[Sequence[str]] | None = None,
    ) -> dict[str, float]:
        counts = entity_counts(
            predictions, references, types=types, predicted_tags=predicted_tags, reference_tags=reference_tags
        )
        return entity_scores(counts)
