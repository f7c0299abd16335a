"""Turns the annotations of a syntax tree into what a value may be."""

from __future__ import annotations

import ast
from typing import Any

from lora_ft.recipe.accepts import (
    ANYTHING,
    BOOL,
    FLOAT,
    INT,
    NULL,
    STR,
    Accepts,
    Choice,
    DictOf,
    Field,
    ListOf,
    Struct,
    TupleOf,
    alternatives,
    any_of,
)
from lora_ft.recipe.installed import SourceError, definition

SCALARS = {"bool": BOOL, "int": INT, "float": FLOAT, "str": STR, "None": NULL}

OPAQUE = frozenset({"peft_type", "task_type", "parallelism_config"})
"""Fields whose type is not read: the recipe checks the first itself and refuses the others."""

DTYPES = ("float32", "bfloat16", "float16")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "passive")

STRICTER: dict[tuple[str, str], Accepts] = {
    ("BitsAndBytesConfig", "llm_int8_skip_modules"): any_of([ListOf(STR), NULL]),
    ("BitsAndBytesConfig", "bnb_4bit_compute_dtype"): any_of([Choice(DTYPES), NULL]),
    ("BitsAndBytesConfig", "bnb_4bit_quant_type"): Choice(("nf4", "fp4")),
    ("BitsAndBytesConfig", "bnb_4bit_quant_storage"): any_of([Choice((*DTYPES, "uint8", "int8", "float64")), NULL]),
    ("TrainingArguments", "log_level"): Choice(LOG_LEVELS),
    ("TrainingArguments", "log_level_replica"): Choice(LOG_LEVELS),
}
"""Types that upstream checks, or silently gets wrong, without saying so in an annotation."""


def field_of(owner: str, name: str, *, accepts: Accepts, default: Any, metadata: dict[str, Any]) -> Field:
    """One field, with what its default and its metadata add to its annotation.

    Args:
        owner: The class.
        name: The field.
        accepts: Its annotation.
        default: `{"value": x}` where the default is a plain value, else an empty dict.
        metadata: Its `help`, `choices` and `const`, as far as they are known.

    Returns:
        The field: null is allowed where the default is None, and text is one of the `choices`.
    """
    help_text = " ".join(str(metadata.get("help", "")).replace("%%", "%").split())
    value = default.get("value")
    if name in OPAQUE:
        return Field(ANYTHING, help_text)
    if (owner, name) in STRICTER:
        return Field(STRICTER[owner, name], help_text, value)
    choices = metadata.get("choices")
    if isinstance(choices, list):
        options = alternatives(accepts)
        accepts = any_of(Choice(tuple(choices)) if option == STR else option for option in options)
    if metadata.get("const") is True:
        accepts = any_of([accepts, BOOL])
    if default and value is None:
        accepts = any_of([accepts, NULL])
    return Field(accepts, help_text, value)


def annotation(node: ast.expr | None, *, module: str) -> Accepts:
    """What an annotation accepts.

    Args:
        node: The annotation, `Optional[Union[list[str], str]]`.
        module: The module it stands in; names are looked up there.

    Returns:
        The type; `Anything` where a name comes from another package or is no enum, dataclass or alias.
    """
    match node:
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=str(text)):
            return annotation(ast.parse(text, mode="eval").body, module=module)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return any_of([annotation(left, module=module), annotation(right, module=module)])
        case ast.Name(id=name):
            return _name(name, module=module)
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            return _subscript(name, inner, module=module)
    return ANYTHING


def _subscript(name: str, inner: ast.expr, *, module: str) -> Accepts:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        return any_of(Choice((value,)) if isinstance(value, str | int) else NULL for value in values)
    types = [annotation(part, module=module) for part in parts]
    match name.lower():
        case "optional":
            return any_of([*types, NULL])
        case "union":
            return any_of(types)
        case "list" | "sequence":
            return ListOf(types[0])
        case "tuple":
            return TupleOf(tuple(types))
        case "dict" | "mapping":
            return DictOf(types[1])
    return ANYTHING


