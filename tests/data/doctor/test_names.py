"""Every finding has one name: in the code, in the list of names that a recipe can turn off, and in docs/data.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from lora_ft.data.doctor import (
    boilerplate,
    boxes,
    contexts,
    duplicates,
    entities,
    languages,
    media_names,
    numbers,
    scripts,
    texts,
    transcripts,
)
from lora_ft.recipe.check_names import FINDINGS, GATES

ROOT = Path(__file__).parents[3]
NAME = re.compile(r"[a-z]+(?:-[a-z0-9]+)+|boilerplate|mojibake")
SOURCES = (
    *sorted((ROOT / "lora_ft" / "data" / "doctor").glob("*.py")),
    *sorted((ROOT / "lora_ft" / "assemble").glob("examined*.py")), ROOT / "lora_ft" / "assemble" / "suspected.py",
)  # fmt: skip
NO_FINDINGS = {"utf-8"}


def names_in(file: Path) -> set[str]:
    """All texts of a file that look like the name of a finding."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in constants if NAME.fullmatch(text)} - NO_FINDINGS


def test_the_code_says_exactly_the_names_of_the_list() -> None:
    told = {name for file in SOURCES for name in names_in(file)} - texts.PLACEHOLDERS
    assert told == set(FINDINGS)


def test_the_names_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    assert {name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if NAME.fullmatch(name)} == set(FINDINGS)


def test_no_gate_has_the_name_of_a_finding() -> None:
    assert not set(GATES) & set(FINDINGS)
    assert len(set(FINDINGS)) == len(FINDINGS)


def test_what_a_check_is_asked_by_are_names_of_the_list() -> None:
    checks = (
        boilerplate.BoilerplateCheck, boxes.BoxCheck, contexts.ContextCheck, duplicates.DuplicateCheck,
        entities.EntityCheck, languages.LanguageCheck, numbers.NumberCheck, scripts.ScriptCheck,
        transcripts.TranscriptCheck,
    )  # fmt: skip
    names = [name for check in checks for name in check.NAMES] + [fault.name for fault in texts.FAULTS]
    names += [*media_names.IMAGE_FINDINGS, *media_names.SOUND_FINDINGS]
    assert len(set(names)) == len(names)
    assert set(names) <= set(FINDINGS)
