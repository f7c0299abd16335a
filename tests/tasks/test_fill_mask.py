"""Masked language modelling beyond the contract: chunks, words, fixed masks, gaps, and a whole run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import InputError
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.serve.predict import predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.language import IGNORED
from lora_ft.tasks.parts.masking import NO_WORD
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base, tiny_tokenizer
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

TASK = load_task("fill-mask")
KIND = "masked_language_modeling"
PAD, UNK, CLS, SEP, MASK = range(5)


def wordpieces() -> Any:
    """A tokenizer that takes words apart: `sturdy` is s ##tur ##dy."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, "s", "##tur", "##dy", "pan", "##s", "a", "is"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=32, **dict(zip(names, special, strict=True))
    )


def problem(processor: Any | None = None, **given: Any) -> Problem:
    tokenizer = processor or tiny_tokenizer()
    settings = TASK.settings({"max_length": 16, **given}, base_config={}, processor=tokenizer, problem_type=KIND)
    return Problem(KIND, (), tokenizer, settings)


def features_of(texts: list[str], one: Problem, *, training: bool = False) -> list[dict[str, Any]]:
    encoded = TASK.encode({"text": texts}, one, training=training)
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def test_the_ordinary_tokens_of_a_tokenizer_are_sorted_out_once_and_not_for_each_batch() -> None:
    class Counting(type(tiny_tokenizer())):  # type: ignore[misc]
        asked = 0

        @property
        def all_special_ids(self) -> list[int]:
            Counting.asked += 1
            return super().all_special_ids  # type: ignore[no-any-return]

    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = Counting
    one = problem(tokenizer)
    features = features_of(["a book is good and nice ."], one, training=True)
    collate = TASK.collator(one, training=True)
    before = Counting.asked
    for _ in range(3):
        collate(features)
    assert Counting.asked == before


def test_texts_flow_through_chunks_with_separators_and_no_token_is_lost() -> None:
    one = problem(max_length=8)
    texts = ["a book is good and nice .", "", "my pan broke ."]
    features = features_of(texts, one, training=True)
    assert all(feature["input_ids"][0] == CLS and feature["input_ids"][-1] == SEP for feature in features)
    assert [feature["length"] for feature in features] == [8, 8]
    stream = [token for feature in features for token in feature["input_ids"][1:-1]]
    expected = [one.processor(text, add_special_tokens=False)["input_ids"] for text in texts if text]
    assert stream == [*expected[0], SEP, *expected[1]]
    assert [feature["row"] for feature in features] == [0, 0]


def test_line_by_line_each_row_has_chunks_of_its_own() -> None:
    features = features_of(["a book is good", "my pan"], problem(line_by_line=True), training=True)
    assert [feature["row"] for feature in features] == [0, 1]
    assert [feature["length"] for feature in features] == [6, 4]


@pytest.mark.parametrize("training", [True, False])
def test_pieces_of_a_word_are_hidden_together(training: bool) -> None:
    one = problem(wordpieces(), mlm_probability=0.5, line_by_line=True)
    features = features_of(["a sturdy pans is a sturdy"] * 20, one, training=training)
    torch.manual_seed(0)
    batch = TASK.collator(one, training=training)(features)
    (whole,) = features_of(["a sturdy pans is a sturdy"], one, training=True)
    pieces = one.processor.convert_ids_to_tokens(whole["input_ids"])
    assert pieces.count("##tur") == 2
    partly = 0
    for labels in batch["labels"].tolist():
        hidden = [label != IGNORED for label in labels]
        assert all(hidden[at] == hidden[at - 1] for at, piece in enumerate(pieces) if piece.startswith("##"))
        assert not hidden[0]
        assert not hidden[-1]
        assert any(hidden)
        partly += not all(hidden[1:-1])
    assert partly > len(features) // 2


def test_without_whole_words_tokens_are_hidden_one_by_one() -> None:
    one = problem(wordpieces(), whole_word_mask=False, mlm_probability=0.5)
    (feature,) = features_of(["a sturdy pan"], one, training=True)
    assert len(set(feature["words"]) - {NO_WORD}) == 5


