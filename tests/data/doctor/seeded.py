"""Rows with known defects, kind by kind, among clean rows: what the doctor must find, and where it must be silent.

`python -m tests.data.doctor.seeded FOLDER` writes them as train.csv and validation.csv.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CLEAN_ROWS, OTHER_ROWS = 600, 150
THINGS = (
    "kettle", "lamp", "backpack", "novel", "headset", "blender", "jacket",
    "keyboard", "teapot", "charger", "mattress", "notebook", "radio", "camera",
)  # fmt: skip
OPENINGS = (
    "I bought this {a} {b} for my {c} and used it {d}",
    "After {d} the {b} that my {c} gave me is still {e}",
    "My {c} wanted a {a} {b}, so we ordered one and tried it {d}",
    "The {b} arrived {d}, {e} and rather {a}",
    "We compared a {a} {b} with the {e} one of my {c} {d}",
)
CLOSINGS = (
    "The {f} is {e}, though the {g} could be {a}.",
    "For the price the {g} surprised everybody, above all the {f}.",
    "I would mention the {f} first and the {g} second.",
    "Nobody here complained of the {g}, and the {f} stays {e}.",
    "Its {f} feels {a}; its {g} does not.",
)
WORDS = {
    "a": (
        "large", "small", "heavy", "light", "cheap", "costly",
        "modern", "simple", "plain", "bright", "quiet", "solid",
    ),
    "b": THINGS,
    "c": (
        "sister", "brother", "neighbour", "uncle", "daughter",
        "colleague", "father", "cousin", "flatmate", "teacher",
    ),
    "d": (
        "every morning", "over a long weekend", "on a trip to the coast", "through the whole winter", "for eleven days",
        "last autumn", "at the office", "in our garden", "during the holidays", "two months ago",
    ),
    "e": (
        "sturdy", "shiny", "reliable", "noisy", "warm",
        "scratched", "elegant", "wobbly", "spotless", "dusty",
    ),
    "f": (
        "handle", "cover", "zip", "battery", "cable",
        "screen", "stitching", "lid", "button", "motor",
    ),
    "g": (
        "packaging", "manual", "colour", "weight", "finish",
        "strap", "smell", "sound", "delivery", "fit",
    ),
}  # fmt: skip


@dataclass
class Seeded:
    """Rows of two splits, and where the defects are.

    Attributes:
        rows: Split -> text and label of each row.
        where: Finding and split -> positions of the rows that have it.
    """

    rows: dict[str, list[tuple[str, str]]]
    where: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def put(self, name: str, split: str, text: str, label: str = "positive") -> int:
        """Adds a row with a defect."""
        self.rows[split].append((text, label))
        row = len(self.rows[split]) - 1
        self.where.setdefault((name, split), set()).add(row)
        return row

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes a CSV for each split."""
        files = {split: folder / f"{split}.csv" for split in self.rows}
        for split, file in files.items():
            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["text", "label"])
                writer.writerows(self.rows[split])
        return files


def clean_text(rng: random.Random) -> str:
    """A review of two sentences that looks like no other."""
    chosen = {key: rng.choice(values) for key, values in WORDS.items()}
    more = {key: rng.choice(values) for key, values in WORDS.items()}
    extra = " ".join(rng.sample(THINGS + WORDS["a"] + WORDS["e"] + WORDS["g"], 6))
    opening, closing = rng.choice(OPENINGS).format(**chosen), rng.choice(CLOSINGS).format(**more)
    return f"{opening}. Compared with: {extra}. {closing}"


def clean_rows(seed: int = 0) -> Seeded:
    """Rows without a defect, half of each label; some with accents, quotes, numbers and signs, which are none."""
    rng = random.Random(seed)
    harmless = (
        "The café was fermé, but the théière of my sœur is still très jolie and pours well.",
        "Costs £20 (20 % less) & ships in 3 days.",
        "5 < 7 and 9 > 4, said the manual of my uncle.",
        "The size (Größe 42) fits well, and the Nähte, as my uncle calls the seams, are clean.",
        "“Quoted”, with an em dash — and an ellipsis…", "Battery: 3,000 mAh; 12 µm film; 20 °C at most.",
        "Great value 👍👍 for a family of five, says my cousin!",
        "It\u2019s the neighbour\u2019s, isn\u2019t it? Sooo good!!!",
    )  # fmt: skip
    rows: dict[str, list[tuple[str, str]]] = {}
    for split, count in (("train", CLEAN_ROWS), ("validation", OTHER_ROWS)):
        texts = [clean_text(rng) for _ in range(count)]
        if split == "train":
            texts[: len(harmless)] = harmless
        rows[split] = [(text, ("negative", "positive")[row % 2]) for row, text in enumerate(texts)]
    return Seeded(rows)


