"""Two processes against one on the same CPU, with the same rows a step: the demo's adapter on MiniLM.

    python -m benchmarks.scaling [--rounds 3] [section.key=value ...]

One process with one thread, one with two, and two with one thread each take turns. Loss and accuracy stand beside the
time: they must not depend on the number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_data import ROOT

RECIPE = ROOT / "recipes" / "text-classification" / "minilm-shop_reviews-lora.yaml"
LAUNCHER = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "accelerate" / "cpu.yaml"))
ROWS = 16


@dataclass(frozen=True)
class Contender:
    """So many processes, with so many threads each."""

    processes: int
    threads: int

    def train(self, output: Path, overrides: list[str]) -> dict[str, float]:
        """Trains the demo's recipe; seconds of the loop, and what it came to."""
        launcher = LAUNCHER if self.processes > 1 else ()
        size = f"training_args.per_device_train_batch_size={ROWS // self.processes}"
        words = [size, "training_args.num_train_epochs=2", *overrides, f"training_args.output_dir={output}"]
        subprocess.run(
            [sys.executable, *launcher, "-m", "lora_ft", "train", str(RECIPE), *words],
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)}, cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        manifest = json.loads((output / "adapter" / "manifest.json").read_text(encoding="utf-8"))
        test = manifest["metrics"]["test"]
        return {"seconds": manifest["run"]["seconds"], "loss": test["loss"], "accuracy": test["accuracy"]}


CONTENDERS = (Contender(1, 1), Contender(1, 2), Contender(2, 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    found: dict[Contender, list[dict[str, float]]] = {one: [] for one in CONTENDERS}
    for _ in range(options.rounds):
        for contender in CONTENDERS:
            with tempfile.TemporaryDirectory() as folder:
                found[contender].append(contender.train(Path(folder) / "run", options.overrides))
    first = statistics.median(one["seconds"] for one in found[CONTENDERS[0]])
    print("processes x threads   seconds (median, all)            times faster   test loss   test accuracy")
    for contender, results in found.items():
        seconds = sorted(one["seconds"] for one in results)
        median = statistics.median(seconds)
        shown = f"{median:.1f} ({', '.join(f'{one:.1f}' for one in seconds)})"
        last = results[-1]
        print(
            f"{contender.processes} x {contender.threads:<18} {shown:<32} {first / median:<14.2f} {last['loss']:.4f}"
            f"      {last['accuracy']:.3f}"
        )


if __name__ == "__main__":
    main()
