"""Generated texts score as rouge-score and sacrebleu score them, on all rows and on any drawn ones."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from lora_ft.metrics.generated_text import ROUGE, generated_text_counts, generated_text_scores
from lora_ft.metrics.load import load_metric

WORDS = st.sampled_from(["the", "cat", "cats", "sat", "on", "a", "mat.", "Über", "猫が好き", "3.5", "\n", "!"])
TEXT = st.lists(WORDS, max_size=10).map(" ".join)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


def kept_libraries(predictions: list[str], references: list[str], stem: bool, tokenize: str) -> dict[str, float]:
    scorer = RougeScorer(list(ROUGE.values()), tokenizer=DefaultTokenizer(stem))
    rows = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
    scores = {name: float(np.mean([row[theirs].fmeasure for row in rows])) for name, theirs in ROUGE.items()}
    scores["exact_match"] = float(
        np.mean([a.strip() == b.strip() for a, b in zip(predictions, references, strict=True)])
    )
    scores["bleu"] = sacrebleu.BLEU(tokenize=tokenize).corpus_score(predictions, [references]).score
    scores["chrf"] = sacrebleu.CHRF().corpus_score(predictions, [references]).score
    return scores


@given(ROWS, st.integers(0, 100), st.sampled_from([(False, "13a"), (True, "char")]))
@settings(deadline=None, max_examples=60)
def test_scores_of_all_and_of_drawn_rows_are_the_kept_libraries(
    rows: list[tuple[str, str]], seed: int, how: tuple[bool, str]
) -> None:
    predictions, references = [row[0] for row in rows], [row[1] for row in rows]
    counts = generated_text_counts(predictions, references, use_stemmer=how[0], tokenize=how[1])
    for drawn in (np.arange(len(rows)), np.random.default_rng(seed).integers(0, len(rows), size=len(rows))):
        expected = kept_libraries([predictions[i] for i in drawn], [references[i] for i in drawn], *how)
        with np.errstate(all="raise"):
            assert generated_text_scores(counts, drawn) == pytest.approx(expected)


def test_a_perfect_output_has_the_best_of_each_score_and_an_empty_one_the_worst() -> None:
    text = ["the cat sat on the mat today"]
    perfect = generated_text_scores(generated_text_counts([" the cat sat on the mat today\n"], text))
    assert perfect == pytest.approx(dict.fromkeys((*ROUGE, "exact_match"), 1.0) | {"bleu": 100.0, "chrf": 100.0})
    assert set(generated_text_scores(generated_text_counts([""], text)).values()) == {0.0}


def test_stemming_is_off_unless_asked_for() -> None:
    assert generated_text_scores(generated_text_counts(["running"], ["runs"]))["rouge1"] == 0.0
    assert generated_text_scores(generated_text_counts(["running"], ["runs"], use_stemmer=True))["rouge1"] == 1.0


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    generated_text_scores(generated_text_counts(["a cat ."] * 120, ["a dog ."] * 120))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_the_evaluate_module_gives_the_same_numbers() -> None:
    rows = {"predictions": ["cats sat on a mat", "x y"], "references": ["a cat sat on the mat", "x z"]}
    scores = load_metric("generated_text").compute(**rows, use_stemmer=True)
    assert scores == generated_text_scores(generated_text_counts(**rows, use_stemmer=True))
