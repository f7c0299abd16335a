"""Which features may be taken from the cache: the key that says all that they were made of."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from lora_ft.data.feature_cache import LEAST_ROWS, FeatureCache, rows_digest

if TYPE_CHECKING:
    from lora_ft.tasks.base import Task
    from lora_ft.tasks.parts.problem import Problem

LIBRARIES = ("transformers", "tokenizers", "datasets")
PACKAGE = Path(__file__).parents[1]
CODE = ("tasks/**/*.py", "data/encode.py", "assemble/encode.py")
CHANGES_WITH_USE = ("truncation", "padding")
"""What a fast tokenizer writes into its tokenizer.json of the last call."""


class KeptFeatures:
    """The cache of a run's features.

    Args:
        folder: Where it is.
        processor: The processor of the run, before it has read a row.
    """

    def __init__(self, folder: Path, processor: Any) -> None:
        self.cache = FeatureCache(folder)
        self.processor = processor

    def get(
        self,
        rows: datasets.Dataset,
        make: Callable[[], datasets.Dataset],
        *,
        task: Task,
        problem: Problem,
        training: bool,
    ) -> datasets.Dataset:
        """The features of rows: from the cache, or made and put there; of few rows they are made.

        Args:
            rows: The rows.
            make: Makes their features.
            task: The task.
            problem: What it is about.
            training: Whether the rows are trained on.
        """
        if len(rows) < LEAST_ROWS:
            return make()
        return self.cache.get(self.key(rows, task=task, problem=problem, training=training), make)

    def key(self, rows: datasets.Dataset, *, task: Task, problem: Problem, training: bool) -> str:
        """SHA-256 over rows, task, code, versions, processor and all of the problem that `Task.encode` reads."""
        made_of = {
            "rows": rows_digest(rows),
            "task": task.name,
            "training": training,
            "problem_type": problem.problem_type,
            "labels": problem.labels,
            "settings": problem.settings,
            "generation": problem.generation,
            "augmentation": problem.augmentation if training else {},
            "preparation": problem.preparation,
            "loss": problem.loss,
            "seed": problem.seed,
            "processor": self._processor,
            "code": self._code,
            "versions": {name: version(name) for name in LIBRARIES},
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=repr).encode()).hexdigest()

    @cached_property
    def _processor(self) -> str:
        """Of its files; without what a tokenizer remembers of how it was last used."""
        digest = hashlib.sha256()
        with tempfile.TemporaryDirectory() as folder:
            self.processor.save_pretrained(folder)
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                content = file.read_bytes()
                if file.name == "tokenizer.json":
                    read = json.loads(content)
                    kept = {name: value for name, value in read.items() if name not in CHANGES_WITH_USE}
                    content = json.dumps(kept, sort_keys=True).encode()
                digest.update(f"{file.name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    @cached_property
    def _code(self) -> str:
        """Of the files that make features."""
        files = sorted(file for pattern in CODE for file in PACKAGE.glob(pattern))
        return hashlib.sha256(b"\n".join(file.read_bytes() for file in files)).hexdigest()