def seeded_rows(seed: int = 0) -> Seeded:
    """The clean rows with several rows of each kind of defect after them."""
    seeded, rng = clean_rows(seed), random.Random(seed + 1)

    def fresh() -> str:
        return clean_text(rng)

    spoil: dict[str, list[Callable[[str], str]]] = {
        "empty-texts": [lambda _: "", lambda _: "   ", lambda _: "\t\n"],
        "placeholder-texts": [lambda _: "N/A", lambda _: "null", lambda _: "[deleted]", lambda _: " nan "],
        "texts-without-letters": [lambda _: "12345 67.8 !!", lambda _: "5/5", lambda _: "***** 10 *****"],
        "only-links": [lambda _: "https://shop.example/item/77", lambda _: "www.example.org/a http://example.org/b"],
        "repetitive-texts": [lambda _: "a" * 40, lambda _: "spam " * 30, lambda _: "good bad " * 20],
        "replacement-characters": [lambda t: t.replace("e", "\ufffd", 1), lambda t: t + " caf\ufffd"],
        "mojibake": [
            lambda t: t + " Le cafÃ© Ã©tait fermÃ©.",
            lambda t: t.replace(".", " â€œgreatâ€\x9d.", 1),
            lambda t: t + " GrÃ¶ÃŸe und MÃ¼he",
        ],
        "control-characters": [lambda t: t.replace(" ", "\x07", 1), lambda t: t + "\x1b[0m"],
        "invisible-characters": [lambda t: t.replace("a", "a\u200b", 2), lambda t: "\ufeff" + t],
        "left-over-html": [lambda t: f"<p>{t}</p>", lambda t: t + "<br/>", lambda t: t.replace(" ", "&nbsp;", 1)],
        "escaped-characters": [lambda t: t.replace(". ", ".\\n", 1), lambda t: t + " caf\\u00e9"],
        "unexpected-script": [
            lambda _: "Отличная книга, советую всем друзьям", lambda _: "这本书非常好看我很喜欢",
            lambda _: "この本はとても面白かったです", lambda _: "كتاب رائع جدا أنصح به",
        ],
        "unexpected-language": [
            lambda _: "La instalación del producto fue bastante simple, la configuración y operación también lo son.",
            lambda _: "Der Griff ist nach zwei Tagen abgebrochen und niemand hat auf meine Briefe geantwortet.",
            lambda _: "La poignée s'est cassée au bout de deux jours et personne n'a répondu à mes lettres.",
        ],
        "mixed-script-words": [lambda t: t.replace("a", "\u0430", 1), lambda t: t.replace("o", "\u043e", 2)],
        "very-long-texts": [lambda _: " ".join(fresh() for _ in range(30))],
        "very-short-texts": [lambda _: "meh", lambda _: "ok", lambda _: "no!"],
    }  # fmt: skip
    for name, ways in spoil.items():
        for way in ways:
            seeded.put(name, "train", way(fresh()))
    _spoil_pairs(seeded, rng)
    _spoil_labels(seeded, rng)
    return seeded


def _spoil_pairs(seeded: Seeded, rng: random.Random) -> None:
    """Rows that repeat others, exactly or nearly, and a sentence that many share."""
    train = seeded.rows["train"]
    for row in (20, 21, 22, 23):
        seeded.put("exact-duplicates", "train", train[row][0].upper(), train[row][1])
    for row in range(30, 38):
        words = train[row][0].split()
        words[rng.randrange(len(words))] = "thing"
        seeded.put("near-duplicates", "train", " ".join(words), train[row][1])
    for row in (40, 41, 42):
        other = "negative" if train[row][1] == "positive" else "positive"
        seeded.where.setdefault(("conflicting-labels", "train"), set()).add(row)
        again = seeded.put("conflicting-labels", "train", train[row][0], other)
        seeded.where["exact-duplicates", "train"].add(again)
    for row in (50, 51, 52, 53, 54):
        seeded.put("exact-leakage", "validation", train[row][0], train[row][1])
    for row in range(60, 68):
        words = train[row][0].split()
        words[rng.randrange(len(words))] = "item"
        seeded.put("near-leakage", "validation", " ".join(words), train[row][1])
    for _ in range(12):
        text = f"{clean_text(rng)} This review was collected as part of a promotion by the maker."
        seeded.put("boilerplate", "train", text, rng.choice(("negative", "positive")))


def _spoil_labels(seeded: Seeded, rng: random.Random) -> None:
    for label in ("positve", "Negative ", "negative."):
        row = seeded.put("misspelt-labels", "train", clean_text(rng), label)
        seeded.where.setdefault(("rare-labels", "train"), set()).add(row)
    for _ in range(3):
        seeded.put("rare-labels", "train", clean_text(rng), "undecided")
    for _ in range(2):
        seeded.put("unknown-labels", "validation", clean_text(rng), "sarcastic")


if __name__ == "__main__":
    seeded_rows().write(Path(sys.argv[1]))
