"""Libraries that a metric is computed by, imported when it is used, with the name of what to install."""

from __future__ import annotations

import importlib
from typing import Any

from lora_ft.errors import InputError


def library(module: str, *, metrics: str, extra: str | None = None) -> Any:
    """Imports a module of a library that may not be installed.

    Args:
        module: `jiwer`, `sacrebleu.metrics`.
        metrics: What it computes, for the message: `wer and cer`.
        extra: The extra of lora-ft that brings it; None: lora-ft itself should have brought it.

    Returns:
        The module.

    Raises:
        InputError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != name:
            raise  # the library is there, and something that it needs is not
        install = f"lora-ft[{extra}]" if extra else "--upgrade lora-ft"
        quoted = f"'{install}'" if extra else install
        raise InputError(
            f"metrics {metrics}: they are computed by the library {name}, which is not installed. "
            f"Expected it beside lora-ft. Install it: pip install {quoted}"
        ) from error
