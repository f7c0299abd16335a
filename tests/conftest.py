"""Fixtures for all tests: tiny bases, one of each kind for the whole session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bases import make_base
from tests.families import Family
from tests.pools import TinyPool, make_pool


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "gpt2", "gpt2")


@pytest.fixture(scope="session")
def tiny_gpt2_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its language-model head."""
    return make_base(tmp_path_factory.mktemp("bases") / "gpt2-lm", "gpt2", auto_class="AutoModelForCausalLM")


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> TinyPool:
    """Three adapters on one base; tests that change it work on a copy."""
    return make_pool(tmp_path_factory.mktemp("pool"), tiny_bert)


@pytest.fixture(scope="session")
def family_bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Makes the base of a family once."""
    made: dict[tuple[str, str | None], Path] = {}

    def base_of(family: Family) -> Path:
        key = (family.kind, family.stored)
        if key not in made:
            made[key] = make_base(tmp_path_factory.mktemp(family.kind), family.kind, auto_class=family.stored)
        return made[key]

    return base_of
