"""The recipe of a whole run of a task on a tiny base: what all tasks write alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_recipe(folder: Path, base: Path, *, task: str, arguments: Mapping[str, Any], **sections: Any) -> Path:
    """Writes recipe.yaml; JSON is YAML.

    Args:
        folder: Where to; the run goes to `run` in it.
        base: The folder of the base.
        task: Its name.
        arguments: Laid over training_args.
        sections: The other sections, as they are.
    """
    content = {
        "task": task,
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "training_args": {
            "output_dir": "run", "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            **arguments,
        },
        **sections,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file
