"""What processes tell each other, with the gathering of three of them made up; real ones are in test_worlds."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ft.train import told


def test_one_process_hears_itself_and_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "gather_object", None)
    assert told.told_by_each({"a": 1}, world_size=1) == [{"a": 1}]
    assert told.first_told(None, world_size=1) is None
    assert told.first_told("disk full", world_size=1) == "disk full"


def test_of_several_that_say_something_the_first_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(mine: list[Any]) -> list[Any]:
        return [None, *mine, "of the third"]

    monkeypatch.setattr(told, "gather_object", gathered)
    assert told.told_by_each("mine", world_size=3) == [None, "mine", "of the third"]
    assert told.first_told("mine", world_size=3) == "mine"
    assert told.first_told(None, world_size=3) == "of the third"
