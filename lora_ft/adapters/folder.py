"""Writes an adapter folder at once or not at all, and puts a saved adapter back on its base."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from lora_ft.adapters.compress import float_tensors, readable_folder
from lora_ft.adapters.convolutions import show_geometry
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.state import adapter_tensors
from lora_ft.adapters.target import check_target
from lora_ft.adapters.tensors import LABELS_KEY, read_header
from lora_ft.adapters.verify import CONFIG, MANIFEST, WEIGHTS, hash_file, resolve_adapter, weights_file
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
    generation_config: Any | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    option: str = "training_args.output_dir",
    check: Callable[[Path, Manifest], None] | None = None,
) -> Manifest:
    """Writes an adapter folder under a temporary name, syncs and renames it: there is all of it or nothing.

    Args:
        target: The folder to be.
        model: The trained model.
        processor: Its tokenizer, image processor, feature extractor or processor.
        recipe_yaml: The resolved recipe.
        manifest: All but `files` and `tensors`, which are filled in here.
        metrics: Content of `metrics.json`.
        card: Content of `README.md`.
        overwrite: Whether an adapter at `target` may be replaced; it stays until the new one is in place.
        generation_config: transformers' GenerationConfig that the model generates with, or None.
        tensors: Adapter and head by peft's names, where a process has but pieces of them; None: those of the model.
        option: What the user said `target` with, for messages.
        check: Called with the written files and their manifest before they take the place of what is there; an error
            of it leaves that untouched.

    Returns:
        The manifest as written.

    Raises:
        AdapterError: `target` exists, or cannot be written; what was there is untouched.
    """
    check_target(target, overwrite=overwrite, option=option)
    state, config = adapter_tensors(model, base_name=manifest.base.name, tensors=tensors)
    try:
        with at_once(target) as temporary:
            save_processor(processor, temporary)
            save_file(
                state,
                temporary / WEIGHTS,
                metadata={"format": "pt", LABELS_KEY: json.dumps(list(manifest.labels))},
            )
            _write_text(temporary / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
            if generation_config is not None:
                settings = generation_config.to_json_string(keys_to_pop=["_from_model_config"])
                _write_text(temporary / "generation_config.json", settings)
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
            if check is not None:
                check(temporary, written)
    except ValueError as error:
        raise AdapterError(f"{target}: metrics or manifest cannot be written as JSON: {error}.") from error
    return written


@contextmanager
def at_once(target: Path) -> Iterator[Path]:
    """Gives a temporary folder that is synced and takes the place of `target` where the block ends well.

    Args:
        target: The folder to be; one that is there stays until the new one is in place.

    Raises:
        AdapterError: It cannot be written; what was there is untouched.
    """
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.parent / f".{target.name}.tmp-{mark}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*sorted(temporary.rglob("*")), temporary):
            _sync(path)
        _put_in_place(temporary, target, mark=mark)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{target}: cannot be written: {error}. What was there is untouched.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    file = weights_file(resolve_adapter(folder))
    saved = float_tensors(file.parent)
    for name, tensor in saved.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AdapterRefused(f"{file}: {name} holds numbers that are not finite. Copy the folder again.")
    # Without random weights first; on a 16-bit base peft 0.21 would round fp32 adapters on that way, and keep an
    # adapter that is stored in 16 bits in them, beside a base in fp32.
    whole = all(tensor.dtype == torch.float32 for tensor in saved.values() if tensor.is_floating_point())
    skip_random = manifest.peft_type == "LORA" and base_model.dtype == torch.float32 and whole
    try:
        with readable_folder(file.parent, saved) as readable:
            model: PeftModel = PeftModel.from_pretrained(
                base_model,
                str(readable),
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
    check_landed(model, saved, file=file)
    show_geometry(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def check_landed(
    model: PeftModel, saved: Mapping[str, torch.Tensor], *, file: Path, adapter_name: str = "default"
) -> None:
    """Makes sure that every saved tensor is in the model, bit by bit (in the parameter's dtype), and no other one.

    Args:
        model: The adapted model.
        saved: What was read from `file`, or the part of it that was loaded.
        file: Where it came from, for the message.
        adapter_name: Its name in the model.

    Raises:
        AdapterRefused: A tensor is missing, unexpected, or another one.
    """
    loaded = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
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


def save_processor(processor: Any, folder: Path) -> None:
    """Has a processor save itself; timm's saves nothing (it lies in the base's config.json), so it is written here."""
    before = set(folder.iterdir())
    processor.save_pretrained(folder)
    if set(folder.iterdir()) == before:
        _write_text(
            folder / "preprocessor_config.json", json.dumps(processor.to_dict(), indent=2, sort_keys=True) + "\n"
        )
    file = folder / "tokenizer.json"
    if file.is_file():  # without white space: a third of the file, beside hundreds of small adapters
        content = json.loads(file.read_text(encoding="utf-8"))
        content["truncation"] = content["padding"] = None  # of the last call: it would tell equal tokenizers apart
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
