"""Error rates are jiwer's on all rows and on any drawn ones, and texts are normalised as is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.metrics.load import load_metric
from lora_ft.metrics.transcripts import normalise, transcript_counts, transcript_scores

jiwer = pytest.importorskip("jiwer", reason="word error rates are of the extra audio")

TEXT = st.lists(st.sampled_from(["a", "cat", "sat", "on", "the", "mat", ""]), max_size=7).map(" ".join)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


@given(ROWS, st.integers(0, 100))
@settings(deadline=None, max_examples=100)
def test_rates_of_all_and_of_drawn_rows_are_jiwers(rows: list[tuple[str, str]], seed: int) -> None:
    predictions, references = [row[0] for row in rows], [row[1] for row in rows]
    counts = transcript_counts(predictions, references)
    for drawn in (np.arange(len(rows)), np.random.default_rng(seed).integers(0, len(rows), size=len(rows))):
        some = [references[i] for i in drawn], [predictions[i] for i in drawn]
        with np.errstate(all="raise"):
            ours = transcript_scores(counts, drawn)
        assert ours == pytest.approx({"wer": jiwer.wer(*some), "cer": jiwer.cer(*some)})


def test_an_empty_reference_adds_its_insertions_and_no_words() -> None:
    assert transcript_scores(transcript_counts(["a b", "x"], ["a b", ""]))["wer"] == 0.5
    assert transcript_scores(transcript_counts(["", ""], ["", ""])) == {"wer": 0.0, "cer": 0.0}
    assert transcript_scores(transcript_counts(["a b"], [""]))["wer"] == 2.0
    assert transcript_scores(transcript_counts([""], ["a b"])) == {"wer": 1.0, "cer": 1.0}


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("It's 5 o'clock -- well-known, 'no'?", "it's 5 o'clock well known no"),
        ("DON\u2019T \u201cstop\u201d\u2026", "don't stop"),
        ("rock 'n' roll's", "rock n roll's"),
        ("dogs' ''x''", "dogs x"),
        ("  Tabs\tand\nlines  ", "tabs and lines"),
        ("¿Qué? 3 + 4 = $7", "qué 3 + 4 = $7"),
        ("Cafe\u0301", "café"),
        ("snake_case", "snake case"),
        ("中文，标点。", "中文 标点"),
        ("", ""),
    ],
)
def test_normalising_lowers_letters_drops_punctuation_and_keeps_inner_apostrophes(text: str, normalised: str) -> None:
    assert normalise(text) == normalised
    assert normalise(normalised) == normalised


def test_each_part_of_normalising_can_be_left_out() -> None:
    assert normalise("Oh, No!", lower=False) == "Oh No"
    assert normalise("Oh,  No!", punctuation=True) == "oh, no!"


def test_the_evaluate_module_gives_the_same_numbers() -> None:
    rows = {"predictions": ["a cat", "", "so so"], "references": ["a cat sat", "no", ""]}
    assert load_metric("transcripts").compute(**rows) == transcript_scores(transcript_counts(**rows))
