"""The doctor on defects put into clean rows: of each kind how many are found, and how many clean rows are accused.

Command:  python -m benchmarks.seeded_defects
Five seeds, 1 to 5; the bars (all of a kind found, no clean row accused) were set on seed 0 and are those of the tests.
At the end the clean parts of real data, where they are there (see `benchmarks/real_data.py`).
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.doctor import recipe
from benchmarks.real_data import real_data
from benchmarks.reviews import reviews
from lora_ft.assemble.examined import examine
from lora_ft.data.doctor.boxes import BoxCheck
from lora_ft.data.doctor.contexts import ContextCheck
from lora_ft.data.doctor.entities import EntityCheck
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.images import ImageCheck
from lora_ft.data.doctor.languages import LanguageCheck
from lora_ft.data.doctor.sounds import SoundCheck
from lora_ft.data.doctor.stream import Batch
from tests.data.doctor import seeded_media
from tests.data.doctor.seeded import CLEAN_ROWS, OTHER_ROWS, clean_rows, seeded_rows
from tests.data.doctor.seeded_media import Looked

SEEDS = (1, 2, 3, 4, 5)
CLEAN = {"train": CLEAN_ROWS, "validation": OTHER_ROWS}


class Tally:
    """Counts over the seeds: kind -> rows that were seeded, found, and clean rows that were accused."""

    def __init__(self) -> None:
        self.seeded: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.false: Counter[str] = Counter()
        self.twin: Counter[str] = Counter()
        self.clean = 0

    def add(self, looked: Looked, twin: Sequence[Finding]) -> None:
        """Adds what was found in seeded rows, and in the same rows without defects."""
        findings, where, clean = looked
        self.clean += clean
        for (name, split), rows in where.items():
            told = {row for one in findings if (one.name, one.split) == (name, split) for row in one.rows.tolist()}
            first = min(min(there) for (_, other), there in where.items() if other == split)
            self.seeded[name] += len(rows)
            self.found[name] += len(told & rows)
            self.false[name] += len({row for row in told - rows if row < first})
        for one in twin:
            self.twin[one.name] += max(1, len(one.rows))

    def show(self, title: str) -> None:
        """Prints a line for each kind."""
        kinds = len(self.seeded)
        print(f"\n{title}: {kinds} kinds, {len(SEEDS)} seeds, {self.clean} clean rows")
        print("| kind | seeded | found | recall | clean rows accused | in the clean twin |")
        print("|---|---|---|---|---|---|")
        for name, count in sorted(self.seeded.items()):
            hit, false, twin = self.found[name], self.false[name], self.twin[name]
            print(f"| `{name}` | {count} | {hit} | {hit / count:.2f} | {false} | {twin} |")
        other = {name: count for name, count in self.twin.items() if name not in self.seeded}
        print(f"other findings in the clean twin: {other or 'none'}")


def texts(folder: Path) -> Tally:
    """Texts and labels, by the whole doctor with the tokenizer of the demo's recipe."""
    tally = Tally()
    for seed in SEEDS:
        seeded, clean = seeded_rows(seed), clean_rows(seed)
        found = examine(recipe(folder, **seeded.rows)).findings
        twin = examine(recipe(folder, **clean.rows)).findings
        tally.add((found, seeded.where, sum(CLEAN.values())), twin)
    return tally


def media(folder: Path) -> Iterator[tuple[str, Tally]]:
    """Images, boxes, sounds, and what is learned of texts by other tasks."""
    for kind in ("images", "boxes", "sounds", "questions, numbers and tags"):
        tally = Tally()
        for seed in SEEDS:
            for spoiled, twin in _pairs(kind, folder / f"{kind[:6]}-{seed}", seed):
                tally.add(spoiled, twin[0])
        yield kind, tally


