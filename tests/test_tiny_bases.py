"""The tiny bases of docs/tasks.md: the script runs offline, and each task has one that it can use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lora_ft.recipe.families import unknown_family
from lora_ft.tasks.base import load_task, task_names

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"


def test_the_script_makes_a_base_for_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = re.findall(r"```python\n(import lora_ft .*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "tasks.md", "exec"), {})
    configs = {
        folder.name: json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "bases").iterdir()
    }
    assert set(configs) == {"bert", "llama", "t5", "vit", "yolos", "wav2vec2"}
    for name in task_names():
        task = load_task(name)
        assert any(unknown_family(one, task.auto_classes(), task=name) is None for one in configs.values()), name
