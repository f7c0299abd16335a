"""Checks every key of every section: its name, its type, and whether a recipe writes it at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_ft.recipe import upstream
from lora_ft.recipe.accepts import BOOL, FLOAT, Struct, alternatives
from lora_ft.recipe.draft import Draft
from lora_ft.recipe.faults import Fault, near_or_known, nearest
from lora_ft.recipe.owned import OWNED, RENAMED
from lora_ft.recipe.schema import TaskFacts
from lora_ft.recipe.values import problems, unknown_key
from lora_ft.recipe.words import (
    DEFAULTED_SECTION,
    OPTIONAL_SECTIONS,
    REQUIRED_SECTIONS,
    SECTIONS,
    TASK_SECTIONS,
    TOP,
    keys_of,
    section_struct,
)

REQUIRED_KEYS = (("model", "pretrained_model_name_or_path"), ("training_args", "output_dir"))

KEEP_RIGHT_PARTS = (("dataset", "columns"), ("dataset", "data_files"))
"""Mappings whose right keys are checked further although another key is wrong."""

NOTHING = {
    "processor": "has no settings of a processor",
    "generation_config": "generates nothing",
    "augmentation": "augments nothing",
}
"""Why a task has no keys for a section."""

WHAT_FOR = {
    "task": "Write one of the tasks of `lora-ft tasks`",
    "model": "Write `model: {pretrained_model_name_or_path: NAME_OR_FOLDER}`",
    "peft_config": "Write `peft_config: {peft_type: LORA}`; what it leaves out has defaults",
    "dataset": "Write `dataset: {data_files: {train: FILE}}`",
    "training_args": "Write `training_args: {output_dir: FOLDER}`",
    "pretrained_model_name_or_path": "Write a hub id or the folder of a base model",
    "output_dir": "Write the folder for the adapter",
}


def check_sections(draft: Draft, tasks: Mapping[str, TaskFacts]) -> list[Fault]:
    """Checks names and types of a whole recipe.

    Args:
        draft: A recipe as written; its task and its values are filled in with all that is right.
        tasks: The known tasks.

    Returns:
        Unknown, missing, unwanted keys and values of the wrong type.
    """
    faults = list(_check_top(draft, tasks))
    for section in SECTIONS:
        written, raw = draft.document.find((section,))
        if not written and section == DEFAULTED_SECTION:
            draft.values[section] = {}
        if not written or (raw is None and section in OPTIONAL_SECTIONS):
            continue
        if not isinstance(raw, dict):
            faults.append(Fault((section,), _no_mapping(section, raw)))
            continue
        if raw and draft.task and section in TASK_SECTIONS and not keys_of(draft.task, section).fields:
            message = f"the task {draft.task.name} {NOTHING[section]}. Leave the section out"
            faults.append(Fault((section,), message))
            continue
        draft.values[section] = {}
        faults += _check_section(draft, section, raw)
    faults += _missing(draft)
    return faults


def _check_top(draft: Draft, tasks: Mapping[str, TaskFacts]) -> Iterator[Fault]:
    raw = draft.document.value
    for key in raw:
        if key not in (*TOP, *SECTIONS):
            yield Fault((key,), f"a recipe has no section '{key}'.{nearest(key, SECTIONS) or _elsewhere(draft, key)}")
    task = raw.get("task")
    if isinstance(task, str) and task in tasks:
        draft.task = tasks[task]
        draft.values["task"] = task
    elif task is not None:
        yield Fault(("task",), f"there is no such task.{near_or_known(task, sorted(tasks))}")
    offline = raw.get("offline", False)
    wrong = [Fault(("offline", *path), message) for path, message in problems(offline, BOOL)]
    yield from wrong
    if not wrong:
        draft.values["offline"] = offline


def _no_mapping(section: str, raw: Any) -> str:
    if section == "peft_config" and raw is None:
        return "a run always trains an adapter on a frozen base. " + WHAT_FOR[section]
    return f"expected a mapping. {WHAT_FOR.get(section, 'Leave the section out, or give it keys')}"


def _check_section(draft: Draft, section: str, raw: dict[str, Any]) -> Iterator[Fault]:
    peft_type = raw.get("peft_type", "LORA") if section == "peft_config" else ""
    if section == "peft_config" and (fault := _wrong_peft_type(peft_type)):
        yield fault
        peft_type = ""
    struct = section_struct(section, task=draft.task, peft_type=peft_type)
    for key, value in raw.items():
        path = (section, key)
        if key in OWNED.get(section, {}):
            yield Fault(path, f"a recipe does not write {key}: {OWNED[section][key]}")
        elif path == ("peft_config", "peft_type"):
            if peft_type:
                draft.values[section][key] = value
        elif struct is None:
            continue
        elif key not in struct.fields:
            yield Fault(path, _unknown(draft, (section, key), struct))
        else:
            accepts = struct.fields[key].accepts
            found = [Fault((*path, *rest), message) for rest, message in problems(value, accepts)]
            yield from found
            if path in KEEP_RIGHT_PARTS and isinstance(value, dict):
                bad = {fault.path[2] for fault in found if len(fault.path) > 2}
                draft.values[section][key] = {name: one for name, one in value.items() if name not in bad}
            elif not found:
                # bitsandbytes refuses a whole number where it wants a float.
                whole = section == "quantization_config" and type(value) is int
                as_float = whole and FLOAT in alternatives(accepts)
                draft.values[section][key] = float(value) if as_float else value


def _wrong_peft_type(peft_type: Any) -> Fault | None:
    path = ("peft_config", "peft_type")
    if peft_type is None:
        return Fault(
            path,
            "a run always trains an adapter on a frozen base. Leave the key out (LORA), or name a method",
        )
    if not isinstance(peft_type, str):
        return Fault(path, "expected the name of a method, such as LORA")
    if upstream.peft_config(peft_type) is None:
        return Fault(path, f"peft has no such method.{near_or_known(peft_type, upstream.peft_types())}")
    return None


def _unknown(draft: Draft, path: tuple[str, str], struct: Struct) -> str:
    section, key = path
    message = unknown_key(key, struct)
    if key in RENAMED.get(section, {}):
        return message.partition("'.")[0] + f"'. {RENAMED[section][key]}"
    elsewhere = _elsewhere(draft, key)
    return message.partition("'.")[0] + f"'.{elsewhere}" if elsewhere else message


def _elsewhere(draft: Draft, key: str) -> str:
    """The section that does know a key, as a remedy with a leading space; empty if none does."""
    for section in SECTIONS:
        struct = section_struct(section, task=draft.task, peft_type="LORA")
        if struct is not None and key in struct.fields:
            return f" It belongs in {section}: move it there"
    return ""


def _missing(draft: Draft) -> Iterator[Fault]:
    """Required keys that are absent; silent about a section that is there under a misspelt name."""
    raw = draft.document.value
    unknown = [key for key in raw if key not in (*TOP, *SECTIONS)]
    misspelt = "".join(nearest(key, (*TOP, *SECTIONS)) for key in unknown)
    for key in ("task", *REQUIRED_SECTIONS):
        absent = key not in raw or (raw[key] is None and key == "task")
        if absent and f"'{key}'" not in misspelt:
            yield Fault((key,), f"it is missing. {WHAT_FOR[key]}")
    for section, key in REQUIRED_KEYS:
        inside = draft.document.find((section,))[1]
        if isinstance(inside, dict) and key not in inside:
            misspelt = "".join(nearest(one, (key,)) for one in inside)
            if not misspelt:
                yield Fault((section, key), f"it is missing. {WHAT_FOR[key]}")
