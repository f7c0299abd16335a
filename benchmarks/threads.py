"""How many threads a step wants when others compute on the same cores, and how threads should wait for each other.

    python -m benchmarks.threads [--busy 1] [--rounds 7]

MiniLM, 16 rows of 64 tokens, r 8 all linear, fp32: forward, backward and AdamW. Each variant is a process of its own
that waits for its turn; `--busy` processes compute beside it all the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

VARIANTS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, OMP_WAIT_POLICY=PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "2 threads, GOMP_SPINCOUNT=10000": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "10000"},
}
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100000))"
STEPS = 2


def serve() -> None:
    """Computes steps whenever a line comes; answers with seconds a step and CPU seconds a step."""
    import torch

    from benchmarks.activation_checkpointing import adapted
    from benchmarks.real_data import packaged_base

    model: Any = adapted(packaged_base(), {})
    ids = torch.randint(1000, 20000, (16, 64), generator=torch.Generator().manual_seed(1))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1] * 8)}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), fused=True)
    print("ready", flush=True)
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            model(**rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(json.dumps([(time.perf_counter() - started) / STEPS, (time.process_time() - cpu) / STEPS]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    servers = {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.threads", "--serve"], env={**os.environ, **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for name, variables in VARIANTS.items()
    }  # fmt: skip
    for server in servers.values():
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
    beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.busy)]
    found: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    try:
        for turn in range(options.rounds + 1):  # the first is not counted
            for name, server in servers.items():
                assert server.stdin is not None
                assert server.stdout is not None
                print("go", file=server.stdin, flush=True)
                answer = json.loads(server.stdout.readline())
                found[name] += [answer] if turn else []
    finally:
        for process in (*beside, *servers.values()):
            process.kill()
    told = f"{options.busy} busy process(es) beside it, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    print(f"{told}, {options.rounds} rounds")
    print(f"{'':<40}{'ms, median':>12}{'least':>9}{'CPU ms':>9}")
    for name, seconds in found.items():
        wall, cpu = zip(*seconds, strict=True)
        median, least, busy = (1000 * one for one in (statistics.median(wall), min(wall), statistics.median(cpu)))
        print(f"{name:<40}{median:>12.0f}{least:>9.0f}{busy:>9.0f}")


if __name__ == "__main__":
    main()
