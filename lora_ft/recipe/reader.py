"""Reads YAML text into plain values with the line of every key and list item.

One real line and what it becomes: `learning_rate: 1e-4` -> `{"learning_rate": 0.0001}`.

Types follow the core schema of YAML 1.2 (`scalars.py`). Tags (`!!python/...`) and merge keys (`<<`) are
refused; anchors and aliases work. A key is text as it is written: `0:` is the key "0".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from lora_ft.errors import RecipeError
from lora_ft.recipe.faults import Document, Fault, KeyPath, Place, one_line
from lora_ft.recipe.scalars import plain_scalar

DEEPEST = 20
MOST_VALUES = 50_000


class RecipeYamlError(Exception):
    """Text that is not the YAML of a recipe.

    Args:
        line: The line of the text, from 1.
        message: What is wrong and what to do.
    """

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        self.message = message
        super().__init__(message)


class _Composer:
    """Puts the parser's events together; keeps the line of each key, the anchors, and keys written twice."""

    def __init__(self, events: Iterator[Event]) -> None:
        self.events = events
        self.lines: dict[KeyPath, int] = {}
        self.twice: list[tuple[KeyPath, int]] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.values = 0

    def document(self) -> Any:
        """The one value of the text; None for text without any."""
        value = None
        documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise RecipeYamlError(_line(event), "a second document starts here. Expected one: remove the '---'")
                value = self.value(next(self.events), ())
            elif isinstance(event, StreamEndEvent):
                break
        return value

    def value(self, event: Event, path: KeyPath) -> Any:
        """The value that starts with an event."""
        self.values += 1
        if len(path) > DEEPEST or self.values > MOST_VALUES:
            raise RecipeYamlError(_line(event), "the text is nested too deeply or is too long for a recipe")
        if isinstance(event, AliasEvent):
            return self.alias(event)
        if not isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            raise RecipeYamlError(_line(event), "expected a value")
        if event.ctag is not None:
            tag = one_line(str(event.ctag))
            raise RecipeYamlError(_line(event), f"the tag {tag!r} is not allowed. Remove it")
        before = self.values
        if isinstance(event, ScalarEvent):
            value: Any = self.scalar(event)
        elif isinstance(event, MappingStartEvent):
            value = self.mapping(path)
        else:
            value = self.sequence(path)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.values - before + 1)
        return value

    def alias(self, event: AliasEvent) -> Any:
        """The value of an anchor; its size counts again, so that aliases of aliases stay bounded."""
        if event.anchor not in self.anchors:
            raise RecipeYamlError(
                _line(event),
                f"'*{one_line(event.anchor)}' refers to an anchor that is not defined above. If '*' belongs "
                "to text, put it in quotes",
            )
        value, size = self.anchors[event.anchor]
        self.values += size
        if self.values > MOST_VALUES:
            raise RecipeYamlError(_line(event), "the aliases make the text too long for a recipe")
        return value

    def scalar(self, event: ScalarEvent) -> Any:
        """A scalar with its type."""
        try:
            event.value.encode()
        except UnicodeEncodeError:
            problem = "half a surrogate pair is no character. Write the character itself"
            raise RecipeYamlError(_line(event), problem) from None
        return plain_scalar(event.value) if event.implicit[0] else event.value

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        """A mapping; of two equal keys the first one counts and the second is a fault."""
        result: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, MappingEndEvent):
                break
            if not isinstance(event, ScalarEvent) or event.ctag is not None:
                raise RecipeYamlError(_line(event), "a key must be text")
            key = str(event.value)
            if self.scalar(event) is None:
                raise RecipeYamlError(
                    _line(event), "a key must be text, and this one is null. Put it in quotes if it is meant"
                )
            if event.implicit[0] and key == "<<":
                raise RecipeYamlError(_line(event), "merge keys ('<<') are not part of YAML 1.2. Write the keys out")
            inner = (*path, key)
            known = key in result
            lines = dict(self.lines) if known else self.lines
            value = self.value(next(self.events), inner)
            if known:
                self.lines = lines
                self.twice.append((inner, _line(event)))
                continue
            self.lines[inner] = _line(event)
            result[key] = value
        return result

    def sequence(self, path: KeyPath) -> list[Any]:
        """A list."""
        result: list[Any] = []
        for event in self.events:
            if isinstance(event, SequenceEndEvent):
                break
            inner = (*path, len(result))
            self.lines[inner] = _line(event)
            result.append(self.value(event, inner))
        return result


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _compose(text: str) -> tuple[Any, _Composer]:
    parser = YAML(typ="safe", pure=True)
    composer = _Composer(iter(parser.parse(text)))
    try:
        return composer.document(), composer
    except MarkedYAMLError as error:
        problem = one_line(str(error.problem or error.context))
        # A bracket or a quote that is never closed is best looked for where it was opened.
        open_end = "stream end" in problem or "end of stream" in problem
        mark = (error.context_mark if open_end else None) or error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if "'\\t'" in problem:
            problem = "a tab stands where YAML wants spaces. Indent with spaces"
        raise RecipeYamlError(line, f"this is not YAML: {problem}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeYamlError(
            line, f"this is not YAML: the character {text[error.position]!r} is not allowed"
        ) from None
    except YAMLError as error:
        raise RecipeYamlError(1, f"this is not YAML: {one_line(str(error))}") from None


def parse_value(text: str) -> Any:
    """Reads one YAML value, such as the right side of an override.

    Args:
        text: `3e-4`, `review`, `[a, b]`, `{text: review}`.

    Returns:
        The value in plain Python.

    Raises:
        RecipeYamlError: The text is not YAML, or a key is written twice.
    """
    value, composer = _compose(text)
    if composer.twice:
        path, line = composer.twice[0]
        raise RecipeYamlError(line, f"the key '{path[-1]}' is written twice")
    return value


def parse_document(text: str, *, name: str) -> Document:
    """Reads the text of a recipe.

    Args:
        text: YAML with a mapping at the top.
        name: How faults call the file.

    Returns:
        The mapping and the place of each key; keys written twice are among its faults.

    Raises:
        RecipeError: The text is not YAML, or no mapping; it names the line.
    """
    try:
        value, composer = _compose(text)
    except RecipeYamlError as fault:
        raise RecipeError([f"{name}:{fault.line}: {fault.message}"]) from None
    if not isinstance(value, dict):
        given = "it is empty" if value is None else f"it is a {'list' if isinstance(value, list) else 'single value'}"
        remedy = "`lora-ft init TASK` writes one to start from"
        raise RecipeError([f"{name}:1: a recipe is a mapping of sections, and {given}. {remedy}"])
    places = {path: Place(order=line, text=f"{name}:{line}") for path, line in composer.lines.items()}
    faults = tuple(
        Fault(
            path,
            f"the key is written twice (first in line {composer.lines.get(path, 1)}). Remove one of them",
            Place(order=line, text=f"{name}:{line}"),
        )
        for path, line in composer.twice
    )
    return Document(name=name, value=value, places=places, faults=faults)


def read_document(file: Path) -> Document:
    """Reads a recipe file; see `parse_document`.

    Raises:
        RecipeError: The file cannot be read, is not UTF-8, is not YAML, or holds no mapping.
    """
    name = str(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RecipeError([f"{name}: cannot read the recipe: {reason}. Check the path"]) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            [f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8. Save the file in UTF-8"]
        ) from None
    return parse_document(text, name=name)
