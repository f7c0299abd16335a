"""Rows of token classification: words with tags, or a text with spans, read alike; and what is answered to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ft.errors import DataError
from lora_ft.tasks.parts import tags as bio
from lora_ft.tasks.parts.problem import Parts, Problem
from lora_ft.tasks.parts.windows import trimmed
from lora_ft.tasks.parts.words import join_tokens, split_words

TOKENS, SPANS = "tokens", "spans"

EXAMPLES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("My phone battery broke after one week.", (("phone battery", "product"), ("one week", "time"))),
    ("Anna in Oslo never answered.", (("Anna", "person"), ("Oslo", "place"))),
    ("The story was not bad at all.", ()),
    ("I love the pan, the handle is sturdy, and Per Lind was nice.", (("pan", "product"), ("Per Lind", "person"))),
)


@dataclass(frozen=True)
class TaggedRow:
    """A row as a text and its words.

    Attributes:
        text: The text; tokens are joined by one blank.
        words: Start and end of each word in characters.
        tags: A tag for each word, BIO where they mark entities; None where the row has none.
        given: Whether the words were given as tokens.
    """

    text: str
    words: list[tuple[int, int]]
    tags: list[str] | None
    given: bool


def read_row(row: Mapping[str, Any], problem: Problem) -> TaggedRow:
    """Reads a row of either form, whichever of the two the adapter was trained on.

    Plain text is split into words by `split_words`, with digits apart from letters where spans were learned.

    Raises:
        DataError: The row has neither tokens nor text.
    """
    tokens, text = row.get("tokens"), row.get("text")
    if tokens is not None and (text is None or problem.problem_type == TOKENS):
        tags = row.get("tags")
        entities = bio.is_bio_vocabulary(problem.labels)
        joined, words = join_tokens(tokens)
        return TaggedRow(joined, words, None if tags is None else bio.to_bio(tags) if entities else list(tags), True)
    if text is None:
        raise DataError("row: it has neither tokens (a list of words) nor a text. Give one of them")
    words = split_words(text, numbers_apart=problem.problem_type == SPANS)
    spans = row.get("spans")
    return TaggedRow(text, words, None if spans is None else bio.tags_of_spans(words, _triples(text, spans)), False)


def _triples(text: str, spans: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, str]]:
    """Spans in the order of the text, without blanks at either side."""
    return sorted((*trimmed(text, span["start"], span["end"]), span["label"]) for span in spans)


def fault_of(row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
    """Why a row cannot be used; see `Task.fault`. Without `labels` their names are not checked."""
    if row.get("tokens") is not None and (row.get("tags") is not None or row.get("text") is None):
        return _fault_of_tags(row["tokens"], row.get("tags"), labels=labels)
    if row.get("text") is None:
        return "text: there is none, and no tokens either"
    if row.get("spans") is None:
        return None  # to be answered: an empty line of a file has no entities
    return _fault_of_spans(row["text"], row["spans"], labels=labels)


def _fault_of_tags(tokens: Sequence[str], tags: Sequence[str] | None, *, labels: Sequence[str]) -> str | None:
    if tags is None:
        return None
    if not any(token.strip() for token in tokens):
        return "tokens: there are none"
    if len(tags) != len(tokens):
        return f"tags: there are {len(tags)} for {len(tokens)} tokens; expected one for each"
    entities = bio.is_bio_vocabulary(labels)
    types = {bio.type_or_none(label) for label in labels}
    for at, tag in enumerate(tags):
        known = bio.type_or_none(tag) in types and bio.is_entity_tag(tag) if entities else tag in labels
        if labels and not known:
            return f"tags: {tag!r} of token {at} ({tokens[at]!r}) is none of {_few(labels)}"
    return None


def _fault_of_spans(text: str, spans: Sequence[Mapping[str, Any]], *, labels: Sequence[str]) -> str | None:
    if not text.strip():
        return "text: it is empty"
    words = split_words(text, numbers_apart=True)
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    types = list(dict.fromkeys(kind for label in labels if (kind := bio.type_or_none(label)) is not None))
    for span in spans:
        where = f"spans: {span['start']}-{span['end']} {span['label']}"
        if not 0 <= span["start"] < span["end"] <= len(text):
            return f"{where} is not in the text, which has {len(text)} characters"
        start, end = trimmed(text, span["start"], span["end"])
        if start == end:
            return f"{where} holds nothing but blanks"
        if start not in starts or end not in ends:
            whole = [(left, right) for left, right in words if left < end and right > start]
            left, right = whole[0][0], whole[-1][1]
            return (
                f"{where} ({text[start:end]!r}) begins or ends inside a word. "
                f"Whole words are {left}-{right} ({text[left:right]!r})"
            )
        if labels and span["label"] not in types:
            return f"{where}: the label is none of {_few(types)}"
    ordered = _triples(text, spans)
    for (_, end, one), (start, _, other) in itertools.pairwise(ordered):
        if start < end:
            return f"spans: {one} and {other} overlap at {start}-{end} ({text[start:end]!r}); a word has one tag"
    return None


def _few(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def reference_of(row: Mapping[str, Any], problem: Problem) -> Any:
    """What a prediction is compared with: the tags of tokens; of a text its words and spans."""
    read = read_row(row, problem)
    if read.given:
        return list(read.tags or ())
    spans = _triples(read.text, row["spans"])
    return {"words": [list(word) for word in read.words], "spans": [list(span) for span in spans]}


def prediction_of(parts: Parts, row: TaggedRow, problem: Problem) -> dict[str, Any]:
    """One prediction from the answers of all windows of a row.

    Args:
        parts: For each window (word, token position, label, probability) of each of its words.
        row: The row.
        problem: Its labels say whether there are entities.
    """
    chosen: list[tuple[str, float] | None] = [None] * len(row.words)
    entities = bio.is_bio_vocabulary(problem.labels)
    for part in parts:
        before = -1
        for word, position, label, score in part:
            tag = problem.labels[label]
            chosen[word] = (bio.inside(tag) if entities and position == before else tag, score)
            before = position
    tags, scores = _whole(chosen, entities=entities)
    words = [row.text[start:end] for start, end in row.words]
    if not entities:
        return {**({} if row.given else {"tokens": words}), "tags": tags, "scores": scores}
    tags = bio.to_bio(tags)
    found = []
    for kind, first, after in bio.entities_of(tags):
        start, end = row.words[first][0], row.words[after - 1][1]
        entity = {
            "text": row.text[start:end],
            "label": kind,
            "score": sum(scores[first:after]) / (after - first),
            "start": start,
            "end": end,
        }
        found.append({**entity, "token_start": first, "token_end": after} if row.given else entity)
    return {"tags": tags, "entities": found} if row.given else {"entities": found}


def _whole(chosen: Sequence[tuple[str, float] | None], *, entities: bool) -> tuple[list[str], list[float]]:
    """Tags of all words; one without a token is part of the entity around it, or has the tag of its neighbour."""
    tags: list[str] = []
    scores: list[float] = []
    after: list[str | None] = []  # the tag of the next word that has one
    upcoming = None
    for one in reversed(chosen):
        after.append(upcoming)
        upcoming = one[0] if one is not None else upcoming
    for one, following in zip(chosen, reversed(after), strict=True):
        if one is not None:
            tag, score = one
        elif entities:
            goes_on = bool(tags) and following is not None and following.startswith("I-")
            tag = following if goes_on and following and tags[-1][2:] == following[2:] else bio.OUTSIDE
            score = 0.0
        else:
            tag, score = tags[-1] if tags else following or "", 0.0
        tags.append(tag)
        scores.append(score)
    return tags, scores


def scorer_of(
    predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
) -> Callable[[Any], dict[str, float]]:
    """Metrics of any of the rows; see `Task.scorer`.

    Entities are compared by their exact places: in tokens where words were given, else in characters. Where tags mark
    no entities, `f1` is the unweighted mean over the tags, since over all words it is the accuracy.
    """
    from lora_ft.metrics.entities import entity_counts, entity_scores

    pairs = list(zip(predictions, references, strict=True))
    if not bio.is_bio_vocabulary(problem.labels):
        ours = [one.get("tags", [one.get("tag")] * len(true)) for one, true in pairs]
        sides = [[[(at, at + 1, tag) for at, tag in enumerate(tags)] for tags in side] for side in (ours, references)]
        counts = entity_counts(*sides, types=problem.labels)

        def score_tags(rows: Any) -> dict[str, float]:
            scores = entity_scores(counts, rows)
            each = {name: value for name, value in scores.items() if name.startswith("f1/")}
            return {"f1": scores["f1_macro"], "f1_macro": scores["f1_macro"], "accuracy": scores["f1"], **each}

        return score_tags
    compared = [_compared(one, true) for one, true in pairs]
    spans, true_spans, tags, true_tags = zip(*compared, strict=True) if compared else ((), (), (), ())
    types = [label[2:] for label in problem.labels if label.startswith("B-")]
    found = entity_counts(spans, true_spans, types=types, predicted_tags=tags, reference_tags=true_tags)
    return lambda rows: entity_scores(found, rows)


def _compared(prediction: Mapping[str, Any], reference: Any) -> tuple[list[Any], list[Any], list[str], list[str]]:
    """Spans and tags of a prediction and of what it should be."""
    if isinstance(reference, list):
        true = [(first, after, kind) for kind, first, after in bio.entities_of(reference)]
        spans = [(one["token_start"], one["token_end"], one["label"]) for one in prediction["entities"]]
        return spans, true, prediction.get("tags", [bio.OUTSIDE] * len(reference)), reference
    words = [(start, end) for start, end in reference["words"]]
    true = [(start, end, kind) for start, end, kind in reference["spans"]]
    spans = [(one["start"], one["end"], one["label"]) for one in prediction["entities"]]
    return spans, true, bio.tags_of_spans(words, spans), bio.tags_of_spans(words, true)


def example_rows(problem_type: str) -> dict[str, list[Any]]:
    """The example rows in either form; see `Task.example_rows`."""
    texts = [text for text, _ in EXAMPLES]
    spans = [
        [{"start": (at := text.index(piece)), "end": at + len(piece), "label": kind} for piece, kind in marked]
        for text, marked in EXAMPLES
    ]
    if problem_type == SPANS:
        return {"text": texts, "spans": spans}
    words = [split_words(text, numbers_apart=False) for text in texts]
    tags = [
        bio.tags_of_spans(own, _triples(text, marked)) for own, text, marked in zip(words, texts, spans, strict=True)
    ]
    tokens = [[text[start:end] for start, end in own] for own, text in zip(words, texts, strict=True)]
    return {"tokens": tokens, "tags": tags}
