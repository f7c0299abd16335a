"""Varied sounds: as much as the recipe says, from the seed alone, and in training alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.errors import InputError
from lora_ft.tasks.parts.audio_augmentation import Augmentation, mask_spectrogram, speed_between, varied
from lora_ft.tasks.parts.audio_features import encode_sounds
from tests.tasks.parts.test_audio import AST, pitch_of, problem
from tests.toy_sounds import tone, write_tone


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("decibels", [10.0, 30.0])
def test_noise_lies_as_far_below_the_sound_as_asked(decibels: float) -> None:
    sound = tone(2.0)
    noise = varied(sound, Augmentation.of({"noise_snr_db": [decibels, decibels]}), rng()) - sound
    ratio = 20 * np.log10(np.sqrt(np.mean(sound**2)) / np.sqrt(np.mean(noise**2)))
    assert ratio == pytest.approx(decibels, abs=0.3)


def test_silence_stays_silent_under_noise() -> None:
    assert not varied(np.zeros(100, np.float32), Augmentation.of({"noise_snr_db": [10, 30]}), rng()).any()


def test_gain_is_in_decibels() -> None:
    louder = varied(tone(0.1), Augmentation.of({"gain_db": [6, 6]}), rng())
    assert np.allclose(louder, tone(0.1) * 10 ** (6 / 20), atol=1e-6)
    assert louder.dtype == np.float32


def test_speed_changes_length_and_pitch_together(tmp_path: Path) -> None:
    rows = {"audio": [write_tone(tmp_path / "a.wav", 1.0)]}
    features = encode_sounds(rows, problem(vary={"speed": [1.25, 1.25]}), training=True)
    assert features["length"][0] == 12_800
    assert pitch_of(features["input_values"][0], 16_000) == pytest.approx(550.0, abs=2)


@given(
    limits=st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)).map(lambda pair: (min(pair), max(pair))),
    length_s=st.floats(0.1, 30.0),
    shortest_s=st.floats(0.0, 30.0),
    longest_s=st.floats(0.1, 60.0),
)
def test_no_speed_makes_a_sound_shorter_or_longer_than_it_may_be(
    limits: tuple[float, float], length_s: float, shortest_s: float, longest_s: float
) -> None:
    factors = speed_between(limits, length_s=length_s, shortest_s=shortest_s, longest_s=longest_s)
    if factors != (1.0, 1.0):
        assert limits[0] <= factors[0] <= factors[1] <= limits[1]
        assert all(shortest_s * (1 - 1e-9) <= length_s / factor <= longest_s * (1 + 1e-9) for factor in factors)


def test_sounds_are_varied_in_training_alone_and_by_the_seed_alone(tmp_path: Path) -> None:
    rows = {"audio": [write_tone(tmp_path / "a.wav")]}
    vary = {"speed": [0.9, 1.1], "noise_snr_db": [10, 30], "gain_db": [-6, 6]}

    def made(seed: int, *, training: bool) -> Any:
        return encode_sounds(rows, problem(vary=vary, seed=seed), training=training)["input_values"][0]

    assert np.array_equal(made(1, training=True), made(1, training=True))
    assert len(made(1, training=True)) != len(made(2, training=True))
    assert np.array_equal(made(1, training=False), made(2, training=False))
    assert np.array_equal(made(1, training=False), encode_sounds(rows, problem(), training=True)["input_values"][0])


def test_spans_of_frames_and_bands_are_masked_whole() -> None:
    ones = np.ones((1_000, 64), np.float32)
    vary = Augmentation.of({"mask_time_prob": 0.2, "mask_time_length": 10})
    masked = mask_spectrogram(ones, vary, rng())
    rows = (masked == 0).all(axis=1)
    assert ((masked == 0) == rows[:, None]).all()
    assert 0.12 < rows.mean() <= 0.21
    bands = mask_spectrogram(ones, Augmentation.of({"mask_feature_prob": 0.5, "mask_feature_length": 4}), rng())
    columns = (bands == 0).all(axis=0)
    assert ((bands == 0) == columns).all()
    assert 0.25 < columns.mean() <= 0.5
    assert ones.all()


def test_ast_which_has_no_masks_of_its_own_gets_them_in_training(tmp_path: Path) -> None:
    rows = {"audio": [write_tone(tmp_path / "a.wav")]}
    about = problem(AST, vary={"mask_time_prob": 0.5, "mask_time_length": 8})
    plain, masked = (encode_sounds(rows, about, training=training)["input_values"][0] for training in (False, True))
    assert 8 <= (masked == 0).all(axis=1).sum() <= 40
    assert not (plain == 0).all(axis=1).any()


def test_a_base_masks_only_what_the_recipe_asks_for() -> None:
    assert Augmentation.of({}).config() == {"apply_spec_augment": False}
    assert Augmentation.of({"mask_feature_prob": 0.1}).config() == {
        "apply_spec_augment": True,
        "mask_time_prob": 0.0,
        "mask_time_length": 10,
        "mask_feature_prob": 0.1,
        "mask_feature_length": 10,
    }


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"speed": [1.1, 0.9]}, r"augmentation\.speed = \[1\.1, 0\.9\]: expected the least and the greatest factor"),
        ({"speed": [0.1, 1.0]}, r"from 0\.5 to 2, such as \[0\.9, 1\.1\]"),
        ({"noise_snr_db": [10]}, r"augmentation\.noise_snr_db = \[10\]"),
        ({"gain_db": ["a", "b"]}, r"augmentation\.gain_db"),
        ({"mask_time_prob": 1.5}, r"augmentation\.mask_time_prob = 1\.5: expected a share"),
        ({"mask_time_length": 0}, r"augmentation\.mask_time_length = 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation.of(section)
