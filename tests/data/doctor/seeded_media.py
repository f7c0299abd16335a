"""Images, boxes, sounds and what is learned of texts, with known defects which the doctor must find, and a clean twin.

`spoiled=False` gives the same rows without any defect.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from lora_ft.data.doctor.boxes import BoxCheck
from lora_ft.data.doctor.contexts import ContextCheck
from lora_ft.data.doctor.entities import EntityCheck
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.images import ImageCheck
from lora_ft.data.doctor.numbers import NumberCheck
from lora_ft.data.doctor.sounds import SoundCheck
from lora_ft.data.doctor.stream import Batch
from lora_ft.data.doctor.transcripts import TranscriptCheck
from tests.data.doctor.seeded import clean_text

Where = dict[tuple[str, str], set[int]]
"""Finding and split -> positions of the rows that have it."""
Looked = tuple[list[Finding], Where, int]
"""What was found, what is there, and how many rows are clean."""
RATE = 16_000


def picture(rng: np.random.Generator, size: int = 96) -> Image.Image:
    """A picture that looks like no other: coloured hills with some noise."""
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    grid = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((grid + rng.integers(-6, 7, grid.shape)).clip(0, 255).astype(np.uint8))


def images(folder: Path, seed: int, *, spoiled: bool, count: int = 60) -> Looked:
    """Pictures of two splits."""
    rng, where = np.random.default_rng(seed), Where()
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {"train": [], "validation": []}

    def put(split: str, name: str, content: Image.Image | bytes, ending: str, **how: object) -> None:
        file = folder / f"{split}-{len(files[split]):03d}{ending}"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            content.save(file, **how)
        if name:
            where.setdefault((name, split), set()).add(len(files[split]))
        files[split].append(file)

    for split, number in (("train", count), ("validation", count // 3)):
        for _ in range(number):
            put(split, "", picture(rng), ".png")
    if spoiled:
        exif = Image.Exif()
        exif[0x0112] = 6
        for row in range(3):
            put("train", "unreadable-images", files["train"][row].read_bytes()[:150], ".png")
            put("train", "tiny-images", picture(rng, 12), ".png")
            put("train", "blank-images", Image.new("RGB", (64, 64), (40 * row, 9, 9)), ".png")
            put("train", "turned-images", picture(rng), ".jpg", exif=exif)
            put("train", "duplicate-images", files["train"][row].read_bytes(), ".png")
            again = Image.open(files["train"][10 + row])
            put("train", "look-alike-images", again.resize((70, 70)), ".jpg", quality=70)
            put("validation", "duplicate-images-leakage", files["train"][20 + row].read_bytes(), ".png")
            again = Image.open(files["train"][30 + row])
            put("validation", "look-alike-images-leakage", again.resize((80, 80)), ".jpg", quality=60)
    check = ImageCheck()
    for split, found in files.items():
        for row, file in enumerate(found):
            check.add(split, row, {"bytes": None, "path": str(file)})
    return check.findings(), where, count + count // 3


def boxes(seed: int, *, spoiled: bool, count: int = 200) -> Looked:
    """Boxes of pictures."""
    rng, where, check = np.random.default_rng(seed), Where(), BoxCheck()
    for row in range(count):
        corners = rng.uniform(0, 60, (rng.integers(1, 6), 2))
        sides = rng.uniform(8, 40, corners.shape)
        names = [str(name) for name in rng.choice(["cat", "dog"], len(corners))]
        check.add("train", row, {"bbox": np.hstack([corners, sides]).tolist(), "category": names})
    bad = {
        "degenerate-boxes": ([[5.0, 5.0, 30.0, 1.0]], ["cat"]), "images-without-boxes": ([], []),
        "duplicate-boxes": ([[5.0, 5.0, 30.0, 30.0], [5.2, 5.0, 30.0, 30.0]], ["cat", "cat"]),
    }  # fmt: skip
    for name, (given, names) in bad.items() if spoiled else ():
        for _ in range(3):
            row = count + sum(map(len, where.values()))
            check.add("train", row, {"bbox": given, "category": names})
            where.setdefault((name, "train"), set()).add(row)
    return check.findings(), where, count


def sounds(folder: Path, seed: int, *, spoiled: bool, count: int = 60) -> Looked:
    """Noise that swells and fades like syllables, with a transcript of about twelve characters a second."""
    rng, words, where = np.random.default_rng(seed), random.Random(seed), Where()
    folder.mkdir(parents=True, exist_ok=True)
    check, transcripts = SoundCheck(), TranscriptCheck()
    rows = 0

    def speech(seconds: float) -> np.ndarray:
        samples = int(seconds * RATE)
        swell = np.abs(np.sin(np.arange(samples) * (8.0 / RATE)))
        return np.asarray(0.2 * swell * rng.standard_normal(samples).clip(-3, 3))

    def text_of(seconds: float) -> str:
        return clean_text(words)[: max(1, int(seconds * words.uniform(9, 15)))].strip() or "a"

    def put(name: str, sound: np.ndarray | bytes, text: str, rate: int = RATE) -> None:
        nonlocal rows
        file = folder / f"{rows:03d}.wav"
        if isinstance(sound, bytes):
            file.write_bytes(sound)
        else:
            soundfile.write(file, sound, rate)
        seconds = check.add("train", rows, {"bytes": None, "path": str(file)})
        if seconds is not None:
            transcripts.add("train", rows, text, seconds=seconds)
        if name:
            where.setdefault((name, "train"), set()).add(rows)
        rows += 1

    for _ in range(count):
        seconds = float(rng.uniform(1, 4))
        put("", speech(seconds), text_of(seconds))
    for _ in range(3 if spoiled else 0):
        put("unreadable-sounds", b"RIFF....", "a")
        put("silent-sounds", np.zeros(2 * RATE), text_of(2))
        put("clipped-sounds", (20 * speech(2)).clip(-1, 1), text_of(2))
        put("short-sounds", speech(0.05), "a")
        put("long-sounds", speech(40), text_of(40) * 4)
        put("mixed-sample-rates", speech(2)[::2], text_of(2), RATE // 2)
        put("odd-transcripts", speech(2), clean_text(words) * 3)
        put("odd-transcripts", speech(4), "a")
    return [*check.findings(), *transcripts.findings()], where, count


def _batch(split: str, texts: Sequence[str], raw: dict[str, Sequence[object]], context: Sequence[str]) -> Batch:
    return Batch(split, 0, {"context": context}, texts, [None] * len(texts), [[]] * len(texts), raw)


def questions(seed: int, *, spoiled: bool, count: int = 120) -> Looked:
    """Three questions about each text; some of validation's are about a text of training."""
    rng, where = random.Random(seed), Where()
    train = [text for _ in range(count // 3) for text in [clean_text(rng)] * 3]
    other = [text for _ in range(count // 9) for text in [clean_text(rng)] * 3]
    check = ContextCheck("context")
    if spoiled:
        where["context-leakage", "validation"] = set(range(len(other), len(other) + 6))
        other += train[30:36]
    for split, texts in (("train", train), ("validation", other)):
        check.add(_batch(split, texts, {}, texts))
    return check.findings(), where, count + count // 3


def numbers(seed: int, *, spoiled: bool, count: int = 400) -> Looked:
    """Ratings with a little noise."""
    rng, words, where = np.random.default_rng(seed), random.Random(seed), Where()
    texts = [clean_text(words) for _ in range(count)]
    values = rng.normal(3, 0.8, count).clip(0.5, 5.5).tolist()
    if spoiled:
        where["outlying-numbers", "train"] = set(range(count, count + 4))
        texts += [clean_text(words) for _ in range(4)]
        values += [999.0, -99.0, 300.0, -1_000.0]
        low, high = int(np.argmin(values[:count])), int(np.argmax(values[:count]))
        for row, value in ((low, 5.0), (high, 1.0)):
            where.setdefault(("conflicting-numbers", "train"), set()).update({row, len(texts)})
            texts.append(texts[row])
            values.append(value)
    check = NumberCheck("label")
    check.add(_batch("train", texts, {"label": values}, texts))
    return check.findings(), where, count


def tags(seed: int, *, spoiled: bool, count: int = 400) -> Looked:
    """Sentences about people and places; a few of them are not tagged, or as the other."""
    rng, where = random.Random(seed), Where()
    names = {"Paris": "LOC", "Berlin": "LOC", "Anna": "PER", "Omar": "PER", "Oslo": "LOC", "Mary": "PER"}
    tokens: list[list[str]] = []
    labels: list[list[str]] = []
    for _ in range(count):
        name = rng.choice(sorted(names))
        before, after = clean_text(rng).split()[:4], clean_text(rng).split()[:3]
        tokens.append([*before, name, *after])
        labels.append(["O"] * 4 + [f"B-{names[name]}"] + ["O"] * 3)
    for row in range(6 if spoiled else 0):
        name = sorted(names)[row]
        wrong = "O" if row % 2 else f"B-{'PER' if names[name] == 'LOC' else 'LOC'}"
        where.setdefault(("inconsistent-tags", "train"), set()).add(len(tokens))
        tokens.append(["we", "saw", name])
        labels.append(["O", "O", wrong])
    check = EntityCheck(tokens=True)
    texts = [" ".join(words) for words in tokens]
    check.add(_batch("train", texts, {"tokens": tokens, "tags": labels}, texts))
    return check.findings(), where, count
