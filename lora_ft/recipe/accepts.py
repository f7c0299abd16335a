"""What a value may be: types as data, and their wording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_ft.recipe.faults import shown
from lora_ft.recipe.installed import version

Plain = str | int | float | bool
MOST_CHOICES_SHOWN = 12


@dataclass(frozen=True)
class Scalar:
    """One kind of scalar: `bool`, `int`, `float` (whole numbers too), `str` or `null`."""

    kind: str


@dataclass(frozen=True)
class Choice:
    """One of some values.

    Attributes:
        values: The values; text with a bracket is a pattern (`pissa_niter_[number of iters]`).
        name: The enum they come from, or empty.
    """

    values: tuple[Plain, ...]
    name: str = ""


@dataclass(frozen=True)
class ListOf:
    """A list of any length."""

    item: Accepts


@dataclass(frozen=True)
class TupleOf:
    """A list with one type for each place."""

    items: tuple[Accepts, ...]


@dataclass(frozen=True)
class DictOf:
    """A mapping with free keys."""

    value: Accepts


@dataclass(frozen=True)
class Anything:
    """Any value: the type is not known without importing the class."""


@dataclass(frozen=True)
class Field:
    """One field of a class.

    Attributes:
        accepts: Its type.
        help: What it does, in upstream's words; may be empty.
        default: Its default where that is a plain value, else None.
    """

    accepts: Accepts
    help: str = ""
    default: Any = None


@dataclass(frozen=True)
class Struct:
    """A mapping with known keys: a section of ours, or the arguments of an upstream class.

    Attributes:
        name: `LoraConfig`, `dataset`.
        fields: Its keys.
        package: The package it comes from, or empty for our own sections.
        plural: Whether the name is that of several things.
    """

    name: str
    fields: Mapping[str, Field]
    package: str = ""
    plural: bool = False

    def title(self) -> str:
        """`LoraConfig (peft 0.21.2)`, or the name of a section of ours."""
        return f"{self.name} ({self.package} {version(self.package)})" if self.package else self.name


@dataclass(frozen=True)
class AnyOf:
    """One of several types; made by `any_of`."""

    options: tuple[Accepts, ...]


Accepts = Scalar | Choice | ListOf | TupleOf | DictOf | Anything | Struct | AnyOf

BOOL, INT, FLOAT, STR, NULL = (Scalar(kind) for kind in ("bool", "int", "float", "str", "null"))
ANYTHING = Anything()


def any_of(options: Iterable[Accepts]) -> Accepts:
    """Joins types: flat, without repetition, in a fixed order.

    An enum beside `str` means the enum's values as text, and a known class beside `dict` means its fields.
    """
    flat: list[Accepts] = []
    for option in options:
        flat.extend(option.options if isinstance(option, AnyOf) else [option])
    if any(isinstance(option, Anything) for option in flat):
        return ANYTHING
    if any(isinstance(option, Choice) and option.name for option in flat):
        flat = [option for option in flat if option != STR]
    if any(isinstance(option, Struct) for option in flat):
        flat = [option for option in flat if not isinstance(option, DictOf)]
    if FLOAT in flat:
        flat = [option for option in flat if option != INT]
    free = [value for option in flat if isinstance(option, Choice) and not option.name for value in option.values]
    flat = [option for option in flat if not (isinstance(option, Choice) and not option.name)]
    flat += [Choice(tuple(free))] if free else []
    unique = [option for index, option in enumerate(flat) if option not in flat[:index]]
    unique.sort(key=lambda option: (option == NULL, repr(option)))
    return unique[0] if len(unique) == 1 else AnyOf(tuple(unique))


def alternatives(accepts: Accepts) -> tuple[Accepts, ...]:
    """The types that a type is made of; itself if it is not joined."""
    return accepts.options if isinstance(accepts, AnyOf) else (accepts,)


def describe(accepts: Accepts) -> str:
    """A type in words: `a number or null`."""
    match accepts:
        case Scalar(kind):
            words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
            return words.get(kind, "null")
        case Choice(values, name):
            if len(values) > MOST_CHOICES_SHOWN:
                return f"one of the {len(values)} values of {name or 'this field'}"
            return ("one of " if len(values) > 1 else "") + ", ".join(shown(choice) for choice in values)
        case ListOf(item):
            return f"a list ({describe(item)} each)"
        case TupleOf(items):
            return f"a list of {len(items)} ({', '.join(describe(item) for item in items)})"
        case DictOf():
            return "a mapping"
        case Struct(name):
            return f"a mapping with the keys of {name}"
        case AnyOf(options):
            return " or ".join(describe(option) for option in options)
        case Anything():
            return "any value"
