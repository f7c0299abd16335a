"""Many adapters on one base, ours beside plain peft: switching, loading, a batch of many adapters, and memory.

    python -m benchmarks.adapters [--bases minilm,gpt] [--counts 1,4,16,64,256] [--peft-up-to 64] [--rounds 7]

One adapter (r = 8 on all linear layers) is trained for a few steps on each base: the packaged MiniLM, and a GPT-2 of 12
layers, 384 wide, with random weights. Its folder is copied for each adapter, for what is measured does not depend on
values. Each base and count has a process of its own; in it contenders take turns, and medians are compared. A first
load of ours verifies checksums, base and probe; a later one only that the folder did not change. peft verifies nothing.
peft's own loading grows with the number of adapters that are there, so it stops at `--peft-up-to`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contender import run
from benchmarks.real_data import packaged_base

ROWS = 16
TOKENS = (1, 32)
WARM = 2
LABELS = ("bad", "good")


def gpt_base(folder: Path) -> str:
    """Writes a GPT-2 of 12 layers with random weights and a tokenizer of its own."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<pad>", "<unk>", *(f"w{number}" for number in range(998))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=1000, n_positions=512, n_embd=384, n_layer=12, n_head=6)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def train_one(base: str, folder: Path) -> Path:
    """A few steps on reviews of one word each; gives the adapter folder."""
    import csv

    from lora_ft.cli.environment import read_checked
    from lora_ft.train.run import RunOptions, train

    folder.mkdir(parents=True)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows((f"w{number} {LABELS[number % 2]}", LABELS[number % 2]) for number in range(64))
    content = {
        "task": "text-classification",
        "offline": True,
        "model": {"pretrained_model_name_or_path": base, "dtype": "float32"},
        "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "dataset": {"data_files": str(folder / "train.csv"), "validation": 0.25},
        "training_args": {"output_dir": str(folder / "run"), "max_steps": 8, "disable_tqdm": True},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    return train(read_checked(recipe, ()), RunOptions()).folder


def medians(contenders: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of each contender; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(WARM + rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if number >= WARM:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def batch(rows: int, tokens: int) -> dict[str, Any]:
    """Token ids without padding."""
    import torch

    ids = torch.randint(5, 900, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measure_ours(root: Path, count: int, rounds: int) -> dict[str, Any]:
    """Everything about the pool; also hands back its model for the others to be timed beside."""
    import psutil
    import torch

    from lora_ft.adapters.pool_folder import read_pool
    from lora_ft.adapters.pool_store import PoolLimits
    from lora_ft.assemble.pooled import open_pool
    from lora_ft.assemble.saved import OpenOptions

    found = read_pool(root)
    opened = open_pool(found, OpenOptions(offline=True, device="cpu"))
    pool, names = opened.pool, list(found.folders)
    opened.member(names[0])
    pool.remove(names[0])
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    first = []
    for name in names[1 : count + 1]:
        started = time.perf_counter()
        opened.member(name)
        first.append((time.perf_counter() - started) * 1e3)
    gc.collect()
    grown = process.memory_info().rss - before
    loaded = names[1 : count + 1]
    tensors = pool.loaded_bytes()
    turn = iter(range(10**9))

    def switch() -> None:
        with pool.rows([loaded[next(turn) % count]]):
            pass

    result: dict[str, Any] = {
        "first load": statistics.median(first),
        "memory MB": grown / 1e6,
        "tensors MB": tensors / 1e6,
        **{f"switch, {name}": value for name, value in medians({"ours": switch}, rounds=50).items()},
    }
    limited = open_pool(found, OpenOptions(offline=True, device="cpu"), limits=PoolLimits(max_adapters=count))
    for name in names[: count + 1]:
        limited.member(name)
    again = iter(names[: count + 1] * 100)
    result["load again"] = medians(
        {"ours": lambda: limited.pool.prefetch([next(again)]).result()}, rounds=min(rounds, count + 1)
    )["ours"]

    def forward(rows: Sequence[str | None], given: Mapping[str, Any]) -> Callable[[], None]:
        def call() -> None:
            with pool.rows(rows) as now:
                now.restore(pool.model(**now.arrange(given))["logits"])

        return call

    different = [loaded[number % count] for number in range(ROWS)]
    for tokens in TOKENS:
        given = batch(ROWS, tokens)

        def bare(given: Mapping[str, Any] = given) -> None:
            with torch.no_grad():
                pool.model(**given)

        result[f"{tokens} tokens"] = {
            "base": bare,
            "ours, one adapter": forward([loaded[0]] * ROWS, given),
            "ours, mixed": forward(different, given),
        }
    return result


def measure(root: Path, count: int, *, with_peft: bool, rounds: int) -> dict[str, Any]:
    """Ours and peft's in one process, in turns."""
    import torch
    import transformers
    from peft import PeftModel

    result = measure_ours(root, count, rounds)
    if with_peft:
        folders = sorted(root.iterdir())[1 : count + 2]
        config = json.loads((folders[0] / "adapter_config.json").read_text(encoding="utf-8"))
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            config["base_model_name_or_path"], num_labels=len(LABELS), pad_token_id=0
        ).eval()
        model: Any = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="a0")
        loads = []
        for number, folder in enumerate(folders[1:], start=1):
            started = time.perf_counter()
            model.load_adapter(str(folder), adapter_name=f"a{number}")
            loads.append((time.perf_counter() - started) * 1e3)
        model.eval()
        result["peft, the last load_adapter"] = statistics.median(loads[-3:])
        turn = iter(range(10**9))
        result["switch, peft"] = medians(
            {"peft": lambda: model.set_adapter(f"a{next(turn) % count}")}, rounds=min(rounds, 7)
        )["peft"]
        different = [f"a{number % count}" for number in range(ROWS)]
        for tokens in TOKENS:
            given = batch(ROWS, tokens)

            def mixed(given: Mapping[str, Any] = given) -> None:
                with torch.no_grad():
                    model(**given, adapter_names=different)

            result[f"{tokens} tokens"]["peft, adapter_names"] = mixed
    for tokens in TOKENS:
        result[f"{tokens} tokens"] = medians(result[f"{tokens} tokens"], rounds=rounds)
    return {**result, "load average": os.getloadavg()[0], "threads": torch.get_num_threads()}


def print_tables(name: str, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Times in ms, ratios, and memory; one line a count."""
    load = max(one["load average"] for one in results.values())
    print(f"\n{name}: ms, medians; {os.cpu_count()} cores, load average {load:.1f}")
    print(f"{'adapters':>9}{'switch':>9}{'peft':>9}{'ratio':>8}{'load':>9}{'first':>9}{'peft':>9}{'ratio':>8}"
          f"{'memory MB':>11}{'tensors':>9}{'ratio':>7}")  # fmt: skip
    for count, one in results.items():
        theirs, cold = one.get("switch, peft"), one.get("peft, the last load_adapter")
        print(
            f"{count:>9}{one['switch, ours']:>9.3f}{_number(theirs)}{_ratio(theirs, one['switch, ours'])}"
            f"{one['load again']:>9.1f}{one['first load']:>9.1f}{_number(cold)}{_ratio(cold, one['load again'])}"
            f"{one['memory MB']:>11.1f}{one['tensors MB']:>9.1f}{one['memory MB'] / one['tensors MB']:>7.2f}"
        )
    for tokens in TOKENS:
        print(f"\n{name}: {ROWS} rows of {tokens} token(s), ms")
        print(f"{'adapters':>9}{'base':>9}{'one':>9}{'mixed':>9}{'/ one':>8}{'peft':>9}{'ratio':>8}")
        for count, one in results.items():
            times = one[f"{tokens} tokens"]
            theirs = times.get("peft, adapter_names")
            mixed, alone = times["ours, mixed"], times["ours, one adapter"]
            print(
                f"{count:>9}{times['base']:>9.1f}{alone:>9.1f}{mixed:>9.1f}{mixed / alone:>8.2f}{_number(theirs)}"
                f"{_ratio(theirs, mixed)}"
            )


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.1f}"


def _ratio(theirs: float | None, ours: float) -> str:
    return f"{'-':>8}" if theirs is None else f"{theirs / ours:>8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bases", default="minilm,gpt")
    parser.add_argument("--counts", default="1,4,16,64,256")
    parser.add_argument("--peft-up-to", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "COUNT", "PEFT"), help="what each process does")
    options = parser.parse_args()
    if options.one:
        folder, count, with_peft = options.one
        print(json.dumps(measure(Path(folder), int(count), with_peft=with_peft == "1", rounds=options.rounds)))
        return
    counts = [int(count) for count in options.counts.split(",")]
    for name in options.bases.split(","):
        folder = Path(tempfile.mkdtemp(prefix=f"lora_ft-adapters-{name}-"))
        base = packaged_base() if name == "minilm" else gpt_base(folder / "base")
        trained = train_one(base, folder / "one")
        results = {}
        for count in counts:
            root = folder / f"pool-{count}"
            for number in range(count + 2):
                shutil.copytree(trained, root / f"a{number:03}")
            with_peft = "1" if count <= options.peft_up_to else "0"
            arguments = ["benchmarks.adapters", "--one", str(root), str(count), with_peft]
            results[count] = run([*arguments, "--rounds", str(options.rounds)]).result
            shutil.rmtree(root)
        print_tables(name, results)


if __name__ == "__main__":
    main()
