"""The doctor's parts beside slow twins, and at their edges."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from lora_ft.data.doctor import duplicates
from lora_ft.data.doctor.boilerplate import parts_of
from lora_ft.data.doctor.duplicates import ALIKE, DuplicateCheck, shingles, similarity
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.images import ImageCheck
from lora_ft.data.doctor.label_errors import out_of_fold, suspects
from lora_ft.data.doctor.labels import LabelCheck
from lora_ft.data.doctor.lengths import Spread
from lora_ft.data.doctor.scripts import main_script, name_of
from lora_ft.data.doctor.sounds import SoundCheck
from lora_ft.data.doctor.stream import Batch
from lora_ft.data.doctor.texts import has_html, is_mojibake, is_repetitive


def batch(texts: Sequence[str], labels: Sequence[str] = (), *, split: str = "train", start: int = 0) -> Batch:
    given = list(labels) or ["a"] * len(texts)
    return Batch(split, start, {"text": texts}, texts, given, [[label] for label in given])


def rows_of(findings: Sequence[Finding], name: str) -> list[int]:
    return [row for one in findings if one.name == name for row in one.rows.tolist()]


def test_near_duplicates_are_those_that_comparing_every_pair_finds() -> None:
    rng, words = random.Random(0), [f"word{n}" for n in range(300)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(150)]
    for row in range(0, 150, 3):
        copied = texts[row].split()
        for _ in range(rng.randrange(1, 6)):
            copied[rng.randrange(30)] = rng.choice(words)
        texts.append(" ".join(copied))
    sets = [shingles(text) for text in texts]
    slow = {b for b in range(len(texts)) for a in range(b) if similarity(sets[a], sets[b]) >= ALIKE}
    check = DuplicateCheck(lambda split, rows: [texts[row] for row in rows])
    check.add(batch(texts))
    assert len(slow) > 15
    assert set(rows_of(check.findings(), "near-duplicates")) == slow


def test_a_template_in_every_row_is_compared_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"the same long template of a letter with many equal words and number {n}" for n in range(3_000)]
    compared = []

    def count(one: Sequence[set[str]], other: Sequence[set[str]]) -> float:
        compared.append(1)
        return similarity(one[0], other[0])

    monkeypatch.setattr(duplicates, "least_similarity", count)
    check = DuplicateCheck(lambda split, rows: [texts[row] for row in rows])
    check.add(batch(texts))
    assert len(rows_of(check.findings(), "near-duplicates")) == 2_999
    assert len(compared) < 10 * len(texts)


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (["positive"] * 60 + ["positve"] * 2, {"positve"}),
        (["Sports"] * 30 + ["sports"] * 3 + ["sports "], {"sports", "sports "}),
        (["relevant"] * 60 + ["irrelevant"] * 2, set()),
        (["class1"] * 60 + ["class2"] * 2, set()),
        (["good"] * 60 + ["food"] * 40, set()),
    ],
)
def test_misspelt_labels_are_told_from_labels_that_only_look_alike(labels: list[str], wrong: set[str]) -> None:
    check = LabelCheck()
    check.add(batch(["some text"] * len(labels), labels))
    assert {labels[row] for row in rows_of(check.findings(), "misspelt-labels")} == wrong


def test_scripts_are_named_by_most_letters() -> None:
    named = {
        text: main_script(text)
        for text in ("plain words", "Отличная книга", "とても面白い本", "12 34", "مرحبا بالعالم")
    }
    assert [name_of(one) if one >= 0 else None for one in named.values()] == [
        "Latin", "Cyrillic", "Chinese/Hiragana/Katakana", None, "Arabic",
    ]  # fmt: skip


def test_harmless_texts_have_no_fault() -> None:
    assert not any(map(has_html, ("a < b and c > d", "AT&T & Co", "x<y>z", "<3 <3")))
    assert not any(map(is_mojibake, ("Ünïcödé naïve façade", "Привет", "日本語", "£20 – “so” …")))
    assert not any(
        map(is_repetitive, ("very very good and very very nice", "no no no", "sooooo good!!!!!!!!!!!!", "a b c"))
    )
    assert parts_of("One sentence that is the whole of the text.") == set()


def test_the_histogram_holds_every_row() -> None:
    lengths = np.array([1, 5, 5, 9, 400, 7, 100_000])
    spread = Spread.of(lengths)
    assert sum(spread.counts) == 7
    assert len(spread.edges) == len(spread.counts) + 1
    assert (spread.least, spread.median, spread.most) == (1, 7, 100_000)


def test_flipped_labels_of_separable_rows_are_found() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    vectors = (np.eye(3)[truth] @ rng.normal(size=(3, 16)) * 3 + rng.normal(size=(600, 16))).astype(np.float32)
    flipped = rng.choice(600, 60, replace=False)
    given = truth.copy()
    given[flipped] = (given[flipped] + 1) % 3
    found = suspects(out_of_fold(vectors, given.tolist(), seed=0), given.tolist())
    hit = set(found.rows.tolist()) & set(flipped.tolist())
    assert len(hit) >= 48
    assert len(hit) >= 0.95 * len(found.rows)
    assert all(found.suggested[at] == truth[row] for at, row in enumerate(found.rows) if row in hit)
    assert (np.diff(found.scores) <= 0).all()


def picture(seed: int, size: int = 64) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def test_faults_of_images_are_found_and_clean_ones_are_left_alone(tmp_path: Path) -> None:
    for seed in range(20):
        picture(seed).save(tmp_path / f"{seed:02d}.png")
    picture(1).resize((50, 50)).save(tmp_path / "20-again.jpg", quality=70)
    (tmp_path / "21-same.png").write_bytes((tmp_path / "04.png").read_bytes())
    (tmp_path / "22-broken.png").write_bytes((tmp_path / "05.png").read_bytes()[:200])
    picture(50, 8).save(tmp_path / "23-tiny.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(51).save(tmp_path / "24-turned.jpg", exif=exif)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "25-blank.png")
    check = ImageCheck()
    for row, file in enumerate(sorted(tmp_path.iterdir())):
        check.add("train", row, {"bytes": None, "path": str(file)})
    found = {one.name: (one.rows.tolist(), list(one.others)) for one in check.findings()}
    assert found == {
        "look-alike-images": ([20], [("train", 1)]), "duplicate-images": ([21], [("train", 4)]),
        "unreadable-images": ([22], []), "tiny-images": ([23], []), "turned-images": ([24], []),
        "blank-images": ([25], []),
    }  # fmt: skip


def test_faults_of_sounds_are_found_and_clean_ones_are_left_alone(tmp_path: Path) -> None:
    rate, rng = 8_000, np.random.default_rng(0)
    sounds = [0.3 * rng.standard_normal(rate).clip(-3, 3) for _ in range(12)]
    sounds += [np.zeros(rate), (5 * rng.standard_normal(rate)).clip(-1, 1), sounds[0][:200], np.tile(sounds[0], 20)]
    for row, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{row:02d}.wav", sound, rate)
    soundfile.write(tmp_path / "16.wav", sounds[1], 44_100)
    (tmp_path / "17.wav").write_bytes(b"RIFF....")
    check = SoundCheck()
    for row, file in enumerate(sorted(tmp_path.iterdir())):
        check.add("train", row, {"bytes": None, "path": str(file)})
    assert {one.name: one.rows.tolist() for one in check.findings()} == {
        "silent-sounds": [12], "clipped-sounds": [13], "short-sounds": [14], "long-sounds": [15],
        "mixed-sample-rates": [16], "unreadable-sounds": [17],
    }  # fmt: skip
