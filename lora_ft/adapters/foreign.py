"""Reads an adapter folder that plain peft wrote, without torch: its config, its tensors, and all that is wrong with it.

One real folder (peft 0.21, `get_peft_model` and `save_pretrained`):
    adapter_config.json        {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "modules_to_save": ["classifier"], ...}
    adapter_model.safetensors  base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight  F32  (8, 384)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.adapters.manifest import TensorInfo
from lora_ft.adapters.tensors import head_tensors, read_header
from lora_ft.adapters.verify import CONFIG, MANIFEST, WEIGHTS
from lora_ft.errors import AdapterError, AdapterRefused, closest
from lora_ft.recipe import upstream
from lora_ft.recipe.values import problems

PICKLED = "adapter_model.bin"
HEADS_OF_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""What peft itself adds to `modules_to_save` for a task type; versions before 0.6 did not write it into the config."""

NEEDED = {"LORA": ("r", "lora_alpha"), "LOHA": ("r", "alpha"), "LOKR": ("r", "alpha")}
"""Fields whose defaults peft would take without a word; another rank or scaling is another adapter."""

READ_HERE = ("modules_to_save", "target_modules", "rank_pattern", "alpha_pattern")

MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights: what plain peft saves of them does not fit the original base."""

NAMES_OF_LORA = (
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".token_adapter.",
)
EMBEDDINGS = re.compile(
    r"\.(embed_tokens|word_embeddings|wte|shared|embed_in|lm_head|embed_out)(\.base_layer)?\.(weight|bias)$"
)
ADAPTER_NAME_LEFT = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|modules_to_save)\.(\w+)\.(weight|bias)$")

FLOAT_BITS = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}
"""safetensors' dtype -> an unsigned type of the same size, and the exponent bits, all set where it is not finite."""


@dataclass(frozen=True)
class ForeignAdapter:
    """An adapter as plain peft saved it.

    Attributes:
        folder: Where it lies.
        config: Its adapter_config.json as written.
        peft_type: peft's method.
        tensors: Shape and dtype of each tensor.
        head: Modules that are saved in full, by the names of `modules_to_save`; each has tensors.
        own_config: A config.json that lies beside it, as the Trainer writes one; empty without.
        notes: What a user should know and nobody is stopped by.
    """

    folder: Path
    config: Mapping[str, Any]
    peft_type: str
    tensors: Mapping[str, TensorInfo]
    head: tuple[str, ...]
    own_config: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def peft_fields(self) -> dict[str, Any]:
        """The fields that say what the adapter computes, without those at their default or unknown to this peft."""
        struct = upstream.peft_config(self.peft_type)
        known = struct.fields if struct is not None else {}
        needed = NEEDED.get(self.peft_type, ())
        left_out = (
            "peft_type",
            "peft_version",
            "task_type",
            "auto_mapping",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
            "runtime_config",
            "init_lora_weights",  # the weights are loaded over whatever they were at the start
            "modules_to_save",
        )
        return {
            key: sorted(value) if key == "target_modules" and isinstance(value, list) else value  # a set to peft
            for key, value in self.config.items()
            if key in known
            and key not in left_out
            and (key == "feedforward_modules" or not _off(value))  # IA3: empty is not the default
            and (key in needed or value != known[key].default)
        }


