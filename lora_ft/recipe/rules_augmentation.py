"""The rules on the augmentation of texts: ways to vary them that have what they need, and rows that survive it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.machinery import PathFinder

from lora_ft.recipe.draft import Draft, sets_of
from lora_ft.recipe.faults import Fault

SHARES = ("random_deletion", "random_swap", "synonym_replacement", "character_noise", "entity_swap")
FUNCTION = re.compile(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")


def makes_variants(draft: Draft) -> bool:
    """Whether the task varies rows before they are encoded."""
    return draft.task is not None and "variants" in draft.task.augmentation_fields


def variants_are_made_somehow(draft: Draft) -> Iterator[Fault]:
    """Variants without a way to make them."""
    section = draft.document.find(("augmentation",))[1]
    if draft.task is None or not makes_variants(draft) or not isinstance(section, dict) or not section:
        return
    known = [name for name in (*SHARES, "back_translation") if name in draft.task.augmentation_fields]
    if not any(draft.value("augmentation", name) or draft.wrong("augmentation", name) for name in known):
        yield Fault(
            ("augmentation",),
            f"nothing says how texts are varied. Write one or more of {', '.join(known)}, or leave the section out",
        )


def synonyms_have_a_file(draft: Draft) -> Iterator[Fault]:
    """Synonyms without a file, or a file without synonyms to replace."""
    share, file = draft.value("augmentation", "synonym_replacement"), draft.given("augmentation", "synonyms")
    if share and not file:
        yield Fault(
            ("augmentation", "synonym_replacement"),
            "it needs a file of synonyms. Write augmentation.synonyms: a thesaurus of LibreOffice "
            "(th_en_US_v2.dat), or your own .tsv or .jsonl",
        )
    if file and not share and not draft.wrong("augmentation", "synonym_replacement"):
        yield Fault(
            ("augmentation", "synonyms"),
            "it has no effect without augmentation.synonym_replacement. Write it (0.1), or leave the file out",
        )


def back_translation_names_a_function(draft: Draft) -> Iterator[Fault]:
    """A name that is no function of a module, or of a module that is not there; nothing of it is run for that."""
    name = draft.value("augmentation", "back_translation")
    if not isinstance(name, str):
        return
    found = FUNCTION.fullmatch(name)
    if found is None:
        yield Fault(
            ("augmentation", "back_translation"),
            "expected package.module:function, such as my_translator:there_and_back",
        )
        return
    top = found[1]
    beside = (draft.folder / f"{top}.py").is_file() or (draft.folder / top).is_dir()
    if not beside and PathFinder.find_spec(top) is None:
        yield Fault(
            ("augmentation", "back_translation"),
            f"there is no module {top}, neither on the Python path nor beside the recipe. Install it, or write "
            f"{draft.folder / top}.py",
        )


def augmented_rows_have_a_text(draft: Draft) -> Iterator[Fault]:
    """Rows all of whose texts are learned word by word, so that what is varied would be learned as right."""
    task = draft.task
    if task is None or not makes_variants(draft) or not task.varied_texts or not draft.section("augmentation"):
        return
    sets = sets_of(draft)
    if sets and not any(set(names) & set(task.varied_texts) for names in sets.values()):
        yield Fault(("augmentation",), nothing_to_vary(next(iter(sets.values())), task.varied_texts))


def nothing_to_vary(columns: tuple[str, ...], varied: tuple[str, ...]) -> str:
    """Why rows of some columns are not varied."""
    return (
        f"of rows with {', '.join(columns)} every word is learned, and what is varied would be learned as right. "
        f"Only {', '.join(varied)} of other rows is varied. Leave the section out"
    )
