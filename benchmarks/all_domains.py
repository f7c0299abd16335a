"""One adapter for each of the 16 review domains: dev accuracy of each and on average; none may end at chance.

    python -m benchmarks.all_domains [--workers 2] [--domains books,baby] [--output FOLDER] [section.key=value ...]

Each domain runs in a process of its own; with `--workers 2` two run at a time with one thread each. Domains whose
result is already in the output folder are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.contender import run
from benchmarks.real_data import ROOT
from benchmarks.reviews import domains, write_domain

BASE = "sentence-transformers/all-MiniLM-L6-v2"
CHANCE = 0.55


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--domains", default="")
    parser.add_argument("--output", default=str(ROOT / "runs" / "all_domains"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    folder = Path(options.output)
    names = options.domains.split(",") if options.domains else domains()
    if options.workers > 1:
        os.environ["OMP_NUM_THREADS"] = "1"

    def measure(domain: str) -> dict[str, Any]:
        file = folder / domain / "result.json"
        if not file.is_file():
            rows = write_domain(domain, folder / domain)
            measured = run(
                [
                    "benchmarks.our_run",
                    str(rows["train"]),
                    str(rows["dev"]),
                    "--base",
                    BASE,
                    "--output",
                    str(folder / domain / "run"),
                    *options.overrides,
                ]
            )
            file.write_text(json.dumps({**measured.result, "wall_s": measured.wall_s}), encoding="utf-8")
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        print(f"{domain:<24} dev accuracy {result['dev_accuracy']:.4f}   {result['train_s']:.0f} s", flush=True)
        return result

    with ThreadPoolExecutor(options.workers) as pool:
        results = dict(zip(names, pool.map(measure, names), strict=True))
    accuracies = {name: result["dev_accuracy"] for name, result in results.items()}
    print(f"{'average':<24} dev accuracy {sum(accuracies.values()) / len(accuracies):.4f}")
    worst = min(accuracies, key=accuracies.__getitem__)
    print(f"{'worst: ' + worst:<24} dev accuracy {accuracies[worst]:.4f}")
    print(f"at chance (below {CHANCE}): {[name for name, value in accuracies.items() if value < CHANCE] or 'none'}")


if __name__ == "__main__":
    main()