def read_foreign(
    folder: Path, *, task_type: str | None, head: Sequence[str], untrained: bool
) -> tuple[ForeignAdapter | None, list[str]]:
    """Reads an adapter folder of plain peft and finds all faults that it has in itself, whatever the base.

    Args:
        folder: The folder.
        task_type: peft's TaskType of the task that it is adopted for, or None where the task has none.
        head: Module names that hold the head in the families of that task.
        untrained: Whether an adapter may be all zero.

    Returns:
        The adapter, or None where config or tensors cannot be read; and one line for each fault.

    Raises:
        AdapterError: There is no adapter at all, or it is one of lora_ft already.
    """
    _refuse_no_adapter(folder)
    faults: list[str] = []
    config = _read_json(folder / CONFIG, faults)
    tensors = _read_tensors(folder, faults)
    faults += _custom_code(folder)
    if config is None or tensors is None:
        return None, faults
    faults += _config_faults(folder / CONFIG, config, tensors=tensors, task_type=task_type)
    saved, lost, notes = _saved_modules(config, tensors, head=head)
    faults += [
        f"{folder / CONFIG}: modules_to_save = {name!r}: {WEIGHTS} has no tensor of it; peft would start it at random. "
        "Copy the folder again, or save it again where it was trained"
        for name in lost
    ]
    names = _name_faults(config, tensors, saved=saved)
    faults += [f"{folder / WEIGHTS}: {one}" for one in names]
    values, value_notes = _value_faults(folder / WEIGHTS, untrained=untrained)
    faults += [f"{folder / WEIGHTS}: {one}" for one in values]
    if (folder / PICKLED).is_file():
        notes.append(f"{PICKLED} is left alone: {WEIGHTS} lies beside it")
    own_config = _read_json(folder / "config.json", []) if (folder / "config.json").is_file() else None
    adapter = ForeignAdapter(
        folder=folder, config=config, peft_type=str(config.get("peft_type")), tensors=tensors, head=saved,
        own_config=own_config or {}, notes=(*notes, *value_notes),
    )  # fmt: skip
    return adapter, faults


def _off(value: Any) -> bool:
    """Whether a field says nothing; 0 says something."""
    return value is None or value is False or value in ([], {}, "")


def _refuse_no_adapter(folder: Path) -> None:
    """Refuses what is not an adapter folder of plain peft."""
    if not folder.is_dir():
        near = closest(folder.name, [one.name for one in folder.parent.iterdir()]) if folder.parent.is_dir() else ""
        raise AdapterError(
            f"{folder}: no such folder.{near} Expected a folder with {CONFIG} and {WEIGHTS}. Fetch an adapter of the "
            "hub first: hf download NAME --local-dir FOLDER"
        )
    if (folder / MANIFEST).exists():
        raise AdapterError(
            f"{folder}: an adapter of lora_ft already ({MANIFEST} is there). Use it as it is: lora-ft verify {folder}"
        )
    if not any((folder / name).is_file() for name in (CONFIG, WEIGHTS, PICKLED)):
        below = sorted(str(one.parent.relative_to(folder)) for one in folder.glob(f"*/{CONFIG}"))
        hint = f" There are: {', '.join(below[:5])}." if below else ""
        raise AdapterError(f"{folder}: no adapter of peft here. Expected {CONFIG} and {WEIGHTS}.{hint}")


