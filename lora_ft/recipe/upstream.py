"""Names, types and defaults of the installed peft and transformers classes' fields, without importing them.

Importing torch, transformers and peft takes more than five seconds; parsing the few files that define these
classes takes a few hundredths of one. Where a source file cannot be read (only bytecode is installed, or
upstream wrote it in a way that is not understood), the class itself is imported: slower, the same answer,
and a test holds both ways together.
"""

from __future__ import annotations

import ast
import functools

from lora_ft.recipe.accepts import Struct
from lora_ft.recipe.annotations import argument_fields, dataclass_fields
from lora_ft.recipe.imported import (
    imported_arguments,
    imported_dataclass,
    imported_peft_class,
    imported_peft_types,
)
from lora_ft.recipe.installed import SourceError, class_definition, module_tree, package_folder


@functools.cache
def training_arguments() -> Struct:
    """The fields of `TrainingArguments`."""
    return _dataclass("transformers.training_args", "TrainingArguments")


@functools.cache
def quantization_config() -> Struct:
    """The arguments of `BitsAndBytesConfig`."""
    return _arguments("transformers.utils.quantization_config", "BitsAndBytesConfig")


@functools.cache
def early_stopping() -> Struct:
    """The arguments of `EarlyStoppingCallback`."""
    return _arguments("transformers.trainer_callback", "EarlyStoppingCallback")


@functools.cache
def peft_types() -> tuple[str, ...]:
    """All values of `peft_type` that have a config class, sorted."""
    try:
        return tuple(sorted({_registered(folder)[0] for folder in _folders()} - {""}))
    except SourceError:
        return imported_peft_types()


@functools.cache
def peft_config(peft_type: str) -> Struct | None:
    """The fields of the config class of a method.

    Args:
        peft_type: `LORA`, `IA3`, ...; exactly as peft writes it.

    Returns:
        The class with the fields of its bases, or None if peft has no such method.
    """
    try:
        folder = _folder_of(peft_type)
        return _dataclass(f"peft.tuners.{folder}", _registered(folder)[1]) if folder else None
    except SourceError:
        return imported_peft_class(peft_type) if peft_type in imported_peft_types() else None


def _folders() -> list[str]:
    tuners = package_folder("peft") / "tuners"
    return sorted(init.parent.name for init in tuners.glob("*/__init__.py"))


def _folder_of(peft_type: str) -> str:
    """The folder of `peft/tuners` that registers a method; empty if none does."""
    # Nearly every method lives in the folder of its name: one small file to parse instead of forty.
    folders = sorted(_folders(), key=lambda name: name != peft_type.lower())
    return next((folder for folder in folders if peft_type and _registered(folder)[0] == peft_type), "")


@functools.cache
def _registered(folder: str) -> tuple[str, str]:
    """The `peft_type` and the config class that a folder of `peft/tuners` registers; empty if none."""
    for node in ast.walk(module_tree(f"peft.tuners.{folder}")):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "register_peft_method":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            name, config = given.get("name"), given.get("config_cls")
            if isinstance(name, ast.Constant) and isinstance(config, ast.Name):
                return str(name.value).upper(), config.id
    return "", ""


def _dataclass(module: str, name: str) -> Struct:
    try:
        source, node = class_definition(module, name)
        return Struct(name, dataclass_fields(source, node), module.partition(".")[0])
    except SourceError:
        return imported_dataclass(module, name)


def _arguments(module: str, name: str) -> Struct:
    try:
        source, node = class_definition(module, name)
        return Struct(name, argument_fields(source, node), module.partition(".")[0])
    except SourceError:
        return imported_arguments(module, name)
