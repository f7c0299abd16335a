"""Token classification beyond the contract: tag schemes, spans, windows, sub-words, and what is put together again."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.serve.predict import predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts import tags as bio
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.parts.tokenizer_kinds import KINDS, tokenizer_of
from tests.tasks.test_contract import Built
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

TASK = load_task("token-classification")
LABELS = ("O", "B-person", "I-person", "B-place", "I-place")
TAG = st.sampled_from([*LABELS, "O", "O"])


def problem(kind: str = "wordpiece", *, labels: Sequence[str] = LABELS, spans: bool = False, **given: Any) -> Problem:
    processor = tokenizer_of(kind)
    problem_type = "spans" if spans else "tokens"
    given = {"max_length": 64, **given}
    filled = TASK.settings(given, base_config={}, processor=processor, problem_type=problem_type)
    return Problem(problem_type, tuple(labels), processor, filled)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def features_of(rows: Sequence[Mapping[str, Any]], one: Problem) -> list[dict[str, Any]]:
    encoded = TASK.encode(columns(rows), one)
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def predictions_of(
    rows: Sequence[Mapping[str, Any]], one: Problem, *, logits: Sequence[np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """What is answered if every token is sure of the label that it should have (or says what `logits` say)."""
    features = features_of(rows, one)
    width = max(feature["length"] for feature in features) + 3
    answer = np.zeros((len(features), width, len(one.labels)))
    for number, feature in enumerate(features):
        if logits is not None:
            answer[number, : feature["length"]] = logits[number]
            continue
        for position, label in enumerate(feature["labels"]):
            if label >= 0:
                answer[number, position, label] = 9.0
    parts: list[list[Any]] = [[] for _ in rows]
    for feature, part in zip(features, TASK.decode({"logits": answer}, features, one), strict=True):
        parts[feature["row"]].append(part)
    return [TASK.join(own, row, one) for own, row in zip(parts, rows, strict=True)]


# Words with tags


@pytest.mark.parametrize("kind", KINDS)
@given(
    words=st.lists(
        st.tuples(st.sampled_from(["Zoë", "naïve", "买书", "📦", "ordering", "'s", "A-1", "É"]), TAG), min_size=1
    ),
    max_length=st.integers(8, 40),
)
@settings(max_examples=25, deadline=None)
def test_perfect_answers_give_back_every_tag_in_windows_of_any_length(
    kind: str, words: list[tuple[str, str]], max_length: int
) -> None:
    row = {"tokens": [word for word, _ in words], "tags": bio.to_bio([tag for _, tag in words])}
    (found,) = predictions_of([row], problem(kind, max_length=max_length))
    assert found["tags"] == row["tags"]
    assert [(one["label"], one["token_start"], one["token_end"]) for one in found["entities"]] == bio.entities_of(
        row["tags"]
    )
    joined = " ".join(row["tokens"])
    for entity in found["entities"]:
        assert entity["text"] == joined[entity["start"] : entity["end"]]
        assert entity["text"] == " ".join(row["tokens"][entity["token_start"] : entity["token_end"]])


def test_only_the_first_sub_word_is_labelled_or_all_of_them() -> None:
    rows = [{"tokens": ["Zoë", "ordering", "Zoë"], "tags": ["B-person", "I-person", "O"]}]
    (first,) = features_of(rows, problem())
    assert first["labels"] == [-100, 1, -100, -100, 2, -100, 0, -100, -100, -100]
    (every,) = features_of(rows, problem(label_all_tokens=True))
    assert every["labels"] == [-100, 1, 2, 2, 2, 2, 0, 0, 0, -100]
    assert every["position"] == first["position"] == [1, 4, 6]


def test_a_word_that_makes_no_token_keeps_its_place_and_goes_on_with_the_entity_around_it() -> None:
    tokens = ["Zoë", "\u200b", "order", "", "order"]
    inner = {"tokens": tokens, "tags": ["B-person", "I-person", "I-person", "O", "O"]}
    (feature,) = features_of([inner], problem())
    assert feature["word"] == [0, 2, 4]
    (found,) = predictions_of([inner], problem())
    assert found["tags"] == ["B-person", "I-person", "I-person", "O", "O"]
    assert [(one["token_start"], one["token_end"]) for one in found["entities"]] == [(0, 3)]
    other = {"tokens": tokens, "tags": ["B-person", "O", "B-person", "O", "O"]}
    assert predictions_of([other], problem())[0]["tags"] == ["B-person", "O", "B-person", "O", "O"]


def test_every_word_is_learned_once_however_the_windows_overlap() -> None:
    row = {"tokens": list("abcdefghijklmnopqrstuvwxyz"), "tags": ["O"] * 26}
    features = features_of([row], problem(max_length=10, stride=7))
    assert len(features) > 5
    assert sum(label >= 0 for feature in features for label in feature["labels"]) == 26
    assert sorted(word for feature in features for word in feature["word"]) == list(range(26))
    assert all(feature["row"] == 0 and feature["truncated"] is False for feature in features)


def test_an_inside_tag_without_a_beginning_begins_an_entity_in_the_answer_as_seqeval_reads_it() -> None:
    one = problem()
    row = {"tokens": ["a", "b", "c", "d"]}
    logits = np.zeros((6, 5))
    for position, label in enumerate([2, 2, 4, 0], start=1):
        logits[position, label] = 9.0
    (found,) = predictions_of([row], one, logits=[logits])
    assert found["tags"] == ["B-person", "I-person", "B-place", "O"]
    assert get_entities(["I-person", "I-person", "I-place", "O"]) == [("person", 0, 1), ("place", 2, 2)]
    assert [entity["text"] for entity in found["entities"]] == ["a b", "c"]
    assert found["entities"][0]["score"] == pytest.approx(np.exp(9) / (np.exp(9) + 4))


# Tag schemes


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])))
def test_to_bio_keeps_the_entities_that_seqeval_reads(tags: list[str]) -> None:
    read = [(kind, first, last + 1) for kind, first, last in get_entities(tags)]
    assert bio.entities_of(bio.to_bio(tags)) == read
    assert get_entities(bio.to_bio(tags)) == get_entities(tags)
    assert bio.to_bio(bio.to_bio(tags)) == bio.to_bio(tags)


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "E-x", "S-x", "B-y", "I-y", "E-y", "S-y"])))
def test_to_bio_reads_bioes_as_seqeval_does(tags: list[str]) -> None:
    read = [(kind, first, last + 1) for kind, first, last in get_entities(tags)]
    assert bio.entities_of(bio.to_bio(tags)) == read


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["I-x", "I-x", "B-x", "O"], ["B-x", "I-x", "B-x", "O"]),  # IOB1
        (["B-x", "I-x", "E-x", "S-y", "O"], ["B-x", "I-x", "I-x", "B-y", "O"]),  # BIOES
        (["B-x", "L-x", "U-x", "U-x"], ["B-x", "I-x", "B-x", "B-x"]),  # BILOU
        (["B", "I", "O"], ["B-entity", "I-entity", "O"]),  # no type
        (["B-a-b", "I-a-b"], ["B-a-b", "I-a-b"]),
    ],
)
def test_iob1_bioes_and_bilou_become_bio(given: list[str], expected: list[str]) -> None:
    assert bio.to_bio(given) == expected


def test_labels_are_o_and_both_tags_of_each_type_by_name(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"tags": ["O", "I-place"]}, {"tags": ["S-person"]}, {"tags": ["B-place", "O"]}]
    with caplog.at_level(logging.INFO):
        assert TASK.vocabulary(rows, given=None) == LABELS
    assert "2 of 3 training rows are IOB1, BIOES or broken BIO" in caplog.text
    assert TASK.vocabulary([{"spans": [{"start": 0, "end": 1, "label": "x"}]}], given=None) == ("O", "B-x", "I-x")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["place", "person"], ("O", "B-place", "I-place", "B-person", "I-person")),
        (["B-place", "I-place", "B-person", "I-person", "O"], ("B-place", "I-place", "B-person", "I-person", "O")),
        (["O", "B-place", "S-person"], ("O", "B-place", "I-place", "B-person", "I-person")),
    ],
)
def test_given_label_names_are_types_or_tags_and_keep_their_order(given: list[str], labels: tuple[str, ...]) -> None:
    rows = [{"tags": ["B-person", "O", "B-place"]}]
    assert TASK.vocabulary(rows, given=given) == labels


def test_a_misspelt_tag_among_bio_tags_is_a_fault_and_not_a_label() -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["B-person", "person"]}]
    labels = TASK.vocabulary(rows, given=None)
    assert labels == ("O", "B-person", "I-person")
    assert TASK.fault(rows[0], labels=labels) == "tags: 'person' of token 1 ('b') is none of O, B-person, I-person"


# Parts of speech


POS = ({"tokens": ["we", "pay"], "tags": ["PRON", "VERB"]}, {"tokens": ["order", "it"], "tags": ["VERB", "PRON"]})


def test_tags_that_mark_no_entities_are_labels_of_their_own() -> None:
    labels = TASK.vocabulary(POS, given=None)
    assert labels == ("PRON", "VERB")
    assert TASK.vocabulary(POS, given=["VERB", "PRON"]) == ("VERB", "PRON")
    assert TASK.vocabulary([{"tags": ["N", "O", "V", "S"]}], given=None) == ("N", "O", "S", "V")
    one = problem(labels=labels)
    found = predictions_of(POS, one)
    assert [prediction["tags"] for prediction in found] == [["PRON", "VERB"], ["VERB", "PRON"]]
    assert all(len(prediction["scores"]) == 2 and "entities" not in prediction for prediction in found)
    scores = TASK.score(found, TASK.references(columns(POS), one), one)
    assert scores == {"f1": 1.0, "f1_macro": 1.0, "accuracy": 1.0, "f1/PRON": 1.0, "f1/VERB": 1.0}


def test_of_parts_of_speech_the_constant_answer_is_the_most_frequent_tag() -> None:
    one = problem(labels=("PRON", "VERB"))
    references = [["VERB", "VERB", "PRON"]]
    answer = TASK.constant_answer(references, one)
    assert answer == {"tag": "VERB"}
    scores = TASK.score([answer], references, one)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1"] == scores["f1_macro"] == pytest.approx((0.8 + 0) / 2)


def test_parts_of_speech_of_a_plain_text_come_with_its_words() -> None:
    one = problem(labels=("PRON", "VERB"))
    logits = np.zeros((20, 2))
    logits[:, 1] = 3.0
    width = features_of([{"text": "we pay!"}], one)[0]["length"]
    (found,) = predictions_of([{"text": "we pay!"}], one, logits=[logits[:width]])
    assert found["tokens"] == ["we", "pay", "!"]
    assert found["tags"] == ["VERB"] * 3


# Texts with spans


def span(start: int, end: int, label: str = "person") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


@pytest.mark.parametrize("kind", KINDS)
def test_spans_come_back_at_their_places_in_the_text(kind: str) -> None:
    text = "  Zoë Müller,\tZürich 8005: 买了3本 for 50 €.\n"
    marked = [span(2, 12), span(14, 20, "place"), span(29, 30), span(30, 31), span(36, 38, "place")]
    row = {"text": text, "spans": [*marked[1:], marked[0]]}
    one = problem(kind, spans=True, max_length=20)
    assert TASK.fault(row, labels=LABELS) is None
    (found,) = predictions_of([row], one)
    assert [{name: entity[name] for name in ("start", "end", "label")} for entity in found["entities"]] == marked
    assert [entity["text"] for entity in found["entities"]] == ["Zoë Müller", "Zürich", "3", "本", "50"]
    assert all("token_start" not in entity for entity in found["entities"])
    scores = TASK.score([found], TASK.references(columns([row]), one), one)
    assert scores["f1"] == scores["accuracy"] == 1.0


def test_blanks_around_a_span_are_no_part_of_it() -> None:
    row = {"text": "Ask Zoë now", "spans": [span(3, 8)]}
    one = problem(spans=True)
    assert TASK.references(columns([row]), one)[0]["spans"] == [[4, 7, "person"]]
    assert predictions_of([row], one)[0]["entities"][0]["text"] == "Zoë"


def test_words_that_share_a_token_are_one_entity() -> None:
    row = {"text": "pay 50€", "spans": [span(4, 7, "place")]}
    (feature,) = features_of([row], problem(spans=True))
    assert feature["position"] == [1, 2, 2]  # the tokenizer knows no €, so 50€ is one unknown token
    (found,) = predictions_of([row], problem(spans=True))
    assert [entity["text"] for entity in found["entities"]] == ["50€"]
    (half,) = features_of([{"text": "pay 50€", "spans": [span(4, 6, "place")]}], problem(spans=True))
    assert half["labels"] == feature["labels"] == [-100, 0, 3, -100]  # the first of them says what is learned


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"tokens": [], "tags": []}, "tokens: there are none"),
        ({"tokens": [" ", ""], "tags": ["O", "O"]}, "tokens: there are none"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tags: there are 1 for 2 tokens; expected one for each"),
        (
            {"tokens": ["a"], "tags": ["B-thing"]},
            "tags: 'B-thing' of token 0 ('a') is none of O, B-person, I-person, B-place, I-place",
        ),
        ({"text": " \n", "spans": []}, "text: it is empty"),
        ({"text": None}, "text: there is none, and no tokens either"),
        (
            {"text": "Ask Zoë", "spans": [span(4, 9)]},
            "spans: 4-9 person is not in the text, which has 7 characters",
        ),
        ({"text": "Ask Zoë", "spans": [span(4, 4)]}, "spans: 4-4 person is not in the text, which has 7 characters"),
        ({"text": "Ask   Zoë", "spans": [span(3, 5)]}, "spans: 3-5 person holds nothing but blanks"),
        (
            {"text": "Ask Zoë now", "spans": [span(5, 7)]},
            "spans: 5-7 person ('oë') begins or ends inside a word. Whole words are 4-7 ('Zoë')",
        ),
        (
            {"text": "Ask Zoë now", "spans": [span(4, 7, "thing")]},
            "spans: 4-7 thing: the label is none of person, place",
        ),
        (
            {"text": "Ask Zoë now", "spans": [span(4, 11), span(0, 7, "place")]},
            "spans: place and person overlap at 4-7 ('Zoë'); a word has one tag",
        ),
    ],
)
def test_a_bad_row_says_which_column_and_why(row: dict[str, Any], fault: str) -> None:
    assert TASK.fault(row, labels=LABELS) == fault


def test_an_empty_line_to_predict_is_no_fault_and_has_no_entities() -> None:
    for one, row in ((problem(spans=True), {"text": ""}), (problem("gpt2"), {"tokens": []})):
        assert TASK.fault(row, labels=LABELS) is None
        (feature,) = features_of([row], one)
        (found,) = predictions_of([row], one, logits=[np.zeros((feature["length"], 5))])
        assert found["entities"] == []


def test_tags_of_other_schemes_are_no_fault() -> None:
    row = {"tokens": ["a", "b", "c"], "tags": ["S-place", "I-person", "U-person"]}
    assert TASK.fault(row, labels=LABELS) is None


def test_an_adapter_that_learned_tokens_reads_plain_texts_and_the_other_way_round() -> None:
    width = 12
    logits = np.zeros((width, 5))
    logits[:, 1] = 9.0
    tokens, spans = problem(), problem(spans=True)
    for one, row in ((tokens, {"text": "Zoë 2n"}), (spans, {"tokens": ["Zoë", "2n"]})):
        length = features_of([row], one)[0]["length"]
        (found,) = predictions_of([row], one, logits=[logits[:length]])
        assert [(entity["text"], entity["start"], entity["end"]) for entity in found["entities"]] == [
            ("Zoë", 0, 3),
            ("2n", 4, 6),
        ]
        assert ("tags" in found) == ("tokens" in row)
    length = features_of([{"text": "Zoë 2n"}], spans)[0]["length"]
    (apart,) = predictions_of([{"text": "Zoë 2n"}], spans, logits=[logits[:length]])
    assert [entity["text"] for entity in apart["entities"]] == ["Zoë", "2", "n"]


# Metrics, loss


def test_entities_count_only_where_place_and_type_are_exact() -> None:
    one = problem()
    references = [["B-person", "I-person", "O", "B-place"], ["O", "O"]]
    row = {"tokens": list("abcd"), "tags": ["B-person", "O", "O", "B-place"]}
    predictions = predictions_of([row, {"tokens": list("ab"), "tags": ["B-place", "O"]}], one)
    scores = TASK.score(predictions, references, one)
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == scores["f1/place"] / (2 / 3) * 0.5 == pytest.approx(0.5)
    assert scores["f1/person"] == 0.0
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert TASK.scorer(predictions, references, one)(np.array([1, 1]))["precision"] == 0.0


def test_no_entity_at_all_is_the_constant_answer() -> None:
    one = problem()
    answer = TASK.constant_answer([["O", "B-person"]], one)
    assert answer == {"entities": []}
    scores = TASK.score([answer], [["O", "B-person"]], one)
    assert (scores["f1"], scores["accuracy"]) == (0.0, 0.5)
    text = problem(spans=True)
    reference = TASK.references({"text": ["Ask Zoë"], "spans": [[span(4, 7)]]}, text)
    assert TASK.score([answer], reference, text)["accuracy"] == 0.5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_a_sum_over_labelled_tokens_divided_by_items(smoothing: float) -> None:
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[-100, 1, 2, -100], [-100, 0, -100, -100]])
    batch = {"labels": labels}
    one = problem()
    found = TASK.loss({"logits": logits}, batch, one, items=TASK.items(batch), label_smoothing=smoothing)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    assert TASK.items(batch) == 3
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    half = TASK.loss({"logits": logits}, batch, one, items=6, label_smoothing=smoothing)
    assert float(half) == pytest.approx(float(expected) / 2, rel=1e-5)


def test_labels_are_padded_with_the_tokens() -> None:
    one = problem(pad_to_multiple_of=8)
    rows = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b", "c"], "tags": ["O", "B-place", "I-place"]}]
    batch = TASK.collator(one)(features_of(rows, one))
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 8)
    assert batch["labels"].tolist()[0] == [-100, 0, -100, -100, -100, -100, -100, -100]


# Other families


def test_a_causal_base_learns_the_example_rows_too(tmp_path: Path) -> None:
    built = Built(TASK, next(iter(TASK.metrics)), make_base(tmp_path, "gpt2"))
    first = float(built.loss(built.batch()).detach())
    built.fit(80)
    assert float(built.loss(built.batch()).detach()) < 0.2 * first
    assert built.scores()["f1"] > 0.8


# The whole way


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> SavedAdapter:
    """An adapter for products and times, from a file of words and BIOES tags, in windows of eight tokens."""
    folder = tmp_path_factory.mktemp("entities")
    rng = random.Random(0)
    for name, count in (("train", 96), ("dev", 24)):
        (folder / f"{name}.conll").write_text("\n".join(_sentence(rng) for _ in range(count)), encoding="utf-8")
    recipe = write_recipe(
        folder, make_base(folder / "base"), task="token-classification",
        peft_config={"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        dataset={"data_files": {"train": "train.conll", "validation": "dev.conll"}},
        processor={"max_length": 8, "stride": 2},
        arguments={"learning_rate": 2e-2, "num_train_epochs": 3, "per_device_train_batch_size": 8},
    )  # fmt: skip
    result = train(read(recipe), RunOptions())
    assert result.learned
    assert result.main_metric == "f1"
    return open_adapter(result.folder, OpenOptions(device="cpu", offline=True))


def _sentence(rng: random.Random) -> str:
    words = [("my", "O"), (rng.choice(["phone", "book", "pan", "shirt"]), "S-product"), ("broke", "O")]
    words = [*[("the", "O"), ("story", "O"), ("is", "O")] * rng.randint(0, 2), *words]
    if rng.random() < 0.5:
        words += [("after", "O"), ("one", "B-time"), (rng.choice(["week", "day"]), "E-time"), (".", "O")]
    return "".join(f"{word} {tag}\n" for word, tag in words)


def test_an_adapter_learns_entities_and_evaluation_says_what_training_said(adapter: SavedAdapter) -> None:
    assert adapter.manifest.labels == ("O", "B-product", "I-product", "B-time", "I-time")
    assert adapter.problem.settings == {"max_length": 8, "stride": 2}
    recipe = read(adapter.folder.parents[1] / "recipe.yaml")
    split, rows = rows_of_recipe(adapter, recipe, None)
    found = compare(adapter, rows, split=split, resamples=20)
    recorded = adapter.manifest.metrics["validation"]
    assert found.adapter["f1"] == recorded["f1"] > 0.95
    assert found.adapter["f1/time"] == recorded["f1/time"]
    assert found.base["f1"] == 0.0
    assert found.differences["f1"].low > 0


def test_an_adapter_answers_words_and_texts_in_the_order_of_the_input(adapter: SavedAdapter) -> None:
    texts = ["My book broke after one day.", "", "the story is the story is my pan broke after one week."]
    found = list(predict(adapter, [{"text": text} for text in texts], batch_size=2))
    assert [[entity["text"] for entity in row["entities"]] for row in found] == [
        ["book", "one day"],
        [],
        ["pan", "one week"],
    ]
    for row in found:
        for entity in row["entities"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]
    (row,) = predict(adapter, [{"tokens": ["my", "shirt", "broke"], "id": "7"}])
    assert row["tags"] == ["O", "B-product", "O"]
    assert row["id"] == "7"
    assert row["entities"][0]["label"] == "product"
    assert 0.5 < row["entities"][0]["score"] <= 1
    json.dumps(found, allow_nan=False)