def _read_json(file: Path, faults: list[str]) -> dict[str, Any] | None:
    """A JSON object, or None and a fault."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "missing" if not file.exists() else f"cannot be read as JSON ({error})"
        faults.append(f"{file}: {reason}. Copy the folder again")
        return None
    if not isinstance(content, dict):
        faults.append(f"{file}: a {type(content).__name__}, expected a JSON object. Copy the folder again")
        return None
    return content


def _read_tensors(folder: Path, faults: list[str]) -> dict[str, TensorInfo] | None:
    """The header of the weights, or None and a fault."""
    file = folder / WEIGHTS
    if file.is_file():
        try:
            tensors = read_header(file)[0]
        except AdapterRefused as error:
            faults.append(str(error).removesuffix("."))
            return None
        except (KeyError, TypeError, AttributeError) as error:
            faults.append(f"{file}: no header of tensors ({error!r}). Copy the folder again")
            return None
        if not tensors:
            faults.append(f"{file}: there is no tensor in it. Save the adapter again where it was trained")
            return None
        return tensors
    if (folder / PICKLED).is_file():
        faults.append(
            f"{folder / PICKLED}: pickled weights; reading a pickle can run code from it, so lora_ft does not. Convert "
            'them once, without running any: python -c "import torch, safetensors.torch as s; s.save_file({k: '
            f"v.contiguous() for k, v in torch.load('{PICKLED}', map_location='cpu', weights_only=True).items()}}, "
            f"'{WEIGHTS}', metadata={{'format': 'pt'}})\" (in that folder), then adopt again"
        )
    else:
        faults.append(f"{file}: missing. Copy the folder again")
    return None


def _custom_code(folder: Path) -> Iterator[str]:
    """Code that lies in the folder, or is named by a file in it: nothing of it ever runs."""
    for file in sorted(folder.glob("*.json")):
        content = _read_json(file, []) or {}
        if "auto_map" in content:
            yield (
                f"{file}: auto_map names code of its own, which never runs from an adapter folder. Take the key out if "
                "a class of transformers reads these files too"
            )
        mapping = content.get("auto_mapping") if file.name == CONFIG else None
        library = str(mapping.get("parent_library", "")) if isinstance(mapping, dict) else ""
        if mapping and library.partition(".")[0] not in ("transformers", "timm"):
            yield (
                f"{file}: auto_mapping = {mapping}: it was trained on a model of custom code, not of transformers. "
                "Only bases that an auto class of transformers builds can carry an adopted adapter"
            )


def _config_faults(
    file: Path, config: Mapping[str, Any], *, tensors: Mapping[str, TensorInfo], task_type: str | None
) -> Iterator[str]:
    """What is wrong with adapter_config.json."""
    peft_type = config.get("peft_type")
    struct = upstream.peft_config(peft_type) if isinstance(peft_type, str) else None
    if struct is None:
        near = closest(str(peft_type), upstream.peft_types())
        yield (
            f"{file}: peft_type = {peft_type!r}: the installed peft has no such method.{near} Expected one of "
            f"{', '.join(upstream.peft_types())}. Upgrade peft if a newer one wrote it"
        )
        return
    ranks = sorted({info.shape[0] for name, info in tensors.items() if ".lora_A." in name and info.shape})
    for key in NEEDED.get(str(peft_type), ()):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            given = f" = {value!r}" if key in config else " is missing"
            hint = f" lora_A has {' or '.join(map(str, ranks))} rows." if key == "r" and ranks else ""
            yield (
                f"{file}: {key}{given}: peft would take its default without a word.{hint} Write the number it was "
                "trained with"
            )
    for key, value in config.items():
        if key not in struct.fields and not _off(value):
            near = closest(key, struct.fields)
            yield (
                f"{file}: {key} = {value!r}: {struct.title()} has no such field.{near} It may change what the adapter "
                "computes. Upgrade peft if a newer one wrote it"
            )
        elif key in READ_HERE and value is not None:
            for _, message in problems(value, struct.fields[key].accepts):
                yield f"{file}: {key} = {value!r}: {message}. Copy the folder again"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(MOVES_BASE):
        yield (
            f"{file}: init_lora_weights = {start!r}: it moved a part of the base's weights into the adapter, so it "
            "does not fit the original base. Where it was trained, save it as plain LoRA: save_pretrained(FOLDER, "
            "path_initial_model_for_weight_conversion=INITIAL)"
        )
    if config.get("bias") not in (None, "none"):
        yield (
            f"{file}: bias = {config['bias']!r}: it trained biases of the base itself, which an adapter folder never "
            "holds. Merge it into the base where it was trained, or train again with bias: none"
        )
    if config.get("layer_replication"):
        yield (
            f"{file}: layer_replication = {config['layer_replication']}: peft builds another base of copied layers, "
            "which lora_ft does not load. Train again without"
        )
    trained_for = config.get("task_type")
    if trained_for is not None and task_type is not None and trained_for != task_type:
        yield f"{file}: task_type = {trained_for!r}: the task given is one of {task_type}. Give the --task that it has"


def _saved_modules(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], *, head: Sequence[str]
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The modules that are saved in full; those that should be and are not; and what is to be said of it."""
    given = config.get("modules_to_save")
    listed = [str(one) for one in given] if isinstance(given, list) else []
    automatic = HEADS_OF_PEFT.get(str(config.get("task_type")), ())
    wanted = list(dict.fromkeys([*listed, *automatic]))
    saved = [name for name in wanted if head_tensors(tensors, name)]
    adapted = (".lora_", ".ia3_", ".hada_", ".lokr_", ".oft_", ".vera_")
    unlisted = [
        name
        for name in head
        if name not in saved
        and any(not any(mark in one for mark in adapted) for one in head_tensors(tensors, name))
        and not any(f".{name}." in f".{one}." for one in saved)
    ]
    notes = [
        f"modules_to_save does not name {name!r}, whose tensors are in the file (an older peft wrote it so): added"
        for name in unlisted
        if not any(name.endswith(one) for one in saved)  # `classifier` is also pre_classifier to peft
    ]
    lost = [name for name in listed if name not in saved and name not in automatic]
    return (*saved, *unlisted), lost, notes


