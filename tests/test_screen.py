"""Tables: numbers and paths are never cut, however narrow the terminal; into a pipe nothing is folded."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.panel import Panel

from lora_ft.adapters.verify import read_manifest
from lora_ft.cli.main import main
from lora_ft.cli.output import print_panel, print_table
from lora_ft.screen import adapters_table, manifest_table, not_learned, shown_folder
from lora_ft.train.run import TrainResult

GOLDEN = Path(__file__).parent / "golden" / "adapter"
LONG = Path("runs") / "a-run-with-a-name-that-is-longer-than-any-narrow-terminal-is-wide" / "adapter"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a table looks like in a terminal of a width, or in a pipe."""

    def call(table: Any, *, width: int | None) -> str:
        stream = Terminal() if width else io.StringIO()
        monkeypatch.setenv("COLUMNS", str(width or 40))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", stream)
        (print_panel if isinstance(table, Panel) else print_table)(table)
        return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())

    return call


def test_a_narrow_terminal_cuts_neither_paths_nor_numbers(printed: Callable[..., str]) -> None:
    manifest = read_manifest(GOLDEN)
    manifest = replace(manifest, metrics={"validation": {"accuracy": 0.12345}})
    text = printed(adapters_table([(LONG, manifest), (Path("b/adapter"), "a reason " * 30)]), width=40)
    assert f" {LONG.parent} " in text
    assert "accuracy 0.1235" in text or "accuracy 0.1234" in text
    assert "…" not in text
    assert str(LONG) in printed(manifest_table(manifest, LONG), width=40)
    assert max(map(len, printed(manifest_table(manifest, Path("a")), width=70).splitlines())) <= 70, "texts are folded"
    wide = printed(adapters_table([(Path("b"), "a reason " * 30)]), width=None)
    assert "a reason " * 29 in wide, "nothing is folded in a pipe"
    assert "…" not in printed(manifest_table(manifest, LONG), width=40)


def test_the_loud_word_folds_and_is_no_wider_than_the_terminal(printed: Callable[..., str]) -> None:
    manifest = read_manifest(GOLDEN)
    result = TrainResult(LONG, manifest, {}, {}, False, "f1", 1.0, "a text")
    lines = printed(not_learned(result), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "learned: false" in " ".join(lines)


def test_the_loud_word_says_what_the_gap_says_to_change(printed: Callable[..., str]) -> None:
    manifest = read_manifest(GOLDEN)
    change = "loss.class_weight: balanced"
    told = replace(manifest, run={**manifest.run, "gap": {"change": change}})
    with_gap, without = (TrainResult(LONG, one, {}, {}, False, "f1", 1.0, "a text") for one in (told, manifest))
    assert f"First change: {change}" in printed(not_learned(with_gap), width=100)
    assert "First change" not in printed(not_learned(without), width=100)


def test_list_names_run_folders_and_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name / "adapter"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text((GOLDEN / "manifest.json").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "two" / "adapter" / "manifest.json").write_text("{", encoding="utf-8")
    told = []
    for words in (["list", str(tmp_path)], ["list", str(tmp_path), "--json"]):
        monkeypatch.setattr("sys.argv", ["lora-ft", *words])
        try:
            main()
        except SystemExit as leave:
            assert not leave.code
        told.append(capsys.readouterr().out)
    assert f" {tmp_path / 'one'} " in told[0]
    assert f"{tmp_path / 'one'}/adapter" not in told[0]
    one, two = json.loads(told[1])
    assert one["adapter"] == str(tmp_path / "one")
    assert one["task"] == "text-classification"
    assert "manifest.json" in two["error"]


def test_a_folder_that_is_called_adapter_alone_keeps_its_name() -> None:
    assert shown_folder(Path("runs/shop/adapter")) == "runs/shop"
    assert shown_folder(Path("adapter")) == "adapter"
    assert shown_folder(Path("runs/merged")) == "runs/merged"
