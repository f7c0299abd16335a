"""CTC: vocabulary, targets, frames, and a loss beside its slow twin."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.errors import DataError, InputError
from lora_ft.models.load import load_processor
from lora_ft.tasks.parts import audio_ctc as ctc
from tests.bases_speech import speech_parts

EXTRACTOR = tf.Wav2Vec2FeatureExtractor(return_attention_mask=False)
SMALL = {"conv_kernel": [10, 8, 4], "conv_stride": [10, 8, 4]}


def made(texts: list[str], **given: Any) -> tuple[Any, dict[str, Any]]:
    processor = ctc.fit_vocabulary(EXTRACTOR, texts, given=given)
    return processor, ctc.ctc_settings(given, base_config=SMALL, tokenizer=processor.tokenizer)


def letters() -> Any:
    return speech_parts("wav2vec2", hidden=8, layers=1)[1]


def spelled(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


@given(
    target=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    frames=st.integers(1, 5),
    seed=st.integers(0, 1_000),
)
def test_the_loss_is_that_of_all_ways_to_spell_the_target(target: list[int], frames: int, seed: int) -> None:
    logits = torch.randn(1, frames, 3, generator=torch.Generator().manual_seed(seed))
    chances = logits[0].double().softmax(-1)
    ways = [path for path in itertools.product(range(3), repeat=frames) if spelled(path, 0) == tuple(target)]
    twin = sum(math.prod(float(chances[at, token]) for at, token in enumerate(path)) for path in ways)
    found = ctc.ctc_loss(logits, torch.tensor([target]), frames=torch.tensor([frames]), blank=0, items=1)
    assert bool(ways) == (frames >= ctc.frames_needed(target))
    assert float(found) == pytest.approx(-math.log(twin) if ways else 0.0, rel=1e-4, abs=1e-5)


def test_the_loss_of_a_batch_is_the_sum_of_its_rows_whatever_pads_them() -> None:
    logits = torch.randn(2, 9, 5)
    labels, frames = torch.tensor([[1, 2, -100], [3, 3, 4]]), torch.tensor([4, 9])
    together = ctc.ctc_loss(logits, labels, frames=frames, blank=0, items=5)
    alone = [
        ctc.ctc_loss(logits[:1, :4], labels[:1, :2], frames=frames[:1], blank=0, items=5),
        ctc.ctc_loss(logits[1:], labels[1:], frames=frames[1:], blank=0, items=5),
    ]
    assert float(together) == pytest.approx(float(sum(alone)), rel=1e-5)


def test_frames_are_counted_as_the_base_makes_them() -> None:
    config, _ = speech_parts("wav2vec2", hidden=8, layers=1)
    model = tf.Wav2Vec2ForCTC(config).eval()
    settings = ctc.convolutions_of(config.to_dict())
    for samples in (320, 321, 999, 1_000, 5_000):
        assert model(torch.zeros(1, samples)).logits.shape[1] == ctc.frames_of(samples, settings)
    default = tf.Wav2Vec2Config()
    assert ctc.convolutions_of({}) == {
        "conv_kernel": list(default.conv_kernel),
        "conv_stride": list(default.conv_stride),
    }


@given(frames=st.integers(1, 3_000))
def test_the_fewest_samples_for_some_frames_are_enough_and_one_less_is_not(frames: int) -> None:
    settings = ctc.convolutions_of({})
    samples = ctc.samples_for(frames, settings)
    assert ctc.frames_of(samples, settings) == frames
    assert ctc.frames_of(samples - 1, settings) == frames - 1


def test_a_vocabulary_is_made_of_the_transcripts_as_they_are_written() -> None:
    processor, settings = made(["It's TWO o'clock!", "Ça va?"])
    assert sorted(processor.tokenizer.get_vocab(), key=processor.tokenizer.get_vocab().get) == [
        "[PAD]", "[UNK]", "'", "a", "c", "i", "k", "l", "o", "s", "t", "v", "w", "ç", "|",
    ]  # fmt: skip
    assert settings["text_case"] == "lower"
    ids = ctc.target_ids("It's two!", processor.tokenizer, settings)
    assert processor.tokenizer.convert_ids_to_tokens(ids) == list("it's|two")
    assert processor.tokenizer.pad_token_id == 0


def test_the_case_and_the_punctuation_can_be_kept() -> None:
    processor, settings = made(["No. Yes!"], text_case="keep", text_punctuation="keep")
    assert settings["text_case"] == settings["text_punctuation"] == "keep"
    ids = ctc.target_ids("Yes. No!", processor.tokenizer, settings)
    assert processor.tokenizer.convert_ids_to_tokens(ids) == list("Yes.|No!")


def test_a_made_vocabulary_is_saved_and_loaded_as_it_was(tmp_path: Path) -> None:
    processor, settings = made(["yes no", "é ü"])
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path, classes=("AutoProcessor", "AutoFeatureExtractor"), trust_remote_code=False)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert len(again.tokenizer) == len(processor.tokenizer)
    ids = ctc.target_ids("no é", again.tokenizer, settings)
    assert ctc.read_frames(np.array([ids]), [len(ids)], again.tokenizer) == ["no é"]
    assert not any("tmp" in file.read_text(encoding="utf-8") for file in tmp_path.glob("*.json"))


def test_a_base_with_a_vocabulary_keeps_it_and_its_case() -> None:
    processor = letters()
    assert ctc.fit_vocabulary(processor, ["Yes, no"], given={}) is processor
    settings = ctc.ctc_settings({}, base_config=SMALL, tokenizer=processor.tokenizer)
    assert settings["text_case"] == "upper"
    ids = ctc.target_ids("Yes, no", processor.tokenizer, settings)
    assert processor.tokenizer.convert_ids_to_tokens(ids) == list("YES|NO")


def test_characters_that_the_base_cannot_write_are_refused_with_their_counts() -> None:
    with pytest.raises(DataError, match=r"has not: '7' \(2 times\), 'Ü' \(1 times\)\. Set processor\.vocabulary: data"):
        ctc.fit_vocabulary(letters(), ["77 Über"], given={})


def test_unknown_characters_can_be_left_out_or_get_a_vocabulary_of_their_own() -> None:
    given = {"unknown_characters": "remove"}
    processor = ctc.fit_vocabulary(letters(), ["77 Über"], given=given)
    settings = ctc.ctc_settings(given, base_config=SMALL, tokenizer=processor.tokenizer)
    ids = ctc.target_ids("77 Über", processor.tokenizer, settings)
    assert processor.tokenizer.convert_ids_to_tokens(ids) == list("BER")
    own = ctc.fit_vocabulary(letters(), ["77 Über"], given={"vocabulary": "data"}).tokenizer.get_vocab()
    assert {"7", "ü", "b"} <= set(own)


def test_a_character_that_training_never_saw_is_unknown_not_an_error() -> None:
    processor, settings = made(["yes"])
    ids = ctc.target_ids("yesx", processor.tokenizer, settings)
    assert ids[-1] == processor.tokenizer.unk_token_id
    assert len(ids) == 4


def test_a_base_without_a_vocabulary_cannot_be_asked_for_its_own() -> None:
    with pytest.raises(InputError, match=r"processor\.vocabulary = base: the base has no tokenizer"):
        ctc.fit_vocabulary(EXTRACTOR, ["yes"], given={"vocabulary": "base"})


def test_frames_are_read_greedily_and_only_those_of_the_row() -> None:
    processor, _ = made(["abc"])
    of = processor.tokenizer.get_vocab()
    rows = [["a", "a", "[PAD]", "a", "b", "|", "|", "c", "c"], ["c", "[PAD]", "b", "a", "a", "a", "a", "a", "a"]]
    ids = np.array([[of[token] for token in row] for row in rows])
    assert ctc.read_frames(ids, [9, 3], processor.tokenizer) == ["aab c", "cb"]
