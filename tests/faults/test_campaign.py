"""Nothing that happens to a run changes what it ends with; the campaigns are in `campaign.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
UNSHARED = ("unshare", "--user", "--map-root-user", "--mount")


def campaign(what: str, folder: Path, *, trials: int, within: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [*within, sys.executable, "-m", "tests.faults.campaign", what, "--trials", str(trials)]
    done = subprocess.run(
        [*command, "--output", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return seen


@pytest.mark.slow
def test_a_campaign_of_one_run_ends_well(tmp_path: Path) -> None:
    """The harness itself: one run is struck and goes on; and a run that ended otherwise would be told."""
    seen = campaign("kills", tmp_path, trials=1)
    assert seen["wrong"] == []
    assert seen["blows"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_runs_killed_at_any_point_end_with_the_adapter_of_one_that_was_left_alone(tmp_path: Path) -> None:
    seen = campaign("kills", tmp_path, trials=110)
    assert seen["wrong"] == []
    assert seen["blows"] >= 100
    met = " ".join(seen["struck"])
    for part in (
        "SIGKILL 1",
        "SIGKILL 2",
        "SIGTERM 1",
        "SIGTERM 2",
        "step",
        "evaluation",
        "writing",
        "renaming",
        "preparing",
    ):
        assert part in met


@pytest.mark.slow
def test_torn_and_flipped_checkpoints_are_told_and_passed_by(tmp_path: Path) -> None:
    seen = campaign("damage", tmp_path, trials=32)
    assert seen["wrong"] == []


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_point_costs_nothing_but_room(tmp_path: Path) -> None:
    if subprocess.run([*UNSHARED, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    seen = campaign("disk", tmp_path, trials=0, within=UNSHARED)
    assert seen["wrong"] == []
    assert seen["trials"] >= 5
