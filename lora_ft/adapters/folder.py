"""Writes an adapter folder at once or not at all, and puts a saved adapter back on its base."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from lora_ft.adapters.initial import (
    changes_base,
    config_for_original_base,
    for_original_base,
    initial_adapter,
)
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.targets import head_wrappers
from lora_ft.adapters.tensors import LABELS_KEY, read_header
from lora_ft.adapters.verify import CONFIG, MANIFEST, WEIGHTS, hash_file, resolve_adapter
from lora_ft.errors import AdapterError, AdapterRefused


def write_adapter(
    target: Path,
    *,
    model: PeftModel,
    processor: Any,
    recipe_yaml: str,
    manifest: Manifest,
    metrics: Mapping[str, Any],
    card: str,
    overwrite: bool,
) -> Manifest:
    """Writes an adapter folder under a temporary name, syncs and renames it: there is all of it or nothing.

    Args:
        target: The folder to be.
        model: The trained model.
        processor: Its tokenizer or processor.
        recipe_yaml: The resolved recipe.
        manifest: All but `files` and `tensors`, which are filled in here.
        metrics: Content of `metrics.json`.
        card: Content of `README.md`.
        overwrite: Whether an adapter at `target` may be replaced; it stays until the new one is in place.

    Returns:
        The manifest as written.

    Raises:
        AdapterError: `target` exists, or cannot be written; what was there is untouched.
    """
    check_target(target, overwrite=overwrite)
    state, config = adapter_tensors(model, base_name=manifest.base.name)
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.parent / f".{target.name}.tmp-{mark}"
    try:
        temporary.mkdir(parents=True)
        processor.save_pretrained(temporary)
        _compact(temporary / "tokenizer.json")
        save_file(
            state,
            temporary / WEIGHTS,
            metadata={"format": "pt", LABELS_KEY: json.dumps(list(manifest.labels))},
        )
        _write_text(temporary / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        _write_text(temporary / "recipe.yaml", recipe_yaml)
        _write_text(temporary / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        _write_text(temporary / "README.md", card)
        (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)  # safetensors lets nobody else read it
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        written = replace(
            manifest,
            tensors=read_header(temporary / WEIGHTS)[0],
            files={file.relative_to(temporary).as_posix(): hash_file(file) for file in files},
        )
        _write_text(temporary / MANIFEST, written.to_json())
        for file in (*files, temporary / MANIFEST, temporary):
            _sync(file)
        _put_in_place(temporary, target, mark=mark)
    except OSError as error:
        raise AdapterError(f"{target}: cannot be written: {error}. What was there is untouched.") from error
    except ValueError as error:
        raise AdapterError(f"{target}: metrics or manifest cannot be written as JSON: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def check_target(target: Path, *, overwrite: bool) -> None:
    """Makes sure that an adapter may be written: to a new folder, an empty one, or with `overwrite` over an adapter.

    Args:
        target: The folder to be.
        overwrite: Whether an adapter there may be replaced; anything else never is.

    Raises:
        AdapterError: It may not, or the folder above it cannot be written to.
    """
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise AdapterError(f"{target}: {above} cannot be written to. Choose another training_args.output_dir.")
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise AdapterError(f"{target}: exists and is no folder. Choose another training_args.output_dir.")
    if not any(target.iterdir()):
        return
    if not ((target / MANIFEST).is_file() or (target / CONFIG).is_file()):
        raise AdapterError(
            f"{target}: exists and is no adapter folder; it is never deleted. Choose another output_dir."
        )
    if not overwrite:
        raise AdapterError(f"{target}: there is an adapter already. Choose another output_dir, or give --overwrite.")


def attach_saved(base_model: nn.Module, folder: Path, manifest: Manifest) -> PeftModel:
    """Puts a saved adapter on its base and makes sure that every saved tensor has landed, bit by bit.

    Args:
        base_model: The base with a head of the right shape; changed in place.
        folder: A verified adapter folder.
        manifest: Its manifest.

    Returns:
        The adapted model, frozen and in eval mode.

    Raises:
        AdapterRefused: A tensor is not finite, does not fit the base, or did not land.
    """
    file = resolve_adapter(folder) / WEIGHTS
    saved = load_file(file)
    for name, tensor in saved.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterRefused(f"{file}: {name} holds numbers that are not finite. Copy the folder again.")
    # Without random weights first; on a 16-bit base peft 0.21 would round fp32 adapters on that way.
    skip_random = manifest.peft_type == "LORA" and base_model.dtype == torch.float32
    try:
        model: PeftModel = PeftModel.from_pretrained(
            base_model,
            str(file.parent),
            is_trainable=False,
            low_cpu_mem_usage=skip_random,
            torch_device=str(next(base_model.parameters()).device),
        )
    except KeyError as error:  # peft looks for each tensor of the head by name
        raise AdapterRefused(
            f"{file}: does not fit the base: tensor {error} is missing. Give the base it was trained on."
        ) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise AdapterRefused(
            f"{file.parent}: does not fit {type(base_model).__name__} {manifest.base.name}: {error}"
        ) from error
    _check_landed(model, saved, file=file)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def adapter_tensors(model: PeftModel, *, base_name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What is saved of a trained model: adapter and head, for the original base, on the CPU.

    Args:
        model: The trained model.
        base_name: What goes into `base_model_name_or_path`.

    Returns:
        Tensors by peft's names, and the content of `adapter_config.json`.

    Raises:
        AdapterError: Weights of the base are among them.
    """
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = copy.deepcopy(model.peft_config["default"])
    if changes_base(config):
        state = for_original_base(state, initial_adapter(model))
        config_for_original_base(config)
    refuse_base_weights(model, state)
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, _minimal(config, model)


