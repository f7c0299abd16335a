"""Batches of sounds: padding, and answers that do not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from lora_ft.tasks.parts import audio_ctc
from lora_ft.tasks.parts.audio_batches import answers_of, pad_sounds, probe_sample
from lora_ft.tasks.parts.problem import Problem
from tests.bases_speech import speech_parts
from tests.toy_sounds import tone

SMALL = {"conv_kernel": [10, 8, 4], "conv_stride": [10, 8, 4]}


def model_of(norm: str, auto_class: str = "Wav2Vec2ForCTC") -> Any:
    config, _ = speech_parts("wav2vec2", hidden=16, layers=1)
    for name in vars(config):
        if "drop" in name:
            setattr(config, name, 0.0)
    config.feat_extract_norm, config.apply_spec_augment = norm, False
    torch.manual_seed(0)
    return getattr(tf, auto_class)(config).eval()


def problem(**augmentation: Any) -> Problem:
    return Problem(
        "ctc", (), tf.Wav2Vec2FeatureExtractor(return_attention_mask=False), SMALL, augmentation=augmentation
    )


def features() -> list[dict[str, Any]]:
    return [{"input_values": tone(seconds, pitch=pitch)} for seconds, pitch in ((0.1, 300), (0.35, 500), (0.2, 900))]


def test_waveforms_are_padded_to_the_longest_and_know_their_own_lengths() -> None:
    batch = pad_sounds(features(), problem())
    assert batch["input_values"].shape == (3, 5_600)
    assert batch["samples"].tolist() == [1_600, 5_600, 3_200]
    assert not batch["input_values"][0, 1_600:].any()


def test_a_batch_is_long_enough_for_one_frame_and_for_the_masks() -> None:
    short = [{"input_values": tone(0.01)}]
    plain, masked = problem(), problem(mask_time_prob=0.1, mask_time_length=7)
    for about, training, frames in ((plain, False, 1), (masked, False, 1), (masked, True, 8)):
        least = audio_ctc.least_samples(about, masked=training)
        batch = pad_sounds(short, about, least_samples=least)
        assert audio_ctc.frames_of(int(batch["samples"][0]), SMALL) == frames
        assert batch["input_values"].shape[1] == least


@pytest.mark.parametrize("auto_class", ["Wav2Vec2ForCTC", "Wav2Vec2ForSequenceClassification"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_row_is_answered_as_if_it_were_alone(norm: str, auto_class: str) -> None:
    model, about = model_of(norm, auto_class), problem()
    padded = pad_sounds(features(), about)
    with torch.no_grad():
        naive = model(padded["input_values"]).logits
        together = answers_of(model, padded, about)["logits"]
        for index, row in enumerate(features()):
            alone = model(torch.from_numpy(row["input_values"])[None]).logits[0]
            real = slice(len(alone)) if alone.ndim > 1 else slice(None)
            assert torch.allclose(together[index, real], alone, atol=1e-5)
            assert index == 1 or not torch.allclose(naive[index, real], alone, atol=1e-3)
        assert torch.equal(model(padded["input_values"]).logits, naive)  # nothing is left hooked


@pytest.mark.parametrize("stable", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("family", audio_ctc.FAMILIES)
def test_every_family_answers_a_row_as_if_it_were_alone(family: str, stable: bool) -> None:
    config = tf.AutoConfig.for_model(
        family, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        conv_dim=(16, 16, 16), conv_kernel=(10, 8, 4), conv_stride=(10, 8, 4), num_feat_extract_layers=3,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, vocab_size=12,
        feat_extract_norm="layer" if stable else "group", do_stable_layer_norm=stable,
    )  # fmt: skip
    torch.manual_seed(0)
    model, about = tf.AutoModelForCTC.from_config(config).eval(), problem()
    with torch.no_grad():
        together = answers_of(model, pad_sounds(features(), about), about)["logits"]
        for index, row in enumerate(features()):
            alone = model(torch.from_numpy(row["input_values"])[None]).logits[0]
            assert torch.allclose(together[index, : len(alone)], alone, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_small_batches_teach_the_same_as_a_large_one(norm: str) -> None:
    model, about = model_of(norm).train(), problem()
    targets = [[1, 2], [3, 4, 5], [6]]

    def gradients(groups: list[list[int]]) -> torch.Tensor:
        model.zero_grad()
        for group in groups:
            batch = pad_sounds([features()[index] for index in group], about)
            audio_ctc.ctc_loss(
                answers_of(model, batch, about)["logits"],
                audio_ctc.pad_targets([targets[index] for index in group]),
                frames=audio_ctc.frames_of(batch["samples"], SMALL),
                blank=0,
                items=6,
            ).backward()
        return model.wav2vec2.encoder.layers[0].attention.q_proj.weight.grad.clone()

    assert torch.allclose(gradients([[0], [1], [2]]), gradients([[0, 1, 2]]), atol=1e-5)


def test_a_probe_keeps_some_values_of_every_row_from_its_first_to_its_last_part() -> None:
    logits = torch.arange(2 * 40 * 100.0).reshape(2, 40, 100)
    values = probe_sample(logits)
    assert values.shape[0] == 2
    assert 256 <= values.shape[1] <= 512
    assert values[0, 0] == 0
    assert values[0, -1] > 3_900