def _name_faults(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], *, saved: Sequence[str]
) -> Iterator[str]:
    """Tensors that peft would drop without a word, and tensors that an adapter folder never holds."""
    count = len(tensors)
    foreign = [name for name in tensors if not name.startswith("base_model.") and name != "prompt_embeddings"]
    if foreign:
        yield (
            f"{len(foreign)} of {count} tensors have a foreign prefix (first: {foreign[0]}); peft expects base_model. "
            "and would drop them without a word. Convert them with the tool that wrote them, or save again with peft"
        )
    named = [name for name in tensors if name not in foreign and ADAPTER_NAME_LEFT.search(name)]
    if named:
        yield (
            f"{len(named)} of {count} tensors have the adapter's name in theirs (first: {named[0]}): a raw state dict, "
            "which peft would drop without a word. Save it with PeftModel.save_pretrained"
        )
    if str(config.get("peft_type")) != "LORA":
        return
    rest = [
        name
        for name in tensors
        if name not in foreign
        and name not in named
        and not any(mark in name for mark in NAMES_OF_LORA)
        and not any(f".{module}." in name for module in saved)
        and not (name.endswith(".bias") and config.get("bias") not in (None, "none"))
    ]
    embeddings = [name for name in rest if EMBEDDINGS.search(name)]
    if embeddings:
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in embeddings)
        yield (
            f"embeddings of the base are in it and modules_to_save does not name them: {shapes}. peft saves them where "
            "the vocabulary was resized, or LoRA is on them. If it was not resized, save again with "
            "save_embedding_layers=False; if it was, make the resized base a folder of its own (save_pretrained) and "
            "give that as --base"
        )
    others = [name for name in rest if name not in embeddings]
    if others:
        yield (
            f"{len(others)} of {count} tensors are neither LoRA nor in modules_to_save (first: {others[0]}). Name "
            "their modules in modules_to_save if they were trained"
        )
    halves = {half: {name.partition(f".{half}.")[0] for name in tensors if f".{half}." in name}
              for half in ("lora_A", "lora_B")}  # fmt: skip
    alone = sorted(halves["lora_A"] ^ halves["lora_B"])
    if alone:
        yield f"{len(alone)} modules have only one of lora_A and lora_B (first: {alone[0]}). Copy the folder again"


def _value_faults(file: Path, *, untrained: bool) -> tuple[list[str], list[str]]:
    """Numbers that are not finite, and an adapter that never trained; faults and notes."""
    import numpy as np
    import safetensors

    wrong, zero, factors = [], [], 0
    tensors: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    for name, entry in tensors:
        if entry["dtype"] not in FLOAT_BITS:
            continue
        kind, exponent = FLOAT_BITS[entry["dtype"]]
        bits = np.frombuffer(entry["data"], dtype=kind)
        if bool(((bits & exponent) == exponent).any()):
            wrong.append(name)
        if any(mark in name for mark in (".lora_B.", ".lora_embedding_B", ".lora_E")):
            factors += 1
            if not bool((bits << 1).any()):  # without the sign
                zero.append(name)
    faults, notes = [], []
    if wrong:
        faults.append(
            f"{len(wrong)} tensors hold numbers that are not finite (first: {wrong[0]}). The run diverged, or the file "
            "is damaged: copy it again, or train again"
        )
    if zero and len(zero) == factors and not untrained:
        faults.append(
            f"all {factors} lora_B are zero: THE ADAPTER NEVER TRAINED, it changes nothing. Take a checkpoint of a run "
            "that did; to adopt it all the same give --untrained"
        )
    elif zero:
        loud = "ALL OF THEM: THE ADAPTER CHANGES NOTHING" if len(zero) == factors else f"first: {zero[0]}"
        notes.append(f"{len(zero)} of {factors} lora_B are all zero, as before training ({loud})")
    return faults, notes
