"""Many runs struck at random points, each resumed until it is finished, and compared with one that was left alone.

    python -m tests.faults.campaign kills --trials 110 --output /tmp/faults
    python -m tests.faults.campaign damage --trials 24 --output /tmp/faults
    python -m tests.faults.campaign disk --output /tmp/faults        (in a mount namespace of its own: unshare -rm)

Everything heavy is imported once, then each run is a fork. The last line is what was seen, as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lora_ft.train.run  # noqa: F401  # what every fork needs
from tests.bases import make_base
from tests.faults.runs import Blow, Ended, different, run
from tests.toy import write_recipe

HARD: dict[str, Any] = {
    "num_train_epochs": 3, "max_steps": 30, "logging_steps": 3, "gradient_accumulation_steps": 3,
    "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 5, "save_steps": 5, "save_total_limit": 2,
    "learning_rate": 5e-3, "per_device_eval_batch_size": 4, "report_to": "tensorboard",
}  # fmt: skip
CHANCE = {"peft_config": {"lora_dropout": 0.1}, "model": {"dropout": 0.1}}
KINDS = ("text-classification", "fill-mask")
ADAPTER_ALONE = "no checkpoints"
"""A kind of run whose only files are those of the adapter."""
IN_ORDER = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
ROWS = 12
"""Rows a step learns of, whatever the number of processes."""


class Campaign:
    """Recipes, the runs that were left alone, and the trials.

    Args:
        folder: Where all of it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = make_base(folder / "base", "bert", auto_class="AutoModelForMaskedLM")
        self.digest = self._digest()
        self.alone: dict[tuple[str, int], Path] = {}

    def _digest(self) -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(self.base.iterdir()))).hexdigest()

    def recipe(self, folder: Path, kind: str, world: int) -> Path:
        """A recipe in which much can go wrong: chance, uneven steps, evaluations in the middle of epochs."""
        arguments = {**HARD, "per_device_train_batch_size": ROWS // HARD["gradient_accumulation_steps"] // world}
        sections: dict[str, Any] = {**CHANCE, "training_args": arguments}
        if kind == "fill-mask":
            sections |= {"task": kind, "dataset": {"columns": {"text": "text"}}}
        elif kind == ADAPTER_ALONE:
            arguments |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
            arguments |= {"report_to": "none", "max_steps": 6}
        else:
            sections["early_stopping"] = {"early_stopping_patience": 4}
        return write_recipe(folder, self.base, **sections)

    def reference(self, kind: str, world: int) -> Path:
        """The run folder of a run that nobody touched."""
        if (kind, world) not in self.alone:
            folder = self.folder / f"alone-{kind}-{world}"
            file = self.recipe(folder, kind, world)
            ended = run(["train", str(file)], world=world, folder=folder)
            assert ended.codes == (0,) * world, ended
            self.alone[kind, world] = folder / "run"
        return self.alone[kind, world]

    def finish(self, file: Path, *, world: int) -> Ended:
        """Lets a run go on until it is done."""
        return run(["train", str(file), "--auto-resume"], world=world, folder=file.parent)

    def verdict(self, name: str, kind: str, world: int, ended: Ended) -> str:
        """What is wrong with a trial; empty where nothing is, and its folder is gone then."""
        folder = self.folder / name
        if ended.codes != (0,) * world:
            return f"{name}: ended with {ended.codes}: {ended.text[-600:]}"
        wrong = different(self.reference(kind, world), folder / "run")
        if wrong:
            return f"{name}: {wrong}"
        if self._digest() != self.digest:
            return f"{name}: the base was changed"
        shutil.rmtree(folder)
        return ""


def kills(campaign: Campaign, *, trials: int, seed: int) -> dict[str, Any]:
    """Signals at random points, on one process and on two; some runs are struck several times."""
    rng = random.Random(seed)
    wrong: list[str] = []
    struck: Counter[str] = Counter()
    blows = 0
    for trial in range(trials):
        kind, world = rng.choices(KINDS, (2, 1))[0], rng.choices((1, 2), (2, 1))[0]
        name = f"kill-{trial}"
        file = campaign.recipe(campaign.folder / name, kind, world)
        campaign.reference(kind, world)
        met = 0
        while not met or (met < 4 and rng.random() < 0.2):
            blow = Blow.drawn(rng, world=world)
            ended = run(["train", str(file), "--auto-resume"], world=world, folder=file.parent, blow=blow)
            if ended.phase is None:
                if ended.codes != (0,) * world:
                    wrong.append(f"{name}: {ended.codes} before it was struck: {ended.text[-600:]}")
                if met:
                    break  # it went on and is done; the verdict is on that
                if (file.parent / "run" / "adapter").exists():
                    shutil.rmtree(file.parent / "run")  # it was done before its moment came: once more from the start
                continue
            met += 1
            blows += 1
            struck[f"{blow.number.name} {world} {ended.phase}"] += 1
            wrong += [f"{name}: {told}" for told in unexpected(blow, ended, world=world)]
        wrong += [told for told in [campaign.verdict(name, kind, world, campaign.finish(file, world=world))] if told]
        print(f"{name}: {kind}, {world} processes, {met} blows, {len(wrong)} wrong so far", flush=True)
    return {"trials": trials, "blows": blows, "struck": dict(sorted(struck.items())), "wrong": wrong}


def unexpected(blow: Blow, ended: Ended, *, world: int) -> Iterator[str]:
    """What a struck run should not have done: ended otherwise than documented, or not at all."""
    if 999 in ended.codes:
        yield f"{blow} in {ended.phase}: a process never ended, {ended.codes}: {ended.text[-600:]}"
    elif blow.number in IN_ORDER:
        early = -blow.number if blow.number != signal.SIGINT else IN_ORDER[blow.number]
        allowed = {
            IN_ORDER[blow.number],
            0 if ended.phase in ("adapter", "measuring", "renaming") else IN_ORDER[blow.number],
        }
        allowed |= {early} if ended.phase == "preparing" else set()
        if not set(ended.codes) <= allowed:
            yield f"{blow} in {ended.phase}: ended with {ended.codes}, not {allowed}: {ended.text[-600:]}"
        if "Traceback" in ended.text:
            yield f"{blow} in {ended.phase}: {ended.text[-900:]}"
    elif world == 2 and len(blow.ranks) == 1 and 0 in ended.codes and ended.phase != "adapter":
        yield f"{blow} in {ended.phase}: one process ended well, the other was killed: {ended.codes}"


def damage(campaign: Campaign, *, trials: int, seed: int) -> dict[str, Any]:
    """The newest checkpoint torn or changed in one bit; the one before it has to do."""
    rng = random.Random(seed)
    stopped = campaign.folder / "stopped"
    file = campaign.recipe(stopped, KINDS[0], 1)
    reference = campaign.reference(KINDS[0], 1)
    blow = Blow(signal.SIGKILL, "step", 58, 0.0, (0,))
    ended = run(["train", str(file)], world=1, folder=stopped, blow=blow)
    assert ended.phase is not None, ended.text
    whole = sorted((stopped / "run").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert len(whole) == 2, whole
    names = sorted(path.name for path in whole[-1].iterdir())
    wrong: list[str] = []
    done: Counter[str] = Counter()
    for trial in range(trials):
        name = f"damage-{trial}"
        folder = Path(shutil.copytree(stopped, campaign.folder / name))
        victim = folder / "run" / whole[-1].name
        chosen = victim / names[trial % len(names)]
        how = ("bit", "torn", "empty", "gone")[trial // len(names) % 4 if trial < 4 * len(names) else rng.randrange(4)]
        spoil(chosen, how, rng)
        done[f"{how} {chosen.name}"] += 1
        ended = campaign.finish(folder / "recipe.yaml", world=1)
        if f"damaged: {victim.name}" not in ended.text or "going on after step " not in ended.text:
            wrong.append(f"{name}: {how} {chosen.name}: nothing was told: {ended.text[-600:]}")
        told = different(reference, folder / "run") if ended.codes == (0,) else f"ended with {ended.codes}"
        wrong += [f"{name}: {how} {chosen.name}: {told}"] if told else []
        shutil.rmtree(folder)
    return {"trials": trials, "done": dict(sorted(done.items())), "wrong": wrong}


def spoil(file: Path, how: str, rng: random.Random) -> None:
    """Changes one bit of a file, cuts it, empties it, or removes it."""
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
        return
    if how == "bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(
        bytes(content) if how == "bit" else bytes(content[: rng.randrange(len(content))] if how == "torn" else b"")
    )


def disk(campaign: Campaign, *, trials: int, seed: int) -> dict[str, Any]:
    """A disk that is full at every point in turn: a file system of memory that grows until a run fits."""
    del trials, seed
    wrong: list[str] = []
    full: Counter[str] = Counter()
    fits: dict[str, int] = {}
    for kind, step_kb in ((KINDS[0], 32), (ADAPTER_ALONE, 8)):
        size_kb = step_kb
        while kind not in fits:
            name = f"disk-{kind.partition(' ')[0]}-{size_kb}"
            folder = campaign.folder / name
            file = campaign.recipe(folder, kind, 1)
            small = folder / "small"
            small.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(small)], check=True)
            output = f"training_args.output_dir={small / 'run'}"
            ended = run(["train", str(file), output], world=1, folder=folder)
            if ended.codes == (0,):
                fits[kind] = size_kb
            else:
                wrong += [f"{name}: {told}" for told in left_by_full_disk(small / "run", ended)]
                shutil.copytree(small / "run", folder / "run")
                said = ended.text.strip().splitlines()[-1]
                full["a checkpoint" if "the checkpoint cannot be written" in said else "the adapter"] += 1
                print(f"{name}: {said[:200]}", flush=True)
            subprocess.run(["umount", str(small)], check=True)
            if ended.codes != (0,):
                ended = campaign.finish(file, world=1)
                told = (
                    different(campaign.reference(kind, 1), folder / "run") if ended.codes == (0,) else ended.text[-600:]
                )
                wrong += [f"{name}: then {told}"] if told else []
            shutil.rmtree(folder)
            size_kb += step_kb
    return {"trials": sum(full.values()), "full": dict(full), "fits_kb": fits, "wrong": wrong}


def left_by_full_disk(kept: Path, ended: Ended) -> Iterator[str]:
    """What a run that had no room should not have done."""
    said = ended.text.strip().splitlines()[-1]
    clear = "cannot be written: No space left on device" in said or "the disk is full" in said
    if ended.codes != (1,) or "Traceback" in ended.text or not clear:
        yield f"{ended.codes}: {ended.text[-800:]}"
    half = sorted(path.name for path in kept.iterdir() if path.name.startswith(".") or path.name == "adapter")
    if half:
        yield f"left {half}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("kills", "damage", "disk"))
    parser.add_argument("--trials", type=int, default=110)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    does = {"kills": kills, "damage": damage, "disk": disk}[options.what]
    print(json.dumps(does(Campaign(options.output), trials=options.trials, seed=options.seed)))


if __name__ == "__main__":
    main()
