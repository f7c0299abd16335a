"""One, two and four processes (gloo) learn and measure the same, also where rows do not divide evenly.

Both sides compute in 32 bits; only the order in which sums are added up differs. Measured over these runs: losses at
most 2e-7 apart, weights 1e-6.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.painted import recipe as painted_recipe
from tests.tasks.painted import write_class_folders
from tests.toy import read, sentence, write_recipe, write_reviews
from tests.train.ranks import run_ranks

GLOBAL_BATCH = 8
CURVE = 2e-6
WEIGHTS = 1e-5
PLAIN = {"optim": "sgd", "learning_rate": 0.3}  # Adam would hide a gradient of the wrong size
BOTH = {
    "logging_steps": 1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch",
    "metric_for_best_model": "loss", "greater_is_better": False, "per_device_eval_batch_size": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Bases:
    """Tiny bases."""

    bert: Path
    t5: Path
    vit: Path


EXPERIMENTS = {
    "random": "random",
    "one row in the last step": "one",
    "grouped": "grouped",
    "cut by tokens": "tokens",
    "cut by tokens in random order": "tokens_random",
    "incomplete batches left out": "dropped",
    "drawn": "drawn",
    "generated": "generated",
    "pictures": "pictures",
    "fewer rows than processes": "few",
}
"""Experiments and their folders."""


def sizes(world: int, *, accumulated: int = 1) -> dict[str, int]:
    """Settings with which a step learns of eight rows."""
    return {
        "per_device_train_batch_size": GLOBAL_BATCH // world // accumulated,
        "gradient_accumulation_steps": accumulated,
    }


def reviews(folder: Path, base: Path, *, rows: int, **sections: Mapping[str, Any]) -> Path:
    """Rows of a number that is no multiple of eight, and three that are measured."""
    arguments = {**BOTH, **PLAIN, **sections.pop("training_args", {})}
    file = write_recipe(folder, base, training_args=arguments, checks={"gap": False}, **sections)
    write_reviews(folder / "data" / "train.csv", rows, seed=1)
    write_reviews(folder / "data" / "dev.csv", 3, seed=2)
    return file


def answers(folder: Path, base: Path, **training_args: Any) -> Path:
    """Texts to be written: 13 to learn, three to be measured by what is generated."""
    (folder / "data").mkdir(parents=True)
    rng = random.Random(3)
    for name, count in (("train", 13), ("dev", 3)):
        rows = [{"text": sentence(rng, positive=True), "target": "good pan ."} for _ in range(count)]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = {"train": "data/train.jsonl", "validation": "data/dev.jsonl"}
    return write_recipe(
        folder, base, task="text2text-generation", dataset={"data_files": files}, checks={"gap": False},
        generation_config={"max_new_tokens": 4},
        training_args={**BOTH, **PLAIN, "num_train_epochs": 8, **training_args},
    )  # fmt: skip


def pictures(folder: Path, base: Path, **training_args: Any) -> Path:
    """Six pictures that are varied anew each time they are read, and two that are measured."""
    folder.mkdir(parents=True)
    write_class_folders(folder / "images")
    painted_recipe(
        folder, base, "image-classification",
        dataset={"data_files": {"train": "images"}, "validation": 0.25},
        augmentation={"horizontal_flip": 0.5, "color_jitter": 0.2}, checks={"gap": False},
        training_args={**BOTH, **PLAIN, "num_train_epochs": 4, **training_args},
    )  # fmt: skip
    return folder / "recipe.yaml"


def make_recipes(folder: Path, bases: Bases, *, world: int) -> dict[str, Path]:
    """The same experiments for so many processes."""
    one = sizes(world)
    split = sizes(world, accumulated=2)
    grouped = {"train_sampling_strategy": "group_by_length"}
    budget = {"max_tokens_per_batch": 48}
    tokens = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4 // world}
    return {
        "random": reviews(folder / "random", bases.bert, rows=37, training_args=one),
        "one row in the last step": reviews(
            folder / "one", bases.bert, rows=33, training_args={**split, "optim": "adamw_torch", "learning_rate": 1e-2}
        ),
        "grouped": reviews(folder / "grouped", bases.bert, rows=37, training_args={**split, **grouped}),
        "cut by tokens": reviews(
            folder / "tokens", bases.bert, rows=37, lean=budget, training_args={**tokens, **grouped}
        ),
        "cut by tokens in random order": reviews(
            folder / "tokens_random", bases.bert, rows=37, lean=budget,
            training_args={**tokens, "train_sampling_strategy": "random"},
        ),
        "incomplete batches left out": reviews(
            folder / "dropped", bases.bert, rows=37,
            training_args={**one, "train_sampling_strategy": "sequential", "dataloader_drop_last": True},
        ),
        "drawn": reviews(
            folder / "drawn", bases.bert, rows=37, training_args=one,
            balancing={"strategy": "undersample", "ratio": 0.9},
        ),
        "generated": answers(folder / "generated", bases.t5, **one),
        "pictures": pictures(folder / "pictures", bases.vit, **one),
        "fewer rows than processes": reviews(
            folder / "few", bases.bert, rows=3, training_args={**one, "num_train_epochs": 4}
        ),
    }  # fmt: skip


def curve(run: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every loss, those of the evaluations among them."""
    states = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda file: int(file.parent.name.split("-")[1]))
    history = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
    return [(entry["step"], name, entry[name]) for entry in history for name in ("loss", "eval_loss") if name in entry]