def refuse_base_weights(model: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Makes sure that only the adapter and its head are saved.

    Args:
        model: The trained model.
        state: What is to be saved.

    Raises:
        AdapterError: A frozen weight of the base is among it, named with its size.
    """
    heads = tuple(head_wrappers(model))
    frozen = {
        name.removeprefix("base_model.").removeprefix("model.").replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and ".original_module." not in name
    }
    plain = {name: name.removeprefix("base_model.").removeprefix("model.") for name in state}
    intruders = {
        name: state[name].nbytes
        for name, short in plain.items()
        if short in frozen and not any(short.startswith(f"{head}.") for head in heads)
    }
    if intruders:
        largest = max(intruders, key=lambda name: intruders[name])
        raise AdapterError(
            f"adapter: {len(intruders)} frozen tensors of the base would be saved, "
            f"{sum(intruders.values()) / 1e6:.2f} MB (largest: {largest}). An adapter folder never holds "
            "the base."
        )


def _minimal(config: Any, model: PeftModel) -> dict[str, Any]:
    """The config without what is off, so that an older peft without a new option still reads it."""
    content = {key: _jsonable(value) for key, value in config.to_dict().items()}
    if config.task_type is None:
        base_class = type(model.get_base_model())
        content["auto_mapping"] = {
            "base_model_class": base_class.__name__,
            "parent_library": base_class.__module__,
        }
    kept = ("task_type", "modules_to_save", "target_modules", "inference_mode")
    return {key: value for key, value in content.items() if key in kept or value not in (None, False, {}, [])}


def _jsonable(value: Any) -> Any:
    """Sets as sorted lists, enums as their values."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def _check_landed(model: PeftModel, saved: Mapping[str, torch.Tensor], *, file: Path) -> None:
    """Every saved tensor is in the model, bit by bit (in the parameter's dtype), and no other one."""
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing, unexpected = sorted(set(loaded) - set(saved)), sorted(set(saved) - set(loaded))
    if missing or unexpected:
        raise AdapterRefused(
            f"{file}: does not fit the base: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unexpected)} unexpected {unexpected[:2]}. Give the base it was trained on."
        )
    for name, tensor in saved.items():
        landed = loaded[name].detach().cpu()
        if landed.shape != tensor.shape or not torch.equal(landed, tensor.to(landed.dtype)):
            raise AdapterRefused(f"{file}: {name} did not land in the model as it was saved.")


def _write_text(file: Path, text: str) -> None:
    """A text file in UTF-8 with plain newlines."""
    file.write_text(text, encoding="utf-8", newline="\n")


def _compact(file: Path) -> None:
    """Takes the white space out of a JSON file: a third of tokenizer.json, beside hundreds of small adapters."""
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        _write_text(file, json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def _sync(path: Path) -> None:
    """Has the disk hold a file or a folder before anything points at it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, target: Path, *, mark: str) -> None:
    """Renames the new folder into place; an old one is moved aside first, and back if that fails."""
    old = target.parent / f".{target.name}.old-{mark}"
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        temporary.rename(target)
        _sync(target.parent)
    except OSError:
        if target.exists():
            target.rename(temporary)
        if replaced:
            old.rename(target)
        raise
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
