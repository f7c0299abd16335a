"""Finds and parses the source of installed packages without importing them."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path


class SourceError(Exception):
    """The source of a class cannot be read: only bytecode is there, or it is written in an unknown way."""


@functools.cache
def package_folder(package: str) -> Path:
    """The folder of an installed top-level package.

    Raises:
        SourceError: There is no such package, or it is no folder.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(package)
    return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def version(package: str) -> str:
    """The installed version of a package."""
    import importlib.metadata  # 25 ms, and only a fault shows a version

    return importlib.metadata.version(package)


def module_file(module: str) -> Path:
    """The file of a module: `peft.config` -> `.../peft/config.py`."""
    package, *rest = module.split(".")
    folder = package_folder(package).joinpath(*rest)
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


@functools.cache
def module_tree(module: str) -> ast.Module:
    """The syntax tree of a module.

    Raises:
        SourceError: There is no such file, or this Python cannot parse it.
    """
    try:
        return ast.parse(module_file(module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise SourceError(module) from error


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under a top-level `if` or `try` too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from statements([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            yield from statements(statement.body)


@functools.cache
def definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """Finds where a name is defined, following imports inside the same package.

    Args:
        module: The module that uses the name.
        name: A class, or a name assigned once (`Variant = Literal[...]`).

    Returns:
        The module of the definition, and the class or the assigned expression; None if it lies in another
        package.
    """
    for statement in statements(module_tree(module).body):
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in statement.targets
        ):
            return module, statement.value
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                source = _source(module, statement)
                if (alias.asname or alias.name) == name and source.partition(".")[0] == module.partition(".")[0]:
                    return definition(source, alias.name)
    return None


def class_definition(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """Like `definition`, for a class that must be there.

    Raises:
        SourceError: It is not.
    """
    found = definition(module, name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        raise SourceError(f"{module}.{name}")
    return found[0], found[1]


def _source(module: str, statement: ast.ImportFrom) -> str:
    """The absolute name of the module that an import names."""
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    above = statement.level - (1 if module_file(module).name == "__init__.py" else 0)
    parts = parts[: len(parts) - above]
    return ".".join([*parts, statement.module] if statement.module else parts)
