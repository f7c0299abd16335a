"""The same as `upstream.py` by importing the classes: the documented fallback where no source can be read."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import types
import typing
from typing import Any

from lora_ft.recipe.accepts import ANYTHING, Accepts, Choice, DictOf, Field, ListOf, Struct, TupleOf, any_of
from lora_ft.recipe.annotations import OPAQUE, SCALARS, field_of, of_value


def imported_peft_types() -> tuple[str, ...]:
    """All values of `peft_type` that have a config class, sorted."""
    mapping = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    importlib.import_module("peft")
    return tuple(sorted(peft_type.value for peft_type in mapping))


def imported_peft_class(peft_type: str) -> Struct:
    """The fields of the config class of a method.

    Args:
        peft_type: One of `imported_peft_types`.

    Returns:
        The class with its fields.
    """
    importlib.import_module("peft")
    mapping = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    return _struct({key.value: value for key, value in mapping.items()}[peft_type])


def imported_dataclass(module: str, name: str) -> Struct:
    """The fields of a dataclass.

    Args:
        module: Where it is defined.
        name: The class.

    Returns:
        The class with its fields.
    """
    return _struct(vars(importlib.import_module(module))[name])


def imported_arguments(module: str, name: str) -> Struct:
    """The arguments of a class's own `__init__`.

    Args:
        module: Where it is defined.
        name: The class.

    Returns:
        The class with its arguments.
    """
    cls = vars(importlib.import_module(module))[name]
    fields = {}
    for argument, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            default = {"value": parameter.default}
            typed = parameter.annotation is not parameter.empty
            accepts = _accepts(parameter.annotation) if typed else of_value(default)
            fields[argument] = field_of(name, argument, accepts=accepts, default=default, metadata={})
    return Struct(name, fields, module.partition(".")[0])


def _struct(cls: type) -> Struct:
    return Struct(cls.__name__, _dataclass_fields(cls), cls.__module__.split(".")[0])


def _dataclass_fields(cls: Any) -> dict[str, Field]:
    hints = typing.get_type_hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        if field.init and not field.name.startswith("_"):
            given = field.default is not dataclasses.MISSING
            metadata = {key: value for key, value in field.metadata.items() if isinstance(value, str | list | bool)}
            accepts = ANYTHING if field.name in OPAQUE else _accepts(hints[field.name])
            fields[field.name] = field_of(
                cls.__name__,
                field.name,
                accepts=accepts,
                default={"value": field.default} if given else {},
                metadata=metadata,
            )
    return fields


def _accepts(hint: Any) -> Accepts:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return SCALARS["None"]
    if origin is typing.Literal:
        return any_of(SCALARS["None"] if value is None else Choice((value,)) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return any_of(_accepts(one) for one in inner)
    if origin is list or hint is list:
        return ListOf(_accepts(inner[0]) if inner else ANYTHING)
    if origin is tuple:
        return TupleOf(tuple(_accepts(one) for one in inner))
    if origin is dict or hint is dict:
        return DictOf(_accepts(inner[1]) if inner else ANYTHING)
    if not isinstance(hint, type):
        return ANYTHING
    if issubclass(hint, enum.Enum):
        return Choice(tuple(member.value for member in hint), hint.__name__)
    if dataclasses.is_dataclass(hint):
        return _struct(hint)
    return SCALARS.get(hint.__name__, ANYTHING)
