"""Fixtures: one trained adapter and its folder for the whole session, copied where a test changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from peft import PeftModel

from tests.adapters.build import trained, write
from tests.bases import make_base


@pytest.fixture(scope="session")
def lora(tiny_bert: Path) -> PeftModel:
    return trained(tiny_bert)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, lora: PeftModel, tiny_bert: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    write(folder, lora, tiny_bert)
    return folder


@pytest.fixture
def adapter(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "shop"))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return {kind: make_base(root / kind, kind) for kind in ("bert", "distilbert", "roberta", "gpt2", "llama")}
