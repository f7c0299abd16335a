"""Checks a value against what it may be, and says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_ft.recipe.accepts import (
    Accepts,
    AnyOf,
    Anything,
    Choice,
    DictOf,
    ListOf,
    Plain,
    Scalar,
    Struct,
    TupleOf,
    alternatives,
    describe,
)
from lora_ft.recipe.faults import KeyPath, near_or_known, nearest, shown
from lora_ft.recipe.scalars import FLOAT_TEXT

Problem = tuple[KeyPath, str]
"""The key below the value that is wrong (empty: the value itself), and the message."""

LARGEST = 1e300


def problems(value: Any, accepts: Accepts) -> list[Problem]:
    """Checks a value against a type.

    Whole numbers pass as `float`; a bool never passes as a number and text never as a number or a bool.

    Args:
        value: Plain Python, as the reader gives it.
        accepts: What is expected.

    Returns:
        What is wrong, empty if nothing is.
    """
    return list(_problems(accepts, value))


def _problems(accepts: Accepts, value: Any) -> Iterator[Problem]:
    match accepts:
        case Scalar():
            yield from _scalar_problems(accepts, value)
        case Choice(values):
            if not any(_same(value, choice) for choice in values):
                near = nearest(value, [str(choice) for choice in values]) if isinstance(value, str) else ""
                yield (), f"expected {describe(accepts)}.{near or hint(value, accepts)}"
        case ListOf(item) if isinstance(value, list):
            for index, one in enumerate(value):
                yield from _below(index, item, one)
        case TupleOf(items) if isinstance(value, list) and len(value) == len(items):
            for index, (inner, one) in enumerate(zip(items, value, strict=True)):
                yield from _below(index, inner, one)
        case DictOf(inner) if isinstance(value, dict):
            for key, one in value.items():
                yield from _below(key, inner, one)
        case Struct() if isinstance(value, dict):
            yield from _struct_problems(accepts, value)
        case AnyOf():
            yield from _joined_problems(accepts, value)
        case Anything():
            pass
        case _:
            yield (), f"expected {describe(accepts)}.{hint(value, accepts)}"


def _below(step: str | int, accepts: Accepts, value: Any) -> Iterator[Problem]:
    for path, message in _problems(accepts, value):
        yield (step, *path), message


def _struct_problems(accepts: Struct, value: dict[str, Any]) -> Iterator[Problem]:
    for key, one in value.items():
        if key in accepts.fields:
            yield from _below(key, accepts.fields[key].accepts, one)
        else:
            yield (key,), unknown_key(key, accepts)


def _scalar_problems(accepts: Scalar, value: Any) -> Iterator[Problem]:
    python: dict[str, tuple[type, ...]] = {
        "bool": (bool,),
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "null": (type(None),),
    }
    if type(value) not in python[accepts.kind]:
        yield (), f"expected {describe(accepts)}.{hint(value, accepts)}"
    elif isinstance(value, int | float) and not -LARGEST < value < LARGEST:
        yield (), "expected a finite number"


def _joined_problems(accepts: AnyOf, value: Any) -> Iterator[Problem]:
    """What is wrong with a value that fits none of several types; inside it if one fits from outside."""
    found = [problems(value, option) for option in accepts.options]
    if not all(found):
        return
    deeper = [one for one in found if all(path for path, _ in one)]
    if deeper:
        yield from deeper[0]
        return
    texts = [str(choice) for option in accepts.options if isinstance(option, Choice) for choice in option.values]
    near = nearest(value, texts) if isinstance(value, str) else ""
    yield (), f"expected {describe(accepts)}.{near or hint(value, accepts)}"


def _same(value: Any, choice: Plain) -> bool:
    if isinstance(choice, str) and "[" in choice and isinstance(value, str):
        start = choice.partition("[")[0]
        return value.startswith(start) and value != start
    return type(value) is type(choice) and bool(value == choice)


def unknown_key(key: str, struct: Struct) -> str:
    """The message for a key that a struct does not have."""
    if struct.package:
        return f"{struct.title()} has no field '{key}'.{nearest(key, struct.fields)}"
    return f"{struct.name} {'have' if struct.plural else 'has'} no key '{key}'.{near_or_known(key, struct.fields)}"


def hint(value: Any, accepts: Accepts) -> str:
    """What to do about a value of the wrong type, with a leading space; empty if there is nothing to say."""
    kinds = {option.kind for option in alternatives(accepts) if isinstance(option, Scalar)}
    if isinstance(value, str) and kinds & {"int", "float"}:
        return _hint_number(value)
    if isinstance(value, str) and "bool" in kinds and value.casefold() in ("yes", "on", "y", "no", "off", "n"):
        right = "true" if value.casefold() in ("yes", "on", "y") else "false"
        return f" YAML 1.2 reads {value} as text: write {right}"
    if isinstance(value, str) and "bool" in kinds and value.casefold() in ("true", "false"):
        return " YAML read this as text: remove the quotes"
    if isinstance(value, str) and any(isinstance(option, ListOf) for option in alternatives(accepts)):
        return f" Write [{value}]"
    if value is None:
        return " Leave the key out, or give it a value"
    if not isinstance(value, str | list | dict) and "str" in kinds:
        return f" Put it in quotes: '{shown(value)}'"
    return ""


def _hint_number(value: str) -> str:
    bare = value.strip().replace("_", "").replace(",", "")
    if not FLOAT_TEXT.fullmatch(bare):
        return " YAML read this as text"
    return " YAML read this as text: " + ("remove the quotes" if bare == value else f"write {bare}")
