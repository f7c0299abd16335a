"""Audio classification: whole runs from the recipe to the prediction, for waveforms and for spectrograms."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.audio_examples import tones
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.toy import read
from tests.toy_sounds import write_recipe, write_words

TASK = load_task("audio-classification")
NAME = "audio-classification"
WORDS = ("yes", "no", "no", "yes")


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "ast"])
def test_a_run_learns_its_rows_by_heart_and_the_saved_adapter_predicts_what_was_measured(
    tmp_path: Path, kind: str
) -> None:
    base = make_base(tmp_path / "base", kind, hidden=16)
    file = write_recipe(tmp_path, base, NAME, training_args={"max_steps": 30})
    result = train(read(file), RunOptions())
    assert result.metrics["validation"]["accuracy"] == 1.0
    opened = open_adapter(result.folder, OpenOptions(offline=True))
    assert set(opened.manifest.head) <= {"classifier", "projector"}
    predictions = opened.predict(datasets.Dataset.from_dict({"audio": tones(WORDS)}), batch_size=3)
    assert [one["label"] for one in predictions] == list(WORDS)
    assert all(sum(one["scores"].values()) == pytest.approx(1) for one in predictions)


def test_a_folder_of_classes_is_read_and_long_sounds_are_cut(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "ast", hidden=16)
    file = write_recipe(
        tmp_path, base, NAME,
        dataset={"data_files": {"train": "data/sounds"}, "validation": 0.5},
        processor={"max_length_s": 0.2},
        augmentation={"mask_time_prob": 0.1, "mask_feature_prob": 0.1, "mask_feature_length": 4, "gain_db": [-6, 6]},
        training_args={"max_steps": 2},
    )  # fmt: skip
    for word in ("yes", "no"):
        write_words(tmp_path / "data" / "sounds", word, [word] * 3)
        (tmp_path / "data" / "sounds" / f"{word}.csv").unlink()
    result = train(read(file), RunOptions())
    assert result.manifest is not None
    assert result.manifest.labels == ("no", "yes")


def test_a_sound_that_cannot_be_read_is_a_fault_of_its_column() -> None:
    assert str(TASK.fault({"audio": {"path": "none.wav", "bytes": None}}, labels=())).startswith("audio: none.wav")
