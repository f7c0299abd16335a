"""A folder of three tiny adapters of one base: three domains, three sets of labels, two ranks, one without centroid."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass, replace
from pathlib import Path

from lora_ft.adapters.manifest import Manifest
from tests.toy import BAD, GOOD, read, write_recipe

THINGS = {"books": ("book", "story"), "phones": ("phone", "battery"), "pans": ("pan", "handle")}
LABELS = {"books": ("negative", "positive"), "phones": ("0", "1"), "pans": ("poor", "so-so", "fine")}
RANKS = {"books": 4, "phones": 2, "pans": 4}
TEXTS = {
    "books": ("the book was great and the story", "awful book", "this story is perfect , I love it", "poor story"),
    "phones": ("the battery broke", "my phone is fast and the battery is good", "terrible phone"),
    "pans": ("a sturdy pan", "the handle was flimsy and the pan is rough", "nice handle again and again"),
}


@dataclass(frozen=True)
class TinyPool:
    """Where the adapters are.

    Attributes:
        root: The folder; `root/books/run/adapter` is an adapter.
        without_centroid: The adapter that has none.
    """

    root: Path
    without_centroid: str

    def adapter(self, name: str) -> Path:
        """The adapter folder of a domain."""
        return self.root / name / "run" / "adapter"


def make_pool(root: Path, base: Path, *, without_centroid: str = "pans") -> TinyPool:
    """Trains the three adapters."""
    from lora_ft.train.run import RunOptions, train  # imports torch, which most tests of a session do not need

    for domain in THINGS:
        recipe = write_recipe(
            root / domain, base, peft_config={"r": RANKS[domain]}, training_args={"num_train_epochs": 2}
        )
        for split, count, seed in (("train", 96, 1), ("dev", 24, 2)):
            write_domain(root / domain / "data" / f"{split}.csv", domain, count, seed=seed)
        train(read(recipe), RunOptions())
    pool = TinyPool(root, without_centroid)
    forget_centroid(pool.adapter(without_centroid))
    return pool


def write_domain(file: Path, domain: str, rows: int, *, seed: int) -> Path:
    """A CSV of one domain with the columns `text` and `label`."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(domain_rows(domain, rows, seed=seed))
    return file


def domain_rows(domain: str, rows: int, *, seed: int) -> list[tuple[str, str]]:
    """Texts about the things of a domain, each with its label: the more good words, the further right."""
    rng, labels, found = random.Random(seed), LABELS[domain], []
    for index in range(rows):
        place = index % len(labels)
        words = {0: [BAD, BAD], len(labels) - 1: [GOOD, GOOD]}.get(place, [GOOD, BAD])
        opinions = [rng.choice(some) for some in words]
        said = " and ".join(f"the {rng.choice(THINGS[domain])} is {opinion}" for opinion in opinions)
        found.append((said + " ." * rng.randint(0, 6), labels[place]))
    return found


def forget_centroid(adapter: Path) -> None:
    """Makes an adapter one of those that have no centroid."""
    file = adapter / "manifest.json"
    manifest = Manifest.from_json(file.read_text(encoding="utf-8"))
    file.write_text(replace(manifest, centroid=None).to_json(), encoding="utf-8")


def mixed_rows() -> list[tuple[str, str]]:
    """Adapter and text of the rows of all domains, by turns."""
    longest = max(map(len, TEXTS.values()))
    return [(name, texts[turn]) for turn in range(longest) for name, texts in TEXTS.items() if turn < len(texts)]
