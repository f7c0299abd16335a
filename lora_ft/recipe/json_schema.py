"""JSON Schema of a whole recipe, for editors: our words and the fields of the installed upstream classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lora_ft.recipe import upstream
from lora_ft.recipe.accepts import (
    Accepts,
    AnyOf,
    Anything,
    Choice,
    DictOf,
    Field,
    ListOf,
    Scalar,
    Struct,
    TupleOf,
)
from lora_ft.recipe.owned import OWNED
from lora_ft.recipe.rules_ranges import RANGES
from lora_ft.recipe.schema import TaskFacts
from lora_ft.recipe.sections import REQUIRED_KEYS
from lora_ft.recipe.words import (
    OPTIONAL_SECTIONS,
    REQUIRED_SECTIONS,
    SECTIONS,
    TASK_SECTIONS,
    columns_of,
    keys_of,
    section_help,
    section_struct,
)

JSON_TYPES = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "null": "null"}

DEFAULT_PEFT_TYPE = "LORA"


def json_schema(tasks: Mapping[str, TaskFacts]) -> dict[str, Any]:
    """Describes every recipe that the installed versions understand.

    The rules across sections and the files it names are beyond a schema: `lora-ft check` knows them.

    Args:
        tasks: The known tasks by name.

    Returns:
        A schema of draft 2020-12. `peft_config` depends on `peft_type`; the columns, the problem types and the keys
        of some sections on the task.
    """
    helps = section_help()
    properties: dict[str, Any] = {
        "task": {"enum": sorted(tasks), "description": helps["task"]},
        "offline": {"type": "boolean", "default": False, "description": helps["offline"]},
    }
    for section in SECTIONS:
        if section == "peft_config":
            properties[section] = _peft_config() | {"description": helps[section]}
            continue
        struct = section_struct(section, task=None, peft_type=DEFAULT_PEFT_TYPE)
        schema: dict[str, Any] = {"type": "object"}
        if struct:
            schema = _section(section, struct)
        if section in OPTIONAL_SECTIONS:
            schema["type"] = ["object", "null"]
        properties[section] = schema | {"description": helps[section]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A lora_ft recipe",
        "type": "object",
        "properties": properties,
        "required": ["task", *REQUIRED_SECTIONS],
        "additionalProperties": False,
        "allOf": [_of_task(task) for task in tasks.values()],
        "$defs": {peft_type: _method(peft_type) for peft_type in upstream.peft_types()},
    }


def _section(section: str, struct: Struct) -> dict[str, Any]:
    """A section: its fields without those a recipe does not write, and the ranges of its numbers."""
    owned = OWNED.get(section, {})
    schema = type_schema(Struct(struct.name, {k: v for k, v in struct.fields.items() if k not in owned}))
    for (other, key), allowed in RANGES.items():
        if other == section and key in schema["properties"]:
            low = {} if allowed.low is None else {_low(allowed.low_open): allowed.low}
            high = {} if allowed.high is None else {_high(allowed.high_open): allowed.high}
            schema["properties"][key] |= low | high
    required = [key for other, key in REQUIRED_KEYS if other == section]
    return schema | ({"required": required} if required else {})


def _low(is_open: bool) -> str:
    return "exclusiveMinimum" if is_open else "minimum"


def _high(is_open: bool) -> str:
    return "exclusiveMaximum" if is_open else "maximum"


def _peft_config() -> dict[str, Any]:
    types = upstream.peft_types()
    chosen = [
        {
            "if": {"properties": {"peft_type": {"const": one}}, "required": ["peft_type"]},
            "then": {"$ref": f"#/$defs/{one}"},
        }
        for one in types
    ]
    left_out = {"if": {"not": {"required": ["peft_type"]}}, "then": {"$ref": f"#/$defs/{DEFAULT_PEFT_TYPE}"}}
    return {
        "type": "object",
        "properties": {"peft_type": {"enum": list(types)}},
        "allOf": [left_out, *chosen],
    }


def _method(peft_type: str) -> dict[str, Any]:
    struct = upstream.peft_config(peft_type)
    assert struct is not None, peft_type
    schema = _section("peft_config", struct)
    schema["properties"]["peft_type"] = {"const": peft_type}
    return schema


def _of_task(task: TaskFacts) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "model": {"properties": {"problem_type": {"enum": [*task.metrics, None]}}},
        "dataset": {"properties": {"columns": type_schema(columns_of(task))}},
        "loss": {"properties": {"loss_type": {"enum": [*task.loss_types, None]}}},
    }
    for section in TASK_SECTIONS:
        sections[section] = _section(section, keys_of(task, section)) | {"type": ["object", "null"]}
    return {
        "if": {"properties": {"task": {"const": task.name}}, "required": ["task"]},
        "then": {"properties": sections},
    }


def type_schema(accepts: Accepts) -> dict[str, Any]:
    """The schema of one type.

    Args:
        accepts: What a value may be.

    Returns:
        Its schema; empty for any value.
    """
    match accepts:
        case Scalar(kind):
            return {"type": JSON_TYPES[kind]}
        case Choice(values):
            patterns = [one for one in values if isinstance(one, str) and "[" in one]
            exact: dict[str, Any] = {"enum": [one for one in values if one not in patterns]}
            starts = [{"pattern": f"^{re.escape(one.partition('[')[0])}."} for one in patterns]
            return {"anyOf": [exact, *({"type": "string"} | start for start in starts)]} if starts else exact
        case ListOf(item):
            return {"type": "array", "items": type_schema(item)}
        case TupleOf(items):
            size = {"minItems": len(items), "maxItems": len(items)}
            return {"type": "array", "prefixItems": [type_schema(item) for item in items], **size}
        case DictOf(value):
            return {"type": "object", "additionalProperties": type_schema(value)}
        case Struct(_, fields):
            properties = {name: _field(field) for name, field in fields.items()}
            return {"type": "object", "properties": properties, "additionalProperties": False}
        case AnyOf(options):
            return {"anyOf": [type_schema(option) for option in options]}
        case Anything():
            return {}


def _field(field: Field) -> dict[str, Any]:
    schema = type_schema(field.accepts)
    if field.help:
        schema["description"] = field.help
    if isinstance(field.default, bool | int | float | str):
        schema["default"] = field.default
    return schema
