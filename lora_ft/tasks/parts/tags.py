"""Tags of words: IOB1, BIOES and broken BIO become BIO, and BIO becomes entities as seqeval reads it.

O B-product I-product O S-shop  ->  O B-product I-product O B-shop  ->  (product, 1, 3), (shop, 4, 5)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

OUTSIDE = "O"
CHUNK = re.compile(r"([BIESLU])(?:-(.+))?", re.DOTALL)
BEGINS = {"B": "B", "S": "B", "U": "B", "I": "I", "E": "I", "L": "I"}
ENDS = "ESLU"
NAMELESS = "entity"
"""The type of entities whose tags name none: `B`, `I`, `O`."""

Entity = tuple[str, int, int]
"""Type, first word, word after the last one."""


def are_entity_tags(tags: Iterable[str]) -> bool:
    """Whether tags mark entities (BIO and its relatives), or say something of each word (parts of speech).

    One tag `B-...` or `I-...` is enough, so that a misspelt tag among them is found and not learned.
    """
    found = set(tags)
    if any(tag.startswith(("B-", "I-")) and len(tag) > 2 for tag in found):
        return True
    return bool(found) and all(tag == OUTSIDE or CHUNK.fullmatch(tag) for tag in found)


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is `O`, or one letter of a scheme and an entity type."""
    return tag == OUTSIDE or CHUNK.fullmatch(tag) is not None


def is_other_scheme(tags: Sequence[str]) -> bool:
    """Whether the tags of a sentence mark entities, but not in BIO as it should be."""
    return all(is_entity_tag(tag) for tag in tags) and to_bio(tags) != list(tags)


def inside(tag: str) -> str:
    """The tag of what follows a beginning: `I-x` for `B-x`; any other tag as it is."""
    return f"I-{tag[2:]}" if tag.startswith("B-") else tag


def type_or_none(tag: str) -> str | None:
    """The entity type of a tag; None for `O` and for what is no tag of an entity."""
    return None if tag == OUTSIDE or not CHUNK.fullmatch(tag) else _parts(tag)[1]


def _parts(tag: str) -> tuple[str, str | None]:
    if tag == OUTSIDE:
        return OUTSIDE, None
    match = CHUNK.fullmatch(tag)
    if match is None:
        raise ValueError(f"{tag!r} is neither O nor B-type, I-type (or E-, S-, L-, U-)")
    return BEGINS[match[1]], match[2] or NAMELESS


def to_bio(tags: Sequence[str]) -> list[str]:
    """Tags of a sentence in BIO: an entity that begins with I- (IOB1, a slip) begins with B-.

    Args:
        tags: BIO, IOB1, BIOES or BILOU.

    Raises:
        ValueError: One of them is no tag of an entity.
    """
    read: list[str] = []
    before = None  # the type of the entity that may go on
    for tag in tags:
        letter, kind = _parts(tag)
        if kind is None:
            read.append(OUTSIDE)
        else:
            read.append(f"{'I' if letter == 'I' and kind == before else 'B'}-{kind}")
        before = None if tag[0] in ENDS else kind
    return read


def bio_vocabulary(types: Iterable[str]) -> tuple[str, ...]:
    """O, then B- and I- of each type in the order given."""
    return (OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in "BI"))


def tag_vocabulary(
    tags: Iterable[str], *, types: Iterable[str] = (), given: Sequence[str] | None = None
) -> tuple[str, ...]:
    """All tags in a stable order: O, B-x, I-x by entity type, or the tags themselves where they mark no entities.

    Args:
        tags: The tags of the data, in any scheme.
        types: Entity types that are known without tags.
        given: Entity types, BIO tags or other tags, in the order that they shall have.
    """
    found = set(tags)
    if found and not are_entity_tags(found):
        return tuple(given or sorted(found))
    known = {*types, *(kind for tag in found if (kind := type_or_none(tag)) is not None)}
    if given and are_entity_tags(given):
        kinds = dict.fromkeys(kind for tag in given if (kind := type_or_none(tag)) is not None)
        whole = bio_vocabulary(kinds)
        return tuple(given) if sorted(given) == sorted(whole) else whole
    return bio_vocabulary(given or sorted(known))


def is_bio_vocabulary(labels: Sequence[str]) -> bool:
    """Whether labels were made by `bio_vocabulary`, or given in that form: then there are entities."""
    return OUTSIDE in labels and all(tag == OUTSIDE or tag.startswith(("B-", "I-")) for tag in labels)


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of BIO tags."""
    found: list[Entity] = []
    for at, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((tag[2:], at, at + 1))
        elif tag != OUTSIDE:
            kind, first, _ = found[-1]
            found[-1] = (kind, first, at + 1)
    return found


def tags_of_spans(words: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int, str]]) -> list[str]:
    """BIO tags of words that spans lie on.

    Args:
        words: Start and end of each word in characters.
        spans: Start, end and type of each span; they do not overlap.
    """
    tags = [OUTSIDE] * len(words)
    for start, end, kind in spans:
        inside = [at for at, (left, right) in enumerate(words) if left < end and right > start]
        for number, at in enumerate(inside):
            tags[at] = f"{'I' if number else 'B'}-{kind}"
    return tags
