"""Everything that can be wrong with an export and is known without torch: format, folders, task, server, packages."""

from __future__ import annotations

import json
from pathlib import Path

from lora_ft.adapters.export import (
    ADAPTER,
    LORAX,
    ONNX,
    SAFETENSORS,
    VLLM,
    check_apart,
    check_dtype,
    check_onnx,
    check_output,
    check_request,
)
from lora_ft.adapters.export_rules import check_servable
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.merge_plan import check_checkpoint_target, checkpoint_bytes
from lora_ft.adapters.verify import CONFIG, resolve_adapter, verify_files
from lora_ft.errors import ModelError
from lora_ft.models.resolve import resolve_base


def check_export(
    adapter: Path, output: Path, *, name: str, dtype: str | None, overwrite: bool, base: str | None
) -> Manifest:
    """Makes sure that an adapter can be exported, in less time than torch takes to import.

    Args:
        adapter: The adapter folder, or its run folder.
        output: The folder to be.
        name: `--format`.
        dtype: `--dtype`.
        overwrite: Whether an earlier export may be replaced.
        base: Where the base is now, or None.

    Returns:
        The manifest of the adapter, whose files are whole.

    Raises:
        InputError: Format or dtype do not exist, or a package is missing.
        AdapterError: The folder may not be written, or this adapter does not go into this format.
        AdapterRefused: The adapter folder is damaged.
    """
    check_request(name, dtype=dtype)
    folder = resolve_adapter(adapter)
    if name == SAFETENSORS:
        check_apart(output, folder)
        manifest = verify_files(folder)
        check_checkpoint_target(output, overwrite=overwrite, needed_bytes=checkpoint_bytes(manifest))
        return manifest
    check_output(output, overwrite=overwrite, adapter=folder)
    manifest = verify_files(folder)
    if name == ONNX:
        check_onnx(manifest, where=folder)
    elif name in (VLLM, LORAX):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        check_servable(name, manifest, config, model_type=_model_type(manifest, base), where=folder)
    elif name == ADAPTER:
        check_dtype(manifest, dtype=str(dtype), where=folder)
    return manifest


def _model_type(manifest: Manifest, base: str | None) -> str | None:
    """The family of the base, where it lies on this disk; else it is asked once it is loaded."""
    try:
        found = resolve_base(base or manifest.base.name, revision=None, offline=True)
    except ModelError:
        return None
    content = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    return str(content.get("model_type"))
