"""A metric by name, offline, without files shared between processes."""

from __future__ import annotations

import importlib
import pkgutil

import evaluate

from lora_ft.errors import InputError, closest

NOT_METRICS = ("intervals", "libraries", "load", "totals")


def metric_names() -> tuple[str, ...]:
    """All metrics: the files of this folder."""
    folder = importlib.import_module(__package__ or "").__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folder) if module.name not in NOT_METRICS))


def load_metric(name: str) -> evaluate.Metric:
    """Finds a metric of this folder.

    The class is made directly and keeps its rows in memory. `evaluate.load` on its file works too, but copies
    the file into a cache, imports the copy, and locks an Arrow file that all processes of a machine share.

    Args:
        name: The file's name: `single_label`, `entities`, `transcripts`.

    Returns:
        A metric with `compute(predictions=..., references=..., ...)`; its `inputs_description` says what it takes.

    Raises:
        InputError: No file of this folder has that name.
    """
    if name not in metric_names():
        known = metric_names()
        raise InputError(f"metric = {name!r}: there is no such metric.{closest(name, known)} Known: {', '.join(known)}")
    module = importlib.import_module(f"lora_ft.metrics.{name}")
    (metric_class,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, evaluate.Metric) and value.__module__ == module.__name__
    ]
    return metric_class(keep_in_memory=True)
