"""Sounds: what is heard of a file, and which files cannot be used."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.errors import DataError, InputError
from lora_ft.tasks.parts import audio, audio_features
from lora_ft.tasks.parts.problem import Problem
from tests.toy_sounds import tone, write_tone

WAVES = tf.Wav2Vec2FeatureExtractor(return_attention_mask=False)
AST = tf.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
WHISPER = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=2)


def problem(extractor: Any = WAVES, *, seed: int = 0, vary: dict[str, Any] | None = None, **section: Any) -> Problem:
    settings = audio.sound_settings(section, extractor=extractor, max_length_s=30.0, truncation=True)
    return Problem("ctc", (), extractor, settings, augmentation=vary or {}, seed=seed)


def pitch_of(samples: Any, rate: int) -> float:
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_file_and_its_bytes_are_heard_alike(tmp_path: Path, ending: str) -> None:
    value = write_tone(tmp_path / f"a.{ending}", 0.5)
    data = {"path": None, "bytes": Path(value["path"]).read_bytes()}
    samples, rate = audio.read_sound(value)
    assert rate == 16_000
    assert len(samples) == 8_000
    assert np.array_equal(samples, audio.read_sound(data)[0])
    assert audio.sound_length_s(value) == audio.sound_length_s(data) == 0.5
    assert np.abs(samples - tone(0.5)).max() < (0.05 if ending == "ogg" else 1e-4)


def test_channels_are_averaged() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.stack([tone(0.1), np.zeros(1_600)], axis=1), 16_000, format="WAV", subtype="FLOAT")
    samples, _ = audio.read_sound({"path": None, "bytes": stream.getvalue()})
    assert np.allclose(samples, tone(0.1) / 2)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_any_sampling_rate_becomes_that_of_the_base_at_the_same_pitch(tmp_path: Path, rate: int) -> None:
    value = write_tone(tmp_path / "a.wav", 0.5, rate=rate)
    features = audio_features.encode_sounds({"audio": [value]}, problem(), training=False)
    assert abs(features["length"][0] - 8_000) <= 1
    assert pitch_of(features["input_values"][0], 16_000) == pytest.approx(440.0, abs=3)


def test_files_that_cannot_be_heard_are_named_with_the_reason(tmp_path: Path) -> None:
    write_tone(tmp_path / "empty.wav", 0.0)
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "samples.raw").write_bytes(bytes(100))
    reasons = {
        name: audio.sound_fault({"path": str(tmp_path / name), "bytes": None})
        for name in ("empty.wav", "text.wav", "none.wav", "samples.raw")
    }
    assert "empty.wav: it is empty, 0 samples" in str(reasons["empty.wav"])
    assert "text.wav: no sound that libsndfile can read (wav, flac, ogg)" in str(reasons["text.wav"])
    assert "none.wav: there is no such file" in str(reasons["none.wav"])
    assert "samples.raw: no sound that libsndfile can read" in str(reasons["samples.raw"])
    assert "neither a path nor bytes" in str(audio.sound_fault({"path": None, "bytes": None}))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
@pytest.mark.parametrize(
    "kind", [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("WAV", None)], ids=lambda kind: kind[1] or kind[0]
)
def test_a_sound_that_breaks_off_is_named_before_anything_is_decoded(
    tmp_path: Path, kind: tuple[str, str | None], share: float
) -> None:
    noisy = (tone(20.0) + 0.1 * np.random.default_rng(0).standard_normal(320_000)).astype(np.float32)
    stream = io.BytesIO()
    soundfile.write(stream, noisy, 16_000, format=kind[0], subtype=kind[1])
    whole = stream.getvalue()
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "part").write_bytes(whole[: int(share * len(whole))])
    for value in ({"path": str(tmp_path / "whole"), "bytes": None}, {"path": None, "bytes": whole}):
        assert audio.sound_fault(value) is None
    for value in (
        {"path": str(tmp_path / "part"), "bytes": None},
        {"path": None, "bytes": (tmp_path / "part").read_bytes()},
    ):
        assert ": it breaks off: it" in str(audio.sound_fault(value))


def test_the_size_that_a_streamed_wav_does_not_know_is_not_believed(tmp_path: Path) -> None:
    value = write_tone(tmp_path / "a.wav")
    data = bytearray(Path(value["path"]).read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert audio.sound_fault({"path": None, "bytes": bytes(data)}) is None


def test_a_flac_header_without_a_length_is_named(tmp_path: Path) -> None:
    data = bytearray(Path(write_tone(tmp_path / "a.flac")["path"]).read_bytes())
    data[21] &= 0xF0  # STREAMINFO's last 36 bits before the checksum are the samples
    data[22:26] = bytes(4)
    assert "its header does not say how long it is" in str(audio.sound_fault({"path": None, "bytes": bytes(data)}))


def test_samples_that_are_no_numbers_are_refused() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(1_600, np.nan), 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        audio.read_sound({"path": None, "bytes": stream.getvalue()})


def test_too_short_and_too_long_sounds_do_not_fit_and_say_how_long_they_are(tmp_path: Path) -> None:
    short, long = write_tone(tmp_path / "s.wav", 0.05), write_tone(tmp_path / "l.wav", 1.5)
    settings = dict(problem(max_length_s=1.0).settings)
    assert "0.050 s long, shorter than processor.min_length_s = 0.1" in str(audio.length_misfit(short, settings))
    assert audio.length_misfit(long, settings) is None
    whole = {**settings, "truncation": False}
    assert "1.50 s long, longer than processor.max_length_s = 1 " in str(audio.length_misfit(long, whole))


@pytest.mark.parametrize("extractor", [WAVES, WHISPER], ids=["waves", "whisper"])
def test_how_many_sounds_are_cut_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, extractor: Any) -> None:
    rows = {"audio": [write_tone(tmp_path / "l.wav", 1.5), write_tone(tmp_path / "m.wav")]}
    with caplog.at_level("INFO"):
        audio_features.sound_costs(rows, problem(extractor, max_length_s=1.0))
        audio_features.sound_costs(rows, problem(extractor, max_length_s=2.0))
    assert [one.message for one in caplog.records] == ["1 of 2 sounds are longer than 1 s and are cut"]


def test_a_long_sound_is_cut_and_counted_and_a_short_one_filled_up(tmp_path: Path) -> None:
    values = [write_tone(tmp_path / "l.wav", 1.5), write_tone(tmp_path / "s.wav", 0.05), write_tone(tmp_path / "m.wav")]
    features = audio_features.encode_sounds({"audio": values}, problem(max_length_s=1.0), training=False)
    assert features["length"] == [16_000, 1_600, 8_000]
    assert features["truncated"] == [True, False, False]


def test_of_a_long_sound_no_more_is_decoded_than_is_heard(tmp_path: Path) -> None:
    value = write_tone(tmp_path / "l.wav", 3.0)
    assert len(audio.read_sound(value, most_s=0.5)[0]) == 8_000
    whole, _ = audio.read_sound(value)
    features = audio_features.encode_sounds({"audio": [value]}, problem(max_length_s=1.0), training=False)
    beginning = WAVES(whole[:16_000], sampling_rate=16_000)["input_values"][0]
    assert np.array_equal(features["input_values"][0], beginning)


@given(seconds=st.floats(0.01, 1.2), rate=st.sampled_from([8_000, 11_025, 16_000, 44_100]), cut=st.booleans())
def test_the_cost_of_a_sound_is_known_from_its_header(seconds: float, rate: int, cut: bool) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, tone(seconds, rate=rate), rate, format="WAV")
    rows = {"audio": [{"path": None, "bytes": stream.getvalue()}]}
    about = problem(max_length_s=1.0, truncation=cut)
    (cost,), (length,) = (
        audio_features.sound_costs(rows, about),
        audio_features.encode_sounds(rows, about, training=False)["length"],
    )
    assert abs(cost - length) <= 1


@pytest.mark.parametrize("extractor", [AST, WHISPER], ids=["ast", "whisper"])
def test_where_a_base_makes_all_sounds_equally_long_all_cost_the_same(tmp_path: Path, extractor: Any) -> None:
    rows = {"audio": [write_tone(tmp_path / "a.wav", 0.2), write_tone(tmp_path / "b.wav", 0.6)]}
    about = problem(extractor)
    features = audio_features.encode_sounds(rows, about, training=False)
    assert audio_features.sound_costs(rows, about) == features["length"]
    shapes = {one.shape for one in features[extractor.model_input_names[0]]}
    assert len(shapes) == 1


def test_the_longest_that_ast_hears_fills_its_frames_exactly() -> None:
    seconds = audio.hears_s(AST)
    assert seconds is not None
    inputs = AST(tone(seconds), sampling_rate=16_000)["input_values"][0]
    longer = AST(np.concatenate([tone(seconds), np.ones(160, np.float32)]), sampling_rate=16_000)["input_values"][0]
    assert np.array_equal(inputs, longer)
    assert not np.allclose(inputs[-1], inputs[-2], atol=1e-9) or inputs[-1].any()


def test_a_base_is_never_asked_to_hear_more_than_it_can(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"processor\.max_length_s = 45: the base hears 2 s at a time"):
        problem(WHISPER, max_length_s=45)
    with pytest.raises(InputError, match=r"processor\.min_length_s = 3"):
        problem(WHISPER, min_length_s=3)
    value = write_tone(tmp_path / "a.wav", 2.5)
    with pytest.raises(DataError, match=r"2\.50 s long, and the base hears 2 s at a time"):
        audio_features.encode_sounds({"audio": [value]}, problem(WHISPER, truncation=False), training=False)


@pytest.mark.parametrize("module", ["soundfile", "soxr"])
def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    value = write_tone(tmp_path / "a.wav", rate=8_000)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module} is not installed.*pip install 'lora-ft\[audio\]'"):
        audio_features.encode_sounds({"audio": [value]}, problem(), training=False)
