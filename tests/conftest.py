"""Fixtures for all tests: tiny bases, one of each kind for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bases import make_base


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "gpt2", "gpt2")
