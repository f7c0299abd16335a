"""Of the processes of a run one makes what all need; the others wait for a file, and not for one that died."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lora_ft.cli.environment import shared_dir
from lora_ft.data.shared import forget, once, run_folder

WAITED_S = 0.5
"""Without a lock the other says what it made in a hundredth of it."""
HOLDS = """
import sys, time
from pathlib import Path
from lora_ft.data.feature_cache import FeatureCache
from lora_ft.data.shared import once

def make():
    print("makes", flush=True)
    sys.stdin.read()

if sys.argv[1] == "once":
    once(Path(sys.argv[2]), "key", make)
else:
    FeatureCache(Path(sys.argv[2])).get("key", make)
"""
WAITS = """
import sys
from pathlib import Path
import datasets
from lora_ft.data.feature_cache import FeatureCache
from lora_ft.data.shared import once
print("ready", flush=True)
if sys.argv[1] == "once":
    print(once(Path(sys.argv[2]), "key", lambda: ["made here"]), flush=True)
else:
    made = lambda: datasets.Dataset.from_dict({"text": ["made here"], "length": [1]})
    print(FeatureCache(Path(sys.argv[2])).get("key", made)["text"][:], flush=True)
"""


def never() -> list[str]:
    raise AssertionError("it was made again")


def test_what_one_made_the_others_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert once(folder, "key", lambda: ["ein Buch", "zwei"]) == ["ein Buch", "zwei"]
    assert once(folder, "key", never) == ["ein Buch", "zwei"]
    assert once(folder, "other", lambda: []) == []
    assert folder.stat().st_mode & 0o077 == 0


def test_an_error_of_the_first_is_met_by_each(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            once(tmp_path, "key", lambda: [str(1 / 0)])


def test_what_was_in_common_goes_and_can_be_made_again(tmp_path: Path) -> None:
    once(tmp_path / "run", "key", lambda: ["made"])
    forget(tmp_path / "run")
    forget(None)
    assert not (tmp_path / "run").exists()
    assert once(tmp_path / "run", "key", lambda: ["made again"]) == ["made again"]


def test_where_nothing_can_be_written_each_makes_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert once(tmp_path / "file" / "run", "key", lambda: ["made"]) == ["made"]


@pytest.mark.parametrize("what", ["once", "features"])
def test_a_process_does_not_wait_for_one_that_was_killed(tmp_path: Path, what: str) -> None:
    def start(program: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, what, str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start(HOLDS) as holds:
        assert holds.stdout is not None
        assert holds.stdout.readline() == "makes\n"
        with start(WAITS) as waits:
            assert waits.stdout is not None
            assert waits.stdout.readline() == "ready\n"
            assert not select.select([waits.stdout], [], [], WAITED_S)[0]
            holds.kill()
            assert waits.stdout.readline() == "['made here']\n"
    assert waits.returncode == 0


def test_the_folder_is_that_of_the_launcher_and_those_of_dead_ones_go(tmp_path: Path) -> None:
    launcher = psutil.Process(os.getppid())
    mine = run_folder(tmp_path, launcher, port="29500")
    assert mine == run_folder(tmp_path, launcher, port="29500")
    assert mine != run_folder(tmp_path, launcher, port="29501")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        left = run_folder(tmp_path, psutil.Process(gone.pid), port="29500")
    left.mkdir()
    mine.mkdir()
    run_folder(tmp_path, launcher, port="29500")
    assert mine.is_dir()
    assert not left.exists()


def test_only_processes_that_are_several_on_one_machine_have_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = psutil.Process(os.getppid())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MASTER_PORT", "29500")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for names in ({}, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}):
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        assert shared_dir(launcher) is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shared_dir(None) is None
    assert shared_dir(launcher) == run_folder(tmp_path / "lora_ft" / "runs", launcher, port="29500")
