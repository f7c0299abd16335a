"""Question answering beyond the contract: offsets, windows, no answer and its threshold, faults."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import DataError, InputError
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.serve.predict import predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.answers import best_spans, merged
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.parts.tokenizer_kinds import KINDS, tokenizer_of
from tests.tasks.test_contract import Built
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

TASK = load_task("question-answering")
CONTEXT = "  Zoë's café in Zürich opens\u00a0at 9, and 买书 costs 3 ½ €; ﬁne 📦 arrive\u0301 daily.\n"


def problem(kind: str = "wordpiece", *, labels: Sequence[str] = (), **given: Any) -> Problem:
    processor = tokenizer_of(kind)
    given = {"max_length": 64, **given}
    filled = TASK.settings(given, base_config={}, processor=processor, problem_type="extractive")
    return Problem("extractive", tuple(labels), processor, filled)


def row(context: str, *answers: tuple[str, int], question: str = "pay?") -> dict[str, Any]:
    texts, starts = [text for text, _ in answers], [start for _, start in answers]
    return {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}


def features_of(rows: Sequence[Mapping[str, Any]], one: Problem) -> list[dict[str, Any]]:
    encoded = TASK.encode({name: [own[name] for own in rows] for name in rows[0]}, one)
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def predictions_of(rows: Sequence[Mapping[str, Any]], one: Problem) -> list[dict[str, Any]]:
    """What is answered if both logits are sure of the tokens that they should choose."""
    features = features_of(rows, one)
    width = max(feature["length"] for feature in features) + 3
    answer = {name: np.zeros((len(features), width)) for name in ("start_logits", "end_logits")}
    for number, feature in enumerate(features):
        for name, position in zip(answer, feature["labels"], strict=True):
            answer[name][number, position] = 9.0
    return joined(rows, features, TASK.decode(answer, features, one), one)


def joined(rows: Sequence[Any], features: Sequence[Any], parts: Sequence[Any], one: Problem) -> list[dict[str, Any]]:
    groups: list[list[Any]] = [[] for _ in rows]
    for feature, part in zip(features, parts, strict=True):
        groups[feature["row"]].append(part)
    return [TASK.join(own, each, one) for own, each in zip(groups, rows, strict=True)]


# Offsets and windows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["Zoë", "café", "Zürich", "9", "买书", "costs 3", "ﬁne", "daily", "café in Zürich opens"]
)
def test_perfect_answers_give_back_the_very_characters_of_the_context(kind: str, text: str) -> None:
    own = row(CONTEXT, (text, CONTEXT.index(text)))
    (found,) = predictions_of([own], problem(kind, max_length=128))
    assert (found["answer"], found["start"]) == (text, CONTEXT.index(text))
    assert found["end"] == found["start"] + len(text)
    assert found["score"] > 0.99


@pytest.mark.parametrize("kind", KINDS)
@given(
    words=st.lists(st.sampled_from(["Zoë", "naïve", "书", "ordering", "pay", "9"]), min_size=1, max_size=30),
    at=st.integers(0, 29),
    max_length=st.integers(24, 60),
)
@settings(max_examples=25, deadline=None)
def test_an_answer_is_found_in_some_window_of_a_context_of_any_length(
    kind: str, words: list[str], at: int, max_length: int
) -> None:
    at %= len(words)
    start = len(" ".join([*words[:at], ""]))
    own = row(" ".join(words), (words[at], start))
    one = problem(kind, max_length=max_length, stride=8)
    assert all(feature["length"] <= max_length for feature in features_of([own], one))
    (found,) = predictions_of([own], one)
    assert (found["answer"], found["start"]) == (words[at], start)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_without_the_whole_answer_learns_the_token_that_stands_for_none(kind: str) -> None:
    words = " ".join(["order"] * 60) + " Zoë pays"
    one = problem(kind, max_length=24, stride=4)
    features = features_of([row(words, ("order Zoë pays", words.index("order Zoë")))], one)
    assert len(features) > 2
    null = [feature["labels"] == [feature["null"]] * 2 for feature in features]
    assert null.count(False) <= 1
    assert null[0]
    for feature, none in zip(features, null, strict=True):
        if not none:
            first, last = feature["labels"]
            assert words[feature["start"][first] : feature["end"][last]] == "order Zoë pays"


@pytest.mark.parametrize(
    ("kind", "token", "at_end"),
    [
        ("wordpiece", "[CLS]", False),
        ("roberta", "<s>", False),
        ("xlm-roberta", "<s>", False),
        ("t5", "</s>", True),
        ("gpt2", "<|endoftext|>", True),
        ("llama", "</s>", True),
    ],
)
def test_no_answer_is_the_cls_token_or_a_special_token_at_the_end(kind: str, token: str, at_end: bool) -> None:
    one = problem(kind, max_length=24)
    for feature in features_of([row("order " * 40)], one):
        assert feature["null"] == (feature["length"] - 1 if at_end else 0)
        assert one.processor.convert_ids_to_tokens(feature["input_ids"][feature["null"]]) == token
        assert feature["start"][feature["null"]] == -1
        assert feature["length"] <= 24


def test_a_tokenizer_that_writes_nothing_between_two_texts_gets_a_line_end_there() -> None:
    one = problem("gpt2")
    (feature,) = features_of([row("order", question="paid? ")], one)
    assert one.processor.decode(feature["input_ids"]) == "paid?\norder<|endoftext|>"
    assert [at for at in feature["start"] if at >= 0] == [0]


def test_only_a_question_that_takes_more_than_half_of_the_room_is_cut() -> None:
    one = problem(max_length=24, stride=4)
    rows = [row("order " * 20, question="a " * 40), row("order " * 20, question="a " * 5)]
    features = features_of(rows, one)
    assert {feature["row"]: feature["truncated"] for feature in features} == {0: True, 1: False}
    assert all(feature["length"] <= 24 for feature in features)
    assert [sum(start >= 0 for start in feature["start"]) > 8 for feature in features[:3]] == [True] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_windows_hold_every_question_and_still_move_on(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for max_length in range(4, 22, 2):
        for stride in range(max_length):
            try:
                one = problem(kind, max_length=max_length, stride=stride)
            except InputError:
                continue
            for length in range(0, 12, 3):
                question = " ".join(["pay"] * length) + "?"
                features = features_of([row("order " * 12, question=question)], one)
                assert all(len(feature["input_ids"]) <= max_length for feature in features)
                assert features[-1]["end"][-2 if features[-1]["end"][-1] < 0 else -1] in (71, 72)
    assert tokenizer is tokenizer_of(kind)


def test_a_tokenizer_without_cls_and_eos_is_refused() -> None:
    tokenizer = copy.deepcopy(tokenizer_of("gpt2"))
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a CLS nor an EOS token"):
        TASK.settings({}, base_config={}, processor=tokenizer, problem_type="extractive")


@pytest.mark.parametrize("name", ["n_best", "max_answer_length"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"processor\.{name} = 0: expected 1 or more"):
        problem(**{name: 0})


# Decoding


def slow_best_spans(
    start: Sequence[float], end: Sequence[float], starts: Sequence[int], ends: Sequence[int], max_tokens: int
) -> list[tuple[float, int, int]]:
    """The twin: every pair of tokens, one by one."""
    found = []
    for first, last in itertools.product(range(len(starts)), repeat=2):
        real = ends[first] > starts[first] and ends[last] > starts[last]
        if real and first <= last < first + max_tokens:
            found.append((start[first] + end[last], starts[first], ends[last]))
    return sorted(found, key=lambda one: -one[0])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_best_spans_are_those_of_the_slow_twin(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    kinds = data.draw(st.lists(st.sampled_from("xx.-"), min_size=size, max_size=size))
    starts = [-1 if kind == "-" else 3 * at for at, kind in enumerate(kinds)]
    ends = [-1 if kind == "-" else 3 * at + 2 * (kind == "x") for at, kind in enumerate(kinds)]
    logits = rng.normal(size=(2, size + 4))  # four tokens of padding
    logits[:, size:] = 100.0
    max_tokens, count = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 9))
    found = best_spans(*logits, starts=starts, ends=ends, max_tokens=max_tokens, count=count)
    expected = slow_best_spans(logits[0], logits[1], starts, ends, max_tokens)[:count]
    assert [(left, right) for _, left, right in found] == [(left, right) for _, left, right in expected]
    assert np.allclose([score for score, _, _ in found], [score for score, _, _ in expected])


def test_a_span_that_two_windows_see_counts_once_with_its_best_score() -> None:
    assert merged([[(1.0, 0, 3), (0.5, 4, 6)], [(2.0, 4, 6)]], count=5) == [(2.0, 4, 6), (1.0, 0, 3)]
    assert merged([[(1.0, 0, 3), (0.5, 4, 6)], [(2.0, 4, 6)]], count=1) == [(2.0, 4, 6)]


def test_answers_are_never_longer_than_max_answer_length_and_as_many_as_n_best() -> None:
    own = row("a b c d e f")
    one = problem(n_best=4, max_answer_length=2)
    (found,) = predictions_of([own], one)
    assert len(found["candidates"]) == 4
    assert found["candidates"][0] == {name: found[name] for name in ("answer", "score", "start", "end")}
    assert all(len(candidate["answer"].split()) <= 2 for candidate in found["candidates"])
    scores = [candidate["score"] for candidate in found["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1


def test_a_context_without_a_readable_token_has_no_answer_and_does_not_break() -> None:
    own = row("\u200b")
    assert predictions_of([own], problem()) == [{"answer": "", "score": 0.0, "start": None, "end": None}]
    (found,) = predictions_of([own], problem(labels=["answer", "no answer"]))
    assert (found["answer"], found["no_answer_score"]) == ("", 1.0)


# No answer


def parts(null: float, best: float) -> tuple[float, list[tuple[float, int, int]]]:
    return null, [(best, 0, 5), (best - 9, 0, 1)]


def test_an_adapter_that_saw_only_answerable_questions_always_answers() -> None:
    assert TASK.vocabulary([row("order it", ("order", 0))], given=None) == ()
    found = TASK.join([parts(50.0, 1.0)], row("order it"), problem())
    assert found["answer"] == "order"
    assert "no_answer_score" not in found


def test_one_that_saw_unanswerable_ones_says_so_where_no_answer_wins_in_every_window() -> None:
    labels = TASK.vocabulary([row("order it", ("order", 0)), row("order it")], given=None)
    assert labels == ("answer", "no answer")
    one = problem(labels=labels)
    found = TASK.join([parts(5.0, 1.0), parts(3.0, 1.5)], row("order it"), one)
    assert (found["answer"], found["start"], found["end"]) == ("", None, None)
    assert found["rejected"]["answer"] == "order"
    assert found["score"] == found["no_answer_score"] > 0.5
    found = TASK.join([parts(5.0, 1.0), parts(1.0, 1.5)], row("order it"), one)
    assert found["answer"] == "order"
    assert "rejected" not in found
    assert found["no_answer_score"] + found["score"] == pytest.approx(1, abs=1e-3)


def test_the_threshold_is_the_advantage_that_no_answer_needs() -> None:
    one = problem(labels=["answer", "no answer"], null_threshold=2.5)
    assert TASK.join([parts(3.4, 1.0)], row("order it"), one)["answer"] == "order"
    assert TASK.join([parts(3.6, 1.0)], row("order it"), one)["answer"] == ""
    assert TASK.join([parts(3.6, 1.0)], row("order it"), problem(null_threshold=2.5))["answer"] == ""


def test_tuning_finds_the_threshold_with_the_best_f1_and_applying_it_gives_that() -> None:
    one = problem(labels=["answer", "no answer"])
    own = row("order it")
    margins = [-3.0, -1.0, 0.5, 1.5, 2.0, 4.0]
    references = [["order"], ["order"], ["order"], [], ["order it"], []]
    raw = [parts(margin, 0.0) for margin in margins]
    predictions = [TASK.join([part], own, one) for part in raw]
    assert [prediction["answer"] for prediction in predictions] == ["order", "order", "", "", "", ""]
    tuned = TASK.tune(predictions, references, one)
    assert tuned == {"null_threshold": pytest.approx(1.0)}
    after = Problem("extractive", one.labels, one.processor, {**one.settings, **tuned})
    again = [TASK.join([part], own, after) for part in raw]
    assert TASK.score(again, references, one)["f1"] == pytest.approx(5 / 6)


def test_nothing_is_tuned_where_all_can_be_answered_or_the_recipe_says_how() -> None:
    own, references = row("order it"), [["order"], []]
    labelled = problem(labels=["answer", "no answer"])
    predictions = [TASK.join([parts(0.0, 0.0)], own, labelled)] * 2
    assert TASK.tune(predictions, references, labelled)
    assert TASK.tune(predictions, [["order"], ["it"]], labelled) == {}
    assert TASK.tune(predictions, references, problem(labels=["answer", "no answer"], null_threshold=0.0)) == {}
    plain = problem()
    assert TASK.tune([TASK.join([parts(0.0, 0.0)], own, plain)] * 2, references, plain) == {}


def test_saying_none_to_everything_is_the_constant_answer_where_some_have_none() -> None:
    one = problem(labels=["answer", "no answer"])
    assert TASK.constant_answer([["pan"], ["pot"]], one) is None
    answer = TASK.constant_answer([["pan"], []], one)
    assert answer is not None
    scores = TASK.score([answer, answer], [["pan"], []], one)
    assert (scores["f1"], scores["no_answer_f1"], scores["has_answer_f1"]) == (0.5, 1.0, 0.0)


# Faults


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        (row("order", question=" "), "question: there is none"),
        (row("\n"), "context: there is none"),
        ({"question": "a"}, "context: there is none"),
        (row("order it", ("it", 6)), None),
        (row("order it"), None),
        (row("order it", ("it", -1)), None),
        (row("order it", ("that", -1)), "answers: 'that' is not in the context"),
        (row("order it", (" ", 5)), "answers: an answer is empty. A question without an answer has none at all, "
         "not an empty one"),
        (row("order it", ("it", 5)), "answers: 'it' is not at character 5 of the context, ' i' is; it is at 6; "
         "answer_start -1 has it searched"),
        (row("order it", ("that", 5)), "answers: 'that' is not at character 5 of the context, ' it' is; it is nowhere "
         "in the context"),
        (row("order it", ("it", 600)), "answers: 'it' is not at character 600 of the context, '' is; it is at 6; "
         "answer_start -1 has it searched"),
        (row("order it", ("er", -7)), "answers: 'er' is not at character -7 of the context, 'or' is; it is at 3; "
         "answer_start -1 has it searched"),
        ({"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": []}},
         "answers: 1 texts and 0 starts; expected one start for each text"),
        ({"question": "a", "context": "b"}, None),
    ],
)  # fmt: skip
def test_a_bad_row_says_which_column_and_why(own: dict[str, Any], fault: str | None) -> None:
    assert TASK.fault(own, labels=()) == fault


def test_an_answer_without_a_start_is_searched() -> None:
    text = "order it, then pay it"
    (found,) = predictions_of([row(text, ("it", -1))], problem())
    assert (found["answer"], found["start"]) == ("it", 6)


# Loss


def test_the_loss_is_the_mean_over_starts_and_ends_and_padding_has_no_part_in_it() -> None:
    one = problem()
    rows = [row("order it", ("it", 6)), row("order it and pay it by card", ("card", 23))]
    batch = TASK.collator(one)(features_of(rows, one))
    size = batch["input_ids"].shape
    outputs = {name: torch.randn(size) for name in ("start_logits", "end_logits")}
    assert TASK.items(batch) == 4
    whole = TASK.loss(outputs, batch, one, items=4)
    expected = []
    for number, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for side, name in enumerate(outputs):
            logits = outputs[name][number, :length].log_softmax(-1)
            expected.append(-float(logits[batch["labels"][number, side]]))
    assert float(whole) == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_both_logits_are_the_answer_and_the_probe() -> None:
    outputs = {"start_logits": torch.zeros(2, 5), "end_logits": torch.ones(2, 5), "loss": None}
    found = TASK.answer(None, {}, problem(), outputs=outputs)
    assert sorted(found) == ["end_logits", "start_logits"]
    assert TASK.probe_values(outputs, {}).shape == (2, 10)


# Other families


def test_a_causal_base_learns_the_example_rows_too(tmp_path: Path) -> None:
    built = Built(TASK, next(iter(TASK.metrics)), make_base(tmp_path, "gpt2"))
    first = float(built.loss(built.batch()).detach())
    built.fit(80)
    assert float(built.loss(built.batch()).detach()) < 0.2 * first
    assert built.scores()["f1"] > 0.8


# The whole way

PLACES = ("book", "pan", "shirt", "cable", "phone")
TIMES = ("one week", "two week", "three day", "one day")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> SavedAdapter:
    """An adapter for what broke and after what time, a third of the questions without an answer."""
    folder = tmp_path_factory.mktemp("answers")
    rng = random.Random(0)
    for name, count in (("train", 120), ("dev", 40)):
        entries = [{"paragraphs": [_paragraph(rng, number) for number in range(count)]}]
        (folder / f"{name}.json").write_text(json.dumps({"version": "v2.0", "data": entries}), encoding="utf-8")
    recipe = write_recipe(
        folder, make_base(folder / "base"), task="question-answering",
        peft_config={"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        dataset={"data_files": {"train": "train.json", "validation": "dev.json"}},
        processor={"max_length": 20, "stride": 6, "max_answer_length": 3},
        arguments={"num_train_epochs": 5, "per_device_train_batch_size": 8},
    )  # fmt: skip
    result = train(read(recipe), RunOptions())
    assert result.learned
    assert result.main_metric == "f1"
    return open_adapter(result.folder, OpenOptions(device="cpu", offline=True))


def _paragraph(rng: random.Random, number: int) -> dict[str, Any]:
    """One entry of a SQuAD 2 file; some contexts make two windows."""
    place, time = rng.choice(PLACES), rng.choice(TIMES)
    lead = "the story is nice and cheap . " * rng.randint(0, 2)
    asked = rng.choice(("broke", "read", "charge"))
    context = f"{lead}my {place} broke and i read it for {time} ."
    text = {"broke": place, "read": time}.get(asked)
    answers = [{"text": text, "answer_start": context.index(text)}] if text else []
    return {
        "context": context,
        "qas": [{"id": str(number), "question": asked, "answers": answers, "is_impossible": not answers}],
    }


def test_an_adapter_learns_answers_and_when_there_is_none(adapter: SavedAdapter) -> None:
    assert adapter.manifest.labels == ("answer", "no answer")
    assert set(adapter.problem.settings) == {
        "max_length", "stride", "max_answer_length", "n_best", "null_threshold",
    }  # fmt: skip
    recipe = read(adapter.folder.parents[1] / "recipe.yaml")
    split, rows = rows_of_recipe(adapter, recipe, None)
    found = compare(adapter, rows, split=split, resamples=20)
    recorded = adapter.manifest.metrics["validation"]
    assert found.adapter["f1"] == recorded["f1"] > 0.7
    assert found.adapter["no_answer_f1"] > 0.7
    none = sum(not texts for texts in found.references) / len(found.references)
    assert found.base["f1"] == pytest.approx(none)


def test_an_adapter_answers_from_the_context_and_hands_other_columns_through(adapter: SavedAdapter) -> None:
    context = "my pan broke and i read it for one week ."
    questions = [{"id": name, "question": name, "context": context} for name in ("broke", "read", "charge")]
    found = list(predict(adapter, questions, batch_size=2))
    assert [row["answer"] for row in found] == ["pan", "one week", ""]
    assert [row["id"] for row in found] == ["broke", "read", "charge"]
    assert context[found[0]["start"] : found[0]["end"]] == "pan"
    assert found[2]["start"] is None
    assert found[2]["no_answer_score"] == found[2]["score"] > found[2]["rejected"]["score"]
    json.dumps(found, allow_nan=False)
    with pytest.raises(DataError, match="row 1: context: there is none"):
        list(predict(adapter, [{"question": "broke"}]))
