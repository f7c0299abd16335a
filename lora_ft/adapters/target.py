"""Where an adapter may be written: decided before anything heavy is imported, nothing a user has is ever lost."""

from __future__ import annotations

import os
from pathlib import Path

from lora_ft.adapters.verify import CONFIG, MANIFEST
from lora_ft.errors import AdapterError


def check_target(target: Path, *, overwrite: bool, option: str = "training_args.output_dir") -> None:
    """Makes sure that an adapter may be written: to a new folder, an empty one, or with `overwrite` over an adapter.

    Args:
        target: The folder to be.
        overwrite: Whether an adapter there may be replaced; anything else never is.
        option: What the user said the folder with, for messages.

    Raises:
        AdapterError: It may not, or the folder above it cannot be written to.
    """
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise AdapterError(f"{target}: {above} cannot be written to. Choose another {option}.")
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise AdapterError(f"{target}: exists and is no folder. Choose another {option}.")
    if not any(target.iterdir()):
        return
    if not ((target / MANIFEST).is_file() or (target / CONFIG).is_file()):
        raise AdapterError(f"{target}: exists and is no adapter folder; it is never deleted. Choose another {option}.")
    if not overwrite:
        raise AdapterError(f"{target}: there is an adapter already. Choose another {option}, or give --overwrite.")