def _name(name: str, *, module: str) -> Accepts:
    if name in SCALARS:
        return SCALARS[name]
    if name in ("dict", "Dict"):
        return DictOf(ANYTHING)
    if name in ("list", "List"):
        return ListOf(ANYTHING)
    found = definition(module, name)
    if found is None:
        return ANYTHING
    source, node = found
    if not isinstance(node, ast.ClassDef):
        return annotation(node, module=source)
    if any("Enum" in ast.unparse(base) for base in node.bases):
        return Choice(enum_values(node), name)
    if is_dataclass(node):
        return Struct(name, dataclass_fields(source, node), source.split(".")[0])
    return ANYTHING


def enum_values(node: ast.ClassDef) -> tuple[str, ...]:
    """The text values of an enum, in order."""
    return tuple(
        statement.value.value
        for statement in node.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether a class carries the decorator."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def dataclass_fields(module: str, node: ast.ClassDef) -> dict[str, Field]:
    """The fields that a dataclass takes as arguments, those of its bases first.

    Args:
        module: Where it is defined.
        node: The class.

    Returns:
        Its fields by name.
    """
    fields: dict[str, Field] = {}
    for base in node.bases:
        found = definition(module, base.id) if isinstance(base, ast.Name) else None
        if found and isinstance(found[1], ast.ClassDef):
            fields |= dataclass_fields(found[0], found[1])
    if not is_dataclass(node):
        return fields
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            default, metadata, init = _field_call(statement.value)
            if init and not name.startswith("_") and "ClassVar" not in ast.unparse(statement.annotation):
                opaque = name in OPAQUE
                accepts = ANYTHING if opaque else annotation(statement.annotation, module=module)
                fields[name] = field_of(node.name, name, accepts=accepts, default=default, metadata=metadata)
    return fields


def argument_fields(module: str, node: ast.ClassDef) -> dict[str, Field]:
    """The named arguments of a class's `__init__`; a type that is not annotated is that of the default.

    Raises:
        SourceError: The class has no `__init__` of its own.
    """
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args.args[1:]
            defaults = statement.args.defaults
            fields = {}
            for argument, value in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
                default = _literal(value)
                accepts = annotation(argument.annotation, module=module) if argument.annotation else of_value(default)
                fields[argument.arg] = field_of(
                    node.name,
                    argument.arg,
                    accepts=accepts,
                    default=default,
                    metadata={"help": _help(node, argument.arg)},
                )
            return fields
    raise SourceError(f"{module}.{node.name}.__init__")


def of_value(default: dict[str, Any]) -> Accepts:
    """The type that a default suggests; `Anything` for None or no plain value."""
    value = default.get("value")
    return SCALARS[type(value).__name__] if isinstance(value, bool | int | float | str) else ANYTHING


def _field_call(node: ast.expr | None) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Default, metadata and `init` of `field(...)` or of a plain default."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("field")):
        return (_literal(node) if node else {}), {}, True
    default: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    init = True
    for keyword in node.keywords:
        if keyword.arg == "default":
            default = _literal(keyword.value)
        elif keyword.arg == "init":
            init = _literal(keyword.value).get("value") is not False
        elif keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    metadata |= {str(key.value): found for found in _literal(value).values()}
    return default, metadata, init


def _literal(node: ast.expr) -> dict[str, Any]:
    """`{"value": x}` for a literal, else an empty dict (None is a value here)."""
    try:
        return {"value": ast.literal_eval(node)}
    except ValueError:
        return {}


def _help(node: ast.ClassDef, argument: str) -> str:
    """What the `Args` of a class's docstring say of an argument."""
    lines = (ast.get_docstring(node) or "").splitlines()
    starts = [index for index, line in enumerate(lines) if line.strip().startswith(f"{argument} (")]
    text: list[str] = []
    for line in lines[starts[0] + 1 :] if starts else []:
        if not line.startswith(" " * 8):
            break
        text.append(line.strip())
    return " ".join(text)
