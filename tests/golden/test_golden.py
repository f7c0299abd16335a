"""An adapter of format 1, made by lora_ft 0.1.0 (torch 2.13.0, peft 0.21.2, seed 0), must load and answer as it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.serve.predict import predict, text_rows

FOLDER = Path(__file__).parent


def test_an_old_adapter_still_loads_and_answers_as_it_did() -> None:
    expected = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
    opened = open_adapter(FOLDER / "adapter", OpenOptions(base=str(FOLDER / "base"), offline=True))
    assert opened.manifest.format_version == 1
    answers = list(predict(opened, text_rows(row["text"] for row in expected)))
    assert [row["label"] for row in answers] == [row["label"] for row in expected]
    assert [row["score"] for row in answers] == pytest.approx([row["score"] for row in expected], abs=1e-4)
