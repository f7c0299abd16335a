"""Two machines on one: network namespaces joined by a veth pair, each with processes of its own that die together.

Run under `unshare --user --map-root-user --net`, which anybody may where namespaces can be made at all. The first
machine is this namespace, the second a new one; a machine's first process is a shell, and when that is killed, so is
all that runs on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = ("lora-ft-a", "lora-ft-b")
PORT = 29511
ALONE = ("unshare", "--user", "--map-root-user", "--net")
APART = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
BOOT = """
hostname "machine-$RANK_OF_MACHINE"
echo here; read go
ip link set lo up
ip addr add "$ADDRESS/24" dev "$GLOO_SOCKET_IFNAME"
ip link set "$GLOO_SOCKET_IFNAME" up
"$@"
code=$?
ps -eo pid,stat,args --no-headers | grep -v -e ' ps -eo' -e ' sh -c' -e ' grep ' > "$LEFT" || true
exit $code
"""
PATIENCE_S = 120.0


def can_be_made() -> bool:
    """Whether namespaces and the cable between them can be made here."""
    try:
        cable = ["ip", "link", "add", "name", CABLE[0], "type", "veth"]
        asked = subprocess.run([*ALONE, *APART, *cable], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return asked.returncode == 0


def simulate(scenario: dict[str, Any], *, folder: Path) -> dict[str, Any]:
    """What the machines said; called by a test.

    Args:
        scenario: See `main`.
        folder: Where logs and the answer go.
    """
    folder.mkdir(parents=True)
    file = folder / "scenario.json"
    file.write_text(json.dumps({**scenario, "folder": str(folder)}), encoding="utf-8")
    command = [*ALONE, "--kill-child", "--fork", "--pid", "--mount-proc", sys.executable, "-m", "tests.train.machines"]
    done = subprocess.run(
        [*command, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    found["logs"] = [(folder / f"{rank}.log").read_text(encoding="utf-8") for rank in (0, 1)]
    found["left"] = [
        (folder / f"{rank}.left").read_text() if (folder / f"{rank}.left").exists() else None for rank in (0, 1)
    ]
    return found


def boot(rank: int, command: list[str], *, folder: Path) -> subprocess.Popen[bytes]:
    """A machine that waits for its cable and for a word."""
    told = {
        "ADDRESS": ADDRESSES[rank], "GLOO_SOCKET_IFNAME": CABLE[rank], "LEFT": str(folder / f"{rank}.left"),
        "RANK_OF_MACHINE": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHELASTIC_ERROR_FILE": "",
    }  # fmt: skip
    namespace = [*APART, "--net"] if rank else [*APART]
    machine = subprocess.Popen(
        [*namespace, "sh", "-c", BOOT, "sh", *command],
        env={**os.environ, **told}, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=(folder / f"{rank}.log").open("wb"),
    )  # fmt: skip
    assert machine.stdout is not None
    assert machine.stdout.readline() == b"here\n"
    return machine


def await_file(pattern: str, *, folder: Path) -> None:
    """Waits until a run has come so far that a file is there."""
    until = time.monotonic() + PATIENCE_S
    while not list(folder.glob(pattern)):
        assert time.monotonic() < until, f"no {pattern} in {folder}"
        time.sleep(0.02)


def main(scenario: dict[str, Any]) -> None:
    """Boots both machines, and kills one if it is so written.

    Args:
        scenario: `commands`, one for each machine; `dies`, None or the number of the machine that does, as soon as
            there is a file `when` in the folder `watched`; `folder`.
    """
    folder = Path(scenario["folder"])
    machines = [boot(rank, command, folder=folder) for rank, command in enumerate(scenario["commands"])]
    for command in (
        ["ip", "link", "add", "name", CABLE[0], "type", "veth", "peer", "name", CABLE[1]],
        ["ip", "link", "set", CABLE[1], "netns", str(machines[1].pid)],
    ):
        subprocess.run(command, check=True)
    for machine in machines:
        assert machine.stdin is not None
        machine.stdin.write(b"go\n")
        machine.stdin.close()
    seconds = None
    if scenario["dies"] is not None:
        await_file(scenario["when"], folder=Path(scenario["watched"]))
        machines[scenario["dies"]].kill()
        started = time.monotonic()
        machines[1 - scenario["dies"]].wait(timeout=PATIENCE_S)
        seconds = time.monotonic() - started
    codes = [machine.wait(timeout=2 * PATIENCE_S) for machine in machines]
    (folder / "answer.json").write_text(json.dumps({"codes": codes, "seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