def _pairs(kind: str, folder: Path, seed: int) -> list[tuple[Looked, Looked]]:
    if kind == "images":
        makers: list[Any] = [lambda spoiled: seeded_media.images(folder / str(spoiled), seed, spoiled=spoiled)]
    elif kind == "sounds":
        makers = [lambda spoiled: seeded_media.sounds(folder / str(spoiled), seed, spoiled=spoiled)]
    elif kind == "boxes":
        makers = [lambda spoiled: seeded_media.boxes(seed, spoiled=spoiled)]
    else:
        makers = [
            lambda spoiled: seeded_media.questions(seed, spoiled=spoiled),
            lambda spoiled: seeded_media.numbers(seed, spoiled=spoiled),
            lambda spoiled: seeded_media.tags(seed, spoiled=spoiled),
        ]
    return [(make(True), make(False)) for make in makers]


def told(title: str, findings: Sequence[Finding]) -> None:
    """Prints what is found in real data."""
    shown = ", ".join(f"{one.name} {one.count} of {one.of} ({one.split})" for one in findings) or "nothing"
    print(f"{title}: {shown}")


def real_pictures() -> None:
    folder, check = real_data("grocery_store"), ImageCheck()
    for file in sorted(folder.glob("*.tar*")):
        with tarfile.open(file) as tar:
            members = {one.name: one for one in tar if one.isfile() and one.name.endswith(".jpg")}
            for row, (_, member) in enumerate(sorted(members.items())):
                stream = tar.extractfile(member)
                check.add(file.name.split(".")[0], row, {"bytes": stream.read() if stream else b"", "path": None})
    told("grocery_store, photographs", check.findings())


def real_boxes() -> None:
    check = BoxCheck()
    for split, name in (("train", "train.json"), ("validation", "val.json")):
        content = json.loads((real_data("bccd") / name).read_text(encoding="utf-8"))
        own: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
        for one in content["annotations"]:
            own[one["image_id"]].append(one)
        for row, boxes in enumerate(own.values()):
            value = {"bbox": [one["bbox"] for one in boxes], "category": [str(one["category_id"]) for one in boxes]}
            check.add(split, row, value)
    told("bccd, boxes of blood cells", check.findings())


def real_sounds() -> None:
    check = SoundCheck()
    with tarfile.open(real_data("fsdd") / "wav.tar.gz") as tar:
        for row, member in enumerate(one for one in tar if one.name.endswith(".wav")):
            stream = tar.extractfile(member)
            check.add("train", row, {"bytes": stream.read() if stream else b"", "path": None})
    told("fsdd, spoken digits", check.findings())


def real_texts() -> None:
    tags, contexts = EntityCheck(tokens=True), ContextCheck("context")
    for split, name in (("train", "train.jsonl"), ("validation", "dev.jsonl")):
        file = real_data("wnut17") / name
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
        raw = {"tokens": [row["tokens"] for row in rows], "tags": [row["ner_tags"] for row in rows]}
        texts_of = [" ".join(row["tokens"]) for row in rows]
        tags.add(Batch(split, 0, {}, texts_of, [None] * len(rows), [[]] * len(rows), raw))
    told("wnut17, tags", tags.findings())
    rows = [json.loads(line) for line in (real_data("xquad") / "en.jsonl").read_text(encoding="utf-8").splitlines()]
    for split, own in (("train", rows[::2]), ("validation", rows[1::2])):
        given = [row["context"] for row in own]
        contexts.add(Batch(split, 0, {"context": given}, given, [None] * len(own), [[]] * len(own)))
    told("xquad, every second question in validation", contexts.findings())


def real_languages() -> None:
    rows = [row["text"] for row in reviews("train")]
    check = LanguageCheck({"train": len(rows)})
    check.add(Batch("train", 0, {"text": rows}, rows, [None] * len(rows), [[]] * len(rows)))
    found = check.findings()
    told("fdu_mtl, languages", found)
    for row in (found[0].rows.tolist() if found else ())[:20]:
        print(f"  row {row}: {rows[row][:90]!r}")


def main() -> None:
    """Runs all of it."""
    with tempfile.TemporaryDirectory() as made:
        texts(Path(made)).show("texts and labels")
        for kind, tally in media(Path(made)):
            tally.show(kind)
    print()
    for real in (real_pictures, real_boxes, real_sounds, real_texts, real_languages):
        try:
            real()
        except SystemExit as reason:
            print(reason)


if __name__ == "__main__":
    main()
