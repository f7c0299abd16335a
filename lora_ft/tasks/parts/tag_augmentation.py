"""Tagged training texts varied so that each label stays on its words: `augmentation` of token-classification.

"Ask Anna in Oslo" (Anna person, Oslo place)  ->  "Ask Per Lind in Oslo" (Per Lind person, Oslo place)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.tasks.parts import tags as bio
from lora_ft.tasks.parts.problem import Problem, Variation
from lora_ft.tasks.parts.tagged import TOKENS, fault_of
from lora_ft.tasks.parts.text_augmentation import Row, TextAugmentation
from lora_ft.tasks.parts.text_pieces import Edit, Piece, pieces_of
from lora_ft.tasks.parts.windows import trimmed

if TYPE_CHECKING:
    import numpy as np

Pool = Mapping[str, Sequence[tuple[str, ...]]]
"""Entity type -> the entities of that type: their words, or the one text of them."""


def tag_variations(rows: Iterable[Row], problem: Problem) -> dict[str, Variation]:
    """The ways in which a tagged row is varied; what lies outside of entities is changed, entities as a whole.

    Args:
        rows: The training rows, where other entities come from.
        problem: Its augmentation, and its labels, which say whether there are entities.

    Raises:
        InputError: The recipe asks for what tags of each word (parts of speech) do not survive.
    """
    augmentation = TextAugmentation.of(problem.augmentation)
    entities = bio.is_bio_vocabulary(problem.labels)
    for name in ("entity_swap", "synonym_replacement"):
        if vars(augmentation)[name] and not entities:
            raise InputError(
                f"augmentation.{name}: these tags mark no entities but say something of each word, which "
                "another word need not share. Leave it out"
            )
    by_tokens = problem.problem_type == TOKENS
    edited, swapped = (_edited_tokens, _swapped_tokens) if by_tokens else (_edited_text, _swapped_text)
    found: dict[str, Variation] = {
        name: partial(_checked, change=partial(edited, edit=edit, share=share, about=(augmentation, entities)))
        for name, (edit, share) in augmentation.edits().items()
    }
    if augmentation.entity_swap:
        pool = _pool(rows, by_tokens=by_tokens)
        found["entity_swap"] = partial(_checked, change=partial(swapped, share=augmentation.entity_swap, pool=pool))
    return found


def _checked(row: Row, rng: np.random.Generator, *, change: Variation) -> dict[str, Any]:
    """The row changed; as it was where words grew together so that a label would begin inside of one."""
    done = change(row, rng)
    return done if fault_of(done, labels=()) is None else dict(row)


def _edited_tokens(
    row: Row, rng: np.random.Generator, *, edit: Edit, share: float, about: tuple[TextAugmentation, bool]
) -> dict[str, Any]:
    augmentation, entities = about
    tags = bio.to_bio(row["tags"]) if entities else list(row["tags"])
    pieces = [
        Piece("", token, _varies(token, augmentation) and (not entities or tag == bio.OUTSIDE), tag)
        for token, tag in zip(row["tokens"], tags, strict=True)
    ]
    done = edit(pieces, share, rng)
    if done is None:
        return dict(row)
    return {**row, "tokens": [piece.text for piece in done], "tags": [piece.tag for piece in done]}


def _varies(token: str, augmentation: TextAugmentation) -> bool:
    return any(char.isalpha() for char in token) and not augmentation.keeps(token)


def _edited_text(
    row: Row, rng: np.random.Generator, *, edit: Edit, share: float, about: tuple[TextAugmentation, bool]
) -> dict[str, Any]:
    spans = _ordered(row)
    pieces, tail = pieces_of(row["text"], keep=about[0].keeps, fixed=[(start, end) for start, end, _ in spans])
    labelled = _labelled(pieces, spans)
    done = edit(labelled, share, rng)
    return dict(row) if done is None else _written(row, done, tail)


def _swapped_text(row: Row, rng: np.random.Generator, *, share: float, pool: Pool) -> dict[str, Any]:
    spans = _ordered(row)
    pieces, tail = pieces_of(row["text"], keep=lambda _: True, fixed=[(start, end) for start, end, _ in spans])
    labelled = _labelled(pieces, spans)
    marked = [at for at, piece in enumerate(labelled) if piece.tag]
    others = _drawn([(labelled[at].tag, (labelled[at].text,)) for at in marked], share, rng, pool=pool)
    for at, other in others.items():
        labelled[marked[at]] = Piece(labelled[marked[at]].before, other[0], False, labelled[marked[at]].tag)
    return _written(row, labelled, tail) if others else dict(row)


def _swapped_tokens(row: Row, rng: np.random.Generator, *, share: float, pool: Pool) -> dict[str, Any]:
    tokens, tags = list(row["tokens"]), bio.to_bio(row["tags"])
    found = bio.entities_of(tags)
    others = _drawn([(kind, tuple(tokens[first:after])) for kind, first, after in found], share, rng, pool=pool)
    for at in sorted(others, reverse=True):  # from the right, so that what is left of it keeps its place
        kind, first, after = found[at]
        tokens[first:after] = others[at]
        tags[first:after] = [f"{'I' if number else 'B'}-{kind}" for number in range(len(others[at]))]
    return {**row, "tokens": tokens, "tags": tags} if others else dict(row)


def _drawn(
    entities: Sequence[tuple[str, tuple[str, ...]]], share: float, rng: np.random.Generator, *, pool: Pool
) -> dict[int, tuple[str, ...]]:
    """Which entities of a row are replaced, and by which; at least one where any has another of its type."""
    known = [at for at, (kind, words) in enumerate(entities) if set(pool.get(kind, ())[:2]) - {words}]
    if not known:
        return {}
    size = min(len(known), max(1, round(share * len(entities))))
    drawn = {}
    for at in (known[one] for one in rng.choice(len(known), size=size, replace=False)):
        kind, words = entities[at]
        others = pool[kind]
        number = int(rng.integers(len(others)))
        drawn[at] = others[number] if others[number] != words else others[(number + 1) % len(others)]
    return drawn


def _pool(rows: Iterable[Row], *, by_tokens: bool) -> Pool:
    """All entities of the training rows by their type, each once, in a stable order."""
    found: dict[str, dict[tuple[str, ...], None]] = {}
    for row in rows:
        if by_tokens:
            own = [(kind, tuple(row["tokens"][a:b])) for kind, a, b in bio.entities_of(bio.to_bio(row["tags"]))]
        else:
            own = [(kind, (row["text"][start:end],)) for start, end, kind in _ordered(row)]
        for kind, words in own:
            found.setdefault(kind, {})[words] = None
    return {kind: tuple(words) for kind, words in found.items()}


def _ordered(row: Row) -> list[tuple[int, int, str]]:
    """Start, end and label of the spans of a row, in the order of the text, without blanks at either side."""
    return sorted((*trimmed(row["text"], span["start"], span["end"]), span["label"]) for span in row["spans"])


def _labelled(pieces: Sequence[Piece], spans: Sequence[tuple[int, int, str]]) -> list[Piece]:
    """The pieces, those that are a span with its label."""
    labels = {(start, end): label for start, end, label in spans}
    found, at = [], 0
    for piece in pieces:
        start = at + len(piece.before)
        at = start + len(piece.text)
        found.append(Piece(piece.before, piece.text, piece.varies, labels.get((start, at), "")))
    return found


def _written(row: Row, pieces: Sequence[Piece], tail: str) -> dict[str, Any]:
    """A row with the text of pieces, and its spans where they lie now."""
    text, spans = "", []
    for piece in pieces:
        text += piece.before
        if piece.tag:
            spans.append({"start": len(text), "end": len(text) + len(piece.text), "label": piece.tag})
        text += piece.text
    return {**row, "text": text + tail, "spans": spans}
