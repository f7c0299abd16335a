"""Losses at labelled positions, sums of rows, blocks and cuts: each beside a slow twin or a property."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.tasks.parts import language
from lora_ft.tasks.parts.language import (
    IGNORED,
    blocks,
    causal_labels,
    fit,
    frame_of,
    joined_sums,
    label_sums,
    language_loss,
    length_mask,
    pad_right,
    probe_logits,
    sums_scorer,
)
from tests.bases import tiny_tokenizer
from tests.tasks.parts.tokenizers_of import byte_tokenizer, piece_tokenizer


def some_logits(rows: int = 3, positions: int = 5, vocabulary: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(vocabulary, (rows, positions))
    labels[0, 1:] = IGNORED
    labels[2] = IGNORED
    return torch.randn(rows, positions, vocabulary), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_over_all_positions(smoothing: float) -> None:
    logits, labels = some_logits()
    ours = language_loss(logits, labels, items=6, label_smoothing=smoothing)
    theirs = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_sums_of_rows_add_up_to_the_loss_also_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = some_logits()
    whole = label_sums(logits, labels)
    monkeypatch.setattr(language, "CHUNK_POSITIONS", 2)
    chunked = label_sums(logits, labels)
    assert all(torch.allclose(whole[name].float(), chunked[name].float()) for name in whole)
    assert whole["tokens"].tolist() == [1, 5, 0]
    assert whole["loss_sum"].sum().item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item(), abs=1e-5
    )
    right = (logits.argmax(-1) == labels).sum(1)
    assert whole["correct"].tolist() == right.tolist()


def test_rows_without_tokens_count_nothing() -> None:
    assert joined_sums([]) == {"loss_sum": 0, "tokens": 0, "correct": 0}
    scores = sums_scorer([{"loss_sum": 4.0, "tokens": 4, "correct": 1}, joined_sums([])])([0, 1])
    assert scores["loss"] == 1.0
    assert scores["token_accuracy"] == 0.25


@given(length=st.integers(0, 60), size=st.integers(2, 12))
def test_blocks_predict_every_token_but_the_first_exactly_once(length: int, size: int) -> None:
    ids = list(range(100, 100 + length))
    predicted = []
    for start, block in blocks(ids, size):
        assert 2 <= len(block) <= size
        assert block == ids[start : start + size]
        predicted += [label for label in causal_labels(block) if label != IGNORED]
    assert predicted == ids[1:]


@given(data=st.data(), max_length=st.integers(8, 20))
@settings(max_examples=200)
def test_a_cut_keeps_labels_the_start_token_and_the_beginning_of_the_last_answer(
    data: st.DataObject, max_length: int
) -> None:
    prompt, answer = data.draw(st.integers(0, 40)), data.draw(st.integers(2, 40))
    ids = [1, *range(1000, 1000 + prompt), *range(2000, 2000 + answer)]
    supervised = [False] * (1 + prompt) + [True] * answer
    kept, marks, cut = fit(ids, supervised, max_length=max_length, bos=(1,))
    assert len(kept) == len(marks) == min(len(ids), max_length)
    assert cut == (len(ids) > max_length)
    assert kept[0] == 1
    assert 2000 in kept
    assert any(label != IGNORED for label in causal_labels(kept, marks))
    assert [token >= 2000 for token in kept] == marks
    if answer + 1 + max_length // 4 <= max_length:
        assert kept[-1] == 2000 + answer - 1  # the end is learned wherever there is room for it


def test_of_several_answers_the_last_one_stays() -> None:
    ids, marks = list(range(40)), [index in (3, 4, 30, 31) for index in range(40)]
    kept, _, cut = fit(ids, marks, max_length=12, bos=())
    assert cut
    assert {30, 31} <= set(kept)
    assert kept[-1] == 31


def test_the_frame_is_what_the_tokenizer_puts_around_a_text() -> None:
    assert frame_of(tiny_tokenizer()).before == (2,)
    assert frame_of(tiny_tokenizer()).after == (3,)
    assert frame_of(tiny_tokenizer(pad=False)) == frame_of(byte_tokenizer())
    assert frame_of(byte_tokenizer()).before == ()
    assert frame_of(piece_tokenizer()).before == (piece_tokenizer().bos_token_id,)


def test_padding_never_reaches_into_a_row_whose_tokens_are_pad_tokens() -> None:
    rows = [[7, 7], [7, 7, 7, 8]]
    ids = pad_right(rows, 7, settings={"pad_to_multiple_of": 8})
    assert ids.shape == (2, 8)
    assert length_mask(rows, 8).tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert pad_right(rows, 7, settings={"padding": "max_length", "max_length": 6}).shape == (2, 6)


def test_the_probe_is_a_few_columns_of_the_asked_positions() -> None:
    logits = torch.arange(2 * 3 * 500.0).view(2, 3, 500)
    values = probe_logits(logits, torch.tensor([0, 2]))
    assert values.shape == (2, 64)
    assert values[0, 0] == 0.0
    assert values[1, -1] == logits[1, 2, -1]