def test_training_masks_are_new_each_time_and_measured_masks_never() -> None:
    one = problem()
    texts = ["this phone works and i love it ."] * 3
    trained = [TASK.collator(one, training=True)(features_of(texts, one, training=True)) for _ in range(2)]
    assert not torch.equal(trained[0]["labels"], trained[1]["labels"])
    measured = [TASK.collator(one)(features_of(texts, one)) for _ in range(2)]
    assert torch.equal(measured[0]["labels"], measured[1]["labels"])
    assert torch.equal(measured[0]["input_ids"], measured[1]["input_ids"])
    other_seed = Problem(KIND, (), one.processor, one.settings, seed=7)
    assert torch.equal(TASK.collator(other_seed)(features_of(texts, other_seed))["labels"], measured[0]["labels"])


def test_a_gap_in_a_text_is_answered_and_never_hidden() -> None:
    one = problem()
    features = features_of(["the [MASK] is [MASK] .", "the pan is good ."], one)
    assert [feature["gap"] for feature in features] == [2, 4, -1]
    assert all(label == IGNORED for feature in features[:2] for label in feature["labels"])
    (trained,) = features_of(["the [MASK] is good ."], one, training=True)
    assert trained["words"][2] == NO_WORD


def test_a_gap_far_into_a_long_text_is_seen_with_what_is_around_it() -> None:
    one = problem(max_length=8)
    (feature,) = features_of(["good " * 20 + "[MASK] nice"], one)
    assert feature["truncated"]
    assert feature["length"] == 8
    assert feature["input_ids"][feature["gap"]] == MASK
    assert one.processor.decode(feature["input_ids"][feature["gap"] + 1 : -1]) == "nice"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mlm_probability": 1.5}, r"processor\.mlm_probability = 1.5: expected a share"),
        ({"max_length": 4}, r"processor\.max_length = 4: expected 8 or more"),
        ({"top_k": 0}, r"processor\.top_k = 0: expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        problem(**given)


def test_a_base_that_has_no_mask_token_is_sent_to_text_generation() -> None:
    with pytest.raises(InputError, match=r"no mask token.*task: text-generation"):
        problem(tiny_tokenizer(pad=False))


# A whole run


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> SavedAdapter:
    folder = tmp_path_factory.mktemp("fill-mask")
    texts = TASK.example_rows(KIND)["text"]
    for name in ("train", "dev"):
        (folder / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    recipe = write_recipe(
        folder, _base(folder / "base"), task="fill-mask",
        peft_config={"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        dataset={"data_files": {"train": "train.txt", "validation": "dev.txt"}},
        processor={"max_length": 64, "mlm_probability": 0.3},
        arguments={
            "num_train_epochs": 60, "per_device_train_batch_size": 8,
            "eval_strategy": "no", "save_strategy": "no",
        },
    )  # fmt: skip
    result = train(read(recipe), RunOptions())
    assert result.learned
    return open_adapter(result.folder, OpenOptions(device="cpu", offline=True))


def _base(folder: Path) -> Path:
    """A base with a masked-language-model head, as real ones have it."""
    return make_base(folder, "bert", auto_class="AutoModelForMaskedLM")


def test_an_adapter_lowers_the_perplexity_and_evaluation_says_what_training_said(adapter: SavedAdapter) -> None:
    metrics = adapter.manifest.metrics["validation"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["perplexity"] < adapter.manifest.run["baseline"]["validation"]["perplexity"] / 2
    recipe = read(adapter.folder.parents[1] / "recipe.yaml")
    split, rows = rows_of_recipe(adapter, recipe, None)
    compared = compare(adapter, rows, split=split, resamples=20)
    assert compared.adapter["perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-4)
    assert compared.base["perplexity"] > compared.adapter["perplexity"]


def test_the_head_is_the_bases_and_nothing_of_it_is_saved(adapter: SavedAdapter) -> None:
    assert adapter.manifest.head == ()


def test_gaps_are_filled_with_the_likeliest_tokens_first(adapter: SavedAdapter) -> None:
    (row, plain) = predict(adapter, [{"text": "this [MASK] works and i love [MASK] ."}, {"text": "this pan works ."}])
    assert len(row["predictions"]) == 2
    for fillings in row["predictions"]:
        scores = [filling["score"] for filling in fillings]
        assert len(fillings) == 5
        assert scores == sorted(scores, reverse=True)
        assert all(0.0 <= score <= 1.0 for score in scores)
    first, second = (fillings[0] for fillings in row["predictions"])
    assert row["filled"] == f"this {first['token']} works and i love {second['token']} ."
    assert second["text"].count("[MASK]") == 1
    assert set(plain) == {"text", "loss_sum", "tokens", "correct"}
