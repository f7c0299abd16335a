"""Transcripts: how they are written and how they are compared."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.tasks.parts.audio_transcripts import transcript_fault, transcript_scorer, written

TEXT = "It\N{RIGHT SINGLE QUOTATION MARK}s  Five o'clock -- well-known,\nno?"


@pytest.mark.parametrize(
    ("case", "punctuation", "expected"),
    [
        ("lower", "remove", "it's five o'clock well known no"),
        ("upper", "remove", "IT'S FIVE O'CLOCK WELL KNOWN NO"),
        ("keep", "remove", "It's Five o'clock well known no"),
        ("keep", "keep", "It\N{RIGHT SINGLE QUOTATION MARK}s Five o'clock -- well-known, no?"),
    ],
)
def test_transcripts_are_written_as_the_settings_say(case: str, punctuation: str, expected: str) -> None:
    assert written(TEXT, {"text_case": case, "text_punctuation": punctuation}) == expected


def test_two_spellings_of_one_character_are_one() -> None:
    settings = {"text_case": "lower", "text_punctuation": "remove"}
    assert written("Cafe\N{COMBINING ACUTE ACCENT}", settings) == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"


def test_marks_of_other_scripts_are_no_punctuation() -> None:
    settings = {"text_case": "lower", "text_punctuation": "remove"}
    assert written("हिन्दी।", settings) == "हिन्दी"


def test_a_transcript_that_teaches_nothing_is_a_fault() -> None:
    assert transcript_fault({"text": "  "}) == "text: it is empty"
    assert "has no letter, digit or symbol" in str(transcript_fault({"text": "..."}))
    assert transcript_fault({"text": "5 €"}) is None
    assert transcript_fault({"audio": {}}) is None


def test_scores_compare_words_unless_case_and_punctuation_are_asked_for() -> None:
    predictions, references = [{"text": "hello world"}, {"text": "no"}], ["Hello, world!", "Yes"]
    words = transcript_scorer(predictions, references, {"scored_text": "words"})
    as_written = transcript_scorer(predictions, references, {"scored_text": "as_written"})
    assert words(np.arange(2))["wer"] == pytest.approx(1 / 3)
    assert as_written(np.arange(2))["wer"] == 1.0
    assert words(np.array([0, 0]))["wer"] == 0.0
