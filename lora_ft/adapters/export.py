"""What may be exported to which format, and where to: decided from the files alone, before torch is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.verify import MANIFEST
from lora_ft.errors import AdapterError, InputError, closest

EXPORT = "export.json"
"""Says in an exported folder what it was made of; a folder with it may be overwritten."""

SAFETENSORS, ONNX, VLLM, LORAX, ADAPTER = "safetensors", "onnx", "vllm", "lorax", "adapter"
FORMATS = {
    SAFETENSORS: "the base with the adapter folded in, for transformers",
    ONNX: "the same as one graph, for onnxruntime (encoders)",
    VLLM: "the adapter alone, for vLLM (text generation)",
    LORAX: "the adapter alone, for LoRAX (text generation)",
    ADAPTER: "a smaller adapter folder, with --dtype bf16 or int8",
}
BF16, INT8 = "bf16", "int8"
DTYPES = (BF16, INT8)

ONNX_TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
    "image-classification",
    "audio-classification",
    "automatic-speech-recognition",
)
WITHOUT_ONNX = {
    "text-generation": "it generates token by token with a key-value cache. Use --format vllm, lorax or safetensors",
    "preference-tuning": "it generates token by token with a key-value cache. Use --format vllm, lorax or safetensors",
    "text2text-generation": "encoder and decoder take turns with a key-value cache. Use --format safetensors",
    "object-detection": "its graphs have not been proven equal here. Use --format safetensors",
}
SEQ2SEQ = "seq2seq"

PACKAGES = ("onnx", "onnxruntime")
INSTALL = "pip install -c constraints.txt -e '.[export]'"


def check_request(name: str, *, dtype: str | None) -> None:
    """Makes sure that a format exists and that `--dtype` belongs to it.

    Args:
        name: What the user gave as `--format`.
        dtype: What the user gave as `--dtype`, or None.

    Raises:
        InputError: There is no such format or dtype, or they do not go together.
    """
    if name not in FORMATS:
        known = "; ".join(f"{one}: {what}" for one, what in FORMATS.items())
        raise InputError(f"--format {name}: no such format.{closest(name, FORMATS)} Expected one of {known}.")
    if name != ADAPTER and dtype is not None:
        raise InputError(f"--dtype {dtype}: only --format adapter has a dtype. Leave it out.")
    if name == ADAPTER and dtype not in DTYPES:
        given = "" if dtype is None else f" {dtype}: no such dtype.{closest(dtype, DTYPES)}"
        raise InputError(f"--format adapter: --dtype{given or ' is missing.'} Expected --dtype bf16 or --dtype int8.")


def check_apart(output: Path, adapter: Path) -> None:
    """Makes sure that what is made of an adapter does not go into that adapter, or around it and in its place.

    Args:
        output: The folder to be.
        adapter: The adapter that it is made of; or its base, or rows, that are read for it.

    Raises:
        AdapterError: One lies in the other.
    """
    here, source = output.resolve(), adapter.resolve()
    if here == source or source in here.parents or here in source.parents:
        raise AdapterError(
            f"--output {output}: it and {adapter}, which is read and never changed, lie in one another. "
            "Choose another folder."
        )


def check_output(output: Path, *, overwrite: bool, adapter: Path) -> None:
    """Makes sure that a folder may be written: a new one, an empty one, or with `overwrite` an earlier export.

    Args:
        output: The folder to be.
        overwrite: Whether an export or an adapter there may be replaced; anything else never is.
        adapter: The adapter that is exported.

    Raises:
        AdapterError: It may not.
    """
    check_apart(output, adapter)
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise AdapterError(f"--output {output}: {above} cannot be written to. Choose another folder.")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise AdapterError(f"--output {output}: exists and is no folder. Choose another one.")
    if not any(output.iterdir()):
        return
    if not ((output / EXPORT).is_file() or (output / MANIFEST).is_file()):
        raise AdapterError(
            f"--output {output}: exists and is no export (it has no {EXPORT}); it is never deleted. Choose another one."
        )
    if not overwrite:
        raise AdapterError(f"--output {output}: there is an export already. Choose another one, or give --overwrite.")


def check_onnx(manifest: Manifest, *, where: Path) -> None:
    """Makes sure that an adapter can become an ONNX graph, and that the packages for it are installed.

    Args:
        manifest: Of the adapter.
        where: Its folder, for messages.

    Raises:
        AdapterError: It generates, or its task has not been proven.
        InputError: A package is missing; names the extra.
    """
    reason = WITHOUT_ONNX.get(manifest.task)
    if manifest.problem_type == SEQ2SEQ:
        reason = WITHOUT_ONNX["text2text-generation"]
    if reason is None and manifest.task not in ONNX_TASKS:
        reason = f"expected one of {', '.join(ONNX_TASKS)}. Use --format safetensors"
    if reason is not None:
        raise AdapterError(f"{where}: a {manifest.task} adapter is not exported to ONNX: {reason}.")
    missing = missing_packages(PACKAGES)
    if missing:
        raise InputError(f"--format onnx needs {' and '.join(missing)}, not installed here: {INSTALL}.")


def missing_packages(names: Sequence[str]) -> list[str]:
    """The packages that are not installed; none of them is imported.

    Args:
        names: Top-level names.
    """
    return [name for name in names if importlib.util.find_spec(name) is None]


def check_dtype(manifest: Manifest, *, dtype: str, where: Path) -> None:
    """Makes sure that an adapter can be stored in a smaller type.

    Args:
        manifest: Of the adapter.
        dtype: `bf16` or `int8`.
        where: Its folder, for messages.

    Raises:
        AdapterError: The method has no matrices whose rows could share a scale, or it is compressed already.
    """
    if dtype == INT8 and manifest.peft_type != "LORA":
        raise AdapterError(
            f"{where}: --dtype int8 stores the matrices A and B of LORA, this is {manifest.peft_type}. "
            "Use --dtype bf16."
        )
    done = manifest.run.get("compression")
    if done is not None:
        raise AdapterError(
            f"{where}: it is stored in {done['dtype']} already; rounding twice adds up. Export the adapter "
            "it was made of."
        )
