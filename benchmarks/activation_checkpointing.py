"""Layers that are computed again: the checkpointing of the usual peft script against ours, at the limits of a recipe.

    python -m benchmarks.activation_checkpointing [--rounds 5]

MiniLM, 16 rows of 256 tokens, r 8, fp32, the base's dropouts off; a step is forward, backward and AdamW. All variants
run in one process, in turn. `x usual` is of CPU time, which other processes disturb least; saved MB are what a forward
pass keeps for the backward pass, parameters left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from benchmarks.flops import flop_counter
from benchmarks.real_data import packaged_base
from lora_ft.train.activations import Measuring, compute_again, layers_of

TARGETS: dict[str, Any] = {
    "top 2 of 6 layers": {"layers_to_transform": [4, 5], "layers_pattern": "layer"},
    "all 6 layers": {},
}
ROWS, TOKENS = 16, 256


def adapted(base: str, chosen: dict[str, Any]) -> Any:
    """An adapted MiniLM in training mode."""
    transformers.set_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    targets = ["query", "key", "value", "dense"]
    config = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=targets, exclude_modules=".*pooler.*", **chosen)
    return get_peft_model(model, config).train()


def usual(model: Any) -> None:
    """What the usual script does."""
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()


def contenders(base: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Each with a model of its own; ours keeps three quarters, a half, or as little as it can."""
    made = {"without": adapted(base, chosen), "usual checkpointing": adapted(base, chosen)}
    usual(made["usual checkpointing"])
    plain = made["without"]
    measuring = Measuring(plain, layers_of(plain))
    with measuring.running():
        plain(**batch())
    account = measuring.account
    for share in (0.75, 0.5, 0.0):
        again = account.choose(share * account.held_bytes()) if share else account.layers
        name = f"ours, limit {share * account.held_bytes() / 1e6:.0f} MB" if share else "ours, all from the lowest"
        made[f"{name} ({len(again)} layers)"] = model = adapted(base, chosen)
        compute_again(layers_of(model), again)
    return made


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 20000, (ROWS, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1] * (ROWS // 2))}


def step(model: Any, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One step, as a function."""
    rows = batch()

    def run() -> None:
        model(**rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def saved_mb(model: Any) -> float:
    """What a forward pass keeps for the backward pass."""
    measuring = Measuring(model, layers_of(model))
    with measuring.running():
        model(**batch())
    return measuring.account.held_bytes() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    base = packaged_base()
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}, medians of {options.rounds}")
    for name, chosen in TARGETS.items():
        models = contenders(base, chosen)
        saved = {one: saved_mb(model) for one, model in models.items()}
        steps = {one: step(model, torch.optim.AdamW(p for p in model.parameters() if p.requires_grad))
                 for one, model in models.items()}  # fmt: skip
        flops = {one: flops_of(run) for one, run in steps.items()}
        seconds: dict[str, list[float]] = {one: [] for one in models}
        cpu: dict[str, list[float]] = {one: [] for one in models}
        for _ in range(options.rounds):
            for one, run in steps.items():
                started, busy = time.perf_counter(), time.process_time()
                run()
                seconds[one].append(time.perf_counter() - started)
                cpu[one].append(time.process_time() - busy)
        print(f"\nadapters in {name:<34}{'ms a step':>10}{'CPU ms':>8}{'x usual':>9}{'GFLOP':>7}{'saved MB':>10}")
        usually = statistics.median(cpu["usual checkpointing"])
        for one, found in seconds.items():
            wall, busy = statistics.median(found), statistics.median(cpu[one])
            told = f"{1000 * wall:>10.0f}{1000 * busy:>8.0f}{usually / busy:>9.2f}"
            print(f"  {one:<44}{told}{flops[one] / 1e9:>7.0f}{saved[one]:>10.0f}", flush=True)


def flops_of(run: Callable[[], None]) -> int:
    """What a step costs; it is the first one, whose time would not count."""
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
