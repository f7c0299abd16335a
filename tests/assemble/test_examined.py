"""The doctor on images and sounds, by way of a recipe; texts are in tests/data/doctor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from lora_ft.assemble.examined import examine
from tests.bases import make_base
from tests.toy import read, write_recipe


def test_images_of_a_recipe_are_looked_at_with_their_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["image,label"]
    for row in range(24):
        grid = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / f"{row:02d}.png")
        lines.append(f"{row:02d}.png,{'ab'[row % 2]}")
    (tmp_path / "06.png").write_bytes((tmp_path / "02.png").read_bytes())
    (tmp_path / "07.png").write_bytes(b"no picture")
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    base = make_base(tmp_path / "vit", "vit")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    recipe = write_recipe(tmp_path, base, task="image-classification", dataset={"data_files": files}, processor={})
    text = recipe.read_text(encoding="utf-8").replace('"max_length": 32', "")
    recipe.write_text(text, encoding="utf-8")
    found = examine(read(recipe))
    told = {(one.name, one.split): one.rows.tolist() for one in found.findings}
    assert told["bad-rows", "train"] == [7]  # the task itself cannot read it
    assert told["duplicate-images", "train"] == [6]
    assert told["duplicate-images-leakage", "validation"] == list(range(23))
    assert found.splits["train"].labels == {"a": 12, "b": 11}


def test_sounds_of_a_recipe_are_looked_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["audio,label"]
    for row in range(12):
        sound = 0.3 * rng.standard_normal(8_000).clip(-3, 3) if row != 4 else np.zeros(8_000)
        soundfile.write(tmp_path / f"{row:02d}.wav", sound, 16_000)
        lines.append(f"{row:02d}.wav,{'ab'[row % 2]}")
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    base = make_base(tmp_path / "base", "wav2vec2")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    recipe = write_recipe(tmp_path, base, task="audio-classification", dataset={"data_files": files})
    text = recipe.read_text(encoding="utf-8").replace('"max_length": 32', "")
    recipe.write_text(text, encoding="utf-8")
    told = {(one.name, one.split): one.rows.tolist() for one in examine(read(recipe)).findings}
    assert told == {("silent-sounds", "train"): [4], ("silent-sounds", "validation"): [4]}
