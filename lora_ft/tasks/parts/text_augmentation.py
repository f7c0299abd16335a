"""Training texts varied at random: the `augmentation` section of the text tasks.

A text is encoded once, often to several features, so it is varied before: `variants` more rows are made of each
training row, each by one of the operations that the recipe names. What each does is in `text_pieces.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.problem import Variation
from lora_ft.tasks.parts.text_pieces import (
    Edit,
    delete_words,
    joined,
    mistype,
    pieces_of,
    replace_synonyms,
    swap_words,
)
from lora_ft.tasks.parts.thesaurus import synonyms_of

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]

WORD_FIELDS: Mapping[str, FieldTypes] = {
    "variants": (int,),
    "random_deletion": (float,),
    "random_swap": (float,),
    "synonym_replacement": (float,),
    "synonyms": (str,),
    "character_noise": (float,),
    "keep_words": (list,),
}
TEXT_FIELDS: Mapping[str, FieldTypes] = {**WORD_FIELDS, "back_translation": (str,)}
"""Of tasks whose texts are rewritten as a whole."""

TAG_FIELDS: Mapping[str, FieldTypes] = {**WORD_FIELDS, "entity_swap": (float,)}
"""Of tasks whose labels lie on single words, which a translation would lose."""

NEGATIONS = ("no", "not", "never", "none", "nor", "neither", "nothing", "nobody", "nowhere", "without", "cannot")
"""English words whose loss turns a meaning over; with what ends in n't they stay unless `keep_words` says otherwise."""


@dataclass(frozen=True)
class TextAugmentation:
    """How training texts are varied; by default not at all.

    Attributes:
        variants: How many more rows are made of each training row.
        random_deletion: Share of the words that is taken out.
        random_swap: Share of the words that change places with another one.
        synonym_replacement: Share of the words that are replaced by a synonym.
        synonyms: The file that the synonyms are in.
        character_noise: Share of the letters that are mistyped.
        entity_swap: Share of the entities that are replaced by another one of their type, out of the training rows.
        keep_words: Words that always stay as they are.
        back_translation: `package.module:function`, from texts to as many texts that say the same in other words.
    """

    variants: int = 1
    random_deletion: float = 0.0
    random_swap: float = 0.0
    synonym_replacement: float = 0.0
    synonyms: str | None = None
    character_noise: float = 0.0
    entity_swap: float = 0.0
    keep_words: tuple[str, ...] = NEGATIONS
    back_translation: str | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> TextAugmentation:
        """The `augmentation` section of a checked recipe."""
        given = {one.name: section[one.name] for one in fields(cls) if section.get(one.name) is not None}
        if "keep_words" in given:
            given["keep_words"] = tuple(_folded(str(word)) for word in given["keep_words"])
        return cls(**given)

    def keeps(self, word: str) -> bool:
        """Whether a word stays as it is."""
        small = _folded(word)
        return small in self.keep_words or (self.keep_words is NEGATIONS and small.endswith("n't"))

    def edits(self) -> dict[str, tuple[Edit, float]]:
        """The operations on words that the recipe asks for, each with its share.

        Raises:
            InputError: The file of synonyms cannot be read.
        """
        found: dict[str, tuple[Edit, float]] = {
            "random_deletion": (delete_words, self.random_deletion),
            "random_swap": (swap_words, self.random_swap),
            "character_noise": (mistype, self.character_noise),
        }
        if self.synonym_replacement and self.synonyms is not None:
            known = synonyms_of(Path(self.synonyms))
            found["synonym_replacement"] = (partial(replace_synonyms, synonyms=known), self.synonym_replacement)
        return {name: (edit, share) for name, (edit, share) in found.items() if share > 0}


def _folded(word: str) -> str:
    """A word as words are compared: whatever its case and its apostrophe."""
    return word.lower().replace("\u2019", "'")


def text_variations(section: Mapping[str, Any], *, columns: Iterable[str]) -> dict[str, Variation]:
    """The ways in which the free texts of a row are varied.

    Args:
        section: The `augmentation` section of the recipe.
        columns: The columns that may be rewritten; those that a row lacks are passed over.

    Returns:
        Name of an operation -> what varies a row by it.
    """
    augmentation = TextAugmentation.of(section)
    names = tuple(columns)

    def varied(row: Row, rng: np.random.Generator, *, edit: Edit, share: float) -> dict[str, Any]:
        return {**row, **{name: _edited(row[name], edit, share, rng) for name in names if row.get(name)}}

    def _edited(text: str, edit: Edit, share: float, rng: np.random.Generator) -> str:
        pieces, tail = pieces_of(text, keep=augmentation.keeps)
        done = edit(pieces, share, rng)
        return text if done is None else joined(done, tail)

    return {name: partial(varied, edit=edit, share=share) for name, (edit, share) in augmentation.edits().items()}