def check_same(one: Path, several: Path) -> None:
    """Losses, metrics and the adapter of two runs."""
    expected, found = curve(one), curve(several)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in expected], abs=CURVE, rel=CURVE)
    alone = json.loads((one / "adapter" / "metrics.json").read_text(encoding="utf-8"))
    together = json.loads((several / "adapter" / "metrics.json").read_text(encoding="utf-8"))
    for split, metrics in alone["adapter"].items():
        assert together["adapter"][split] == pytest.approx(metrics, abs=CURVE, rel=CURVE), split
    second = load_file(several / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(one / "adapter" / "adapter_model.safetensors").items():
        assert second[name] == pytest.approx(tensor, abs=WEIGHTS), name


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Bases:
    folder = tmp_path_factory.mktemp("bases")
    return Bases(tiny_bert, make_base(folder / "t5", "t5"), make_base(folder / "vit", "vit"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, bases: Bases) -> Path:
    """All experiments on one process."""
    folder = tmp_path_factory.mktemp("alone")
    for file in make_recipes(folder, bases, world=1).values():
        train(read(file), RunOptions())
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, bases: Bases) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """The same on two processes, and what only several can show; in one start, because that takes longest."""
    folder = tmp_path_factory.mktemp("pair")
    jobs: dict[str, dict[str, Any]] = {
        name: {"do": "train", "recipe": file} for name, file in make_recipes(folder, bases, world=2).items()
    }
    other = make_base(folder / "other-base", seed=1)
    own = {
        "another base": [reviews(folder / "base0", bases.bert, rows=9), reviews(folder / "base1", other, rows=9)],
        "other rows": [reviews(folder / "rows0", bases.bert, rows=9), reviews(folder / "rows1", bases.bert, rows=10)],
    }
    jobs.update({name: {"do": "train", "recipe": files} for name, files in own.items()})
    large = reviews(folder / "large", bases.bert, rows=2_000)
    jobs["kept"] = {"do": "prepare", "recipe": large, "features_dir": folder / "features", "shared_dir": folder / "run"}
    jobs["not kept"] = {"do": "prepare", "recipe": large, "shared_dir": folder / "run"}
    (folder / "translated").mkdir()
    (folder / "translated" / "lora_ft_test_asked.py").write_text(ASKED, encoding="utf-8")
    section = {"variants": 1, "back_translation": "lora_ft_test_asked:turn"}
    translated = reviews(folder / "translated", bases.bert, rows=9, augmentation=section)
    jobs["translated"] = {"do": "prepare", "recipe": translated, "shared_dir": folder / "run"}
    jobs["told"] = {"do": "tell", "device": "gpu0"}
    said = run_ranks(list(jobs.values()), world=2, folder=folder / "ranks")
    return folder, {name: [one[index] for one in said] for index, name in enumerate(jobs)}


ASKED = """
import random
from pathlib import Path

def turn(texts):
    with (Path(__file__).parent / "asked").open("a") as stream:
        stream.write("asked\\n")
    return [f"{text} {random.SystemRandom().random()}" for text in texts]
"""
"""A translator that never says the same again, and notes that it was asked."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_processes_learn_and_measure_what_one_does(alone: Path, pair: tuple[Path, Any], name: str) -> None:
    check_same(alone / EXPERIMENTS[name] / "run", pair[0] / EXPERIMENTS[name] / "run")


@pytest.mark.slow
def test_four_processes_learn_and_measure_what_one_does(alone: Path, tmp_path: Path, bases: Bases) -> None:
    recipes = make_recipes(tmp_path, bases, world=4)
    run_ranks([{"do": "train", "recipe": file} for file in recipes.values()], world=4, folder=tmp_path / "ranks")
    for name in recipes:
        check_same(alone / EXPERIMENTS[name] / "run", tmp_path / EXPERIMENTS[name] / "run")


def test_each_process_has_chance_of_its_own_and_the_first_that_of_a_run_alone(pair: tuple[Path, Any]) -> None:
    first, second = (one["draws"] for one in pair[1]["random"])
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("name", "what"), [("another base", "the base of process 1"), ("other rows", "the rows of")])
def test_processes_that_have_not_the_same_stop_with_rank_and_machine(
    pair: tuple[Path, Any], name: str, what: str
) -> None:
    for said in pair[1][name]:
        assert said["error"].startswith(f"RunError: processes: {what}")
        assert f"1 on {socket.gethostname()}" in said["error"]
        assert f"not that of process 0 on {socket.gethostname()}" in said["error"]


@pytest.mark.parametrize("name", ["kept", "not kept"])
def test_of_all_processes_one_encodes_a_large_split(pair: tuple[Path, Any], name: str) -> None:
    said = pair[1][name]
    assert sorted(one["encoded"] for one in said) == [3, 2_000 + 3]  # the small one each by itself
    assert said[0]["digest"] == said[1]["digest"]


def test_of_all_processes_one_asks_the_translator(pair: tuple[Path, Any]) -> None:
    assert (pair[0] / "translated" / "asked").read_text(encoding="utf-8") == "asked\n"
    first, second = pair[1]["translated"]
    assert first["digest"] == second["digest"]


def test_all_processes_hear_which_device_each_has(pair: tuple[Path, Any]) -> None:
    for said in pair[1]["told"]:
        assert said["heard"] == [["machine of 0", "gpu0"], ["machine of 1", "gpu0"]]
