"""Text generation beyond the contract: labels, cuts, packing, answers, and whole runs of all three kinds of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import DataError, InputError
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.serve.predict import predict, streamed
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.generation import check_generation, cut_at
from lora_ft.tasks.parts.language import IGNORED
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.streaming import until
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.parts import chat_templates as templates
from tests.tasks.parts.tokenizers_of import byte_tokenizer, piece_tokenizer
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

TASK = load_task("text-generation")
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
TWO = [*HI, {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Yes, two."}]


def problem(kind: str, *, tokenizer: Any = None, generation: Mapping[str, Any] | None = None, **given: Any) -> Problem:
    processor = tokenizer or byte_tokenizer()
    given = {"max_length": 200, **given}
    settings = TASK.settings(given, base_config={}, processor=processor, problem_type=kind)
    return Problem(kind, (), processor, settings, generation or {})


def features_of(rows: Mapping[str, Sequence[Any]], one: Problem, *, training: bool = True) -> list[dict[str, Any]]:
    encoded = TASK.encode(rows, one, training=training)
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def learned(feature: Mapping[str, Any], one: Problem) -> str:
    """The text of the labels; pieces that are not learned are `|`."""
    marks = "".join("x" if label != IGNORED else "|" for label in feature["labels"])
    text, last = "", "|"
    for mark, token in zip(marks, feature["input_ids"], strict=True):
        text += "|" if mark == "|" != last else ""
        text += one.processor.decode([token]) if mark == "x" else ""
        last = mark
    return text.strip("|")


# Labels


def test_only_the_completion_and_its_end_are_learned() -> None:
    one = problem("completion")
    (feature,) = features_of({"prompt": ["2+2="], "completion": ["4!"]}, one)
    assert one.processor.decode(feature["input_ids"]) == "2+2=4!</s>"
    assert learned(feature, one) == "4!</s>"


def test_the_separator_belongs_to_the_prompt() -> None:
    one = problem("completion", separator="\nA: ")
    (feature,) = features_of({"prompt": ["2+2="], "completion": ["4"]}, one)
    assert one.processor.decode(feature["input_ids"]) == "2+2=\nA: 4</s>"
    assert learned(feature, one) == "4</s>"
    (asked,) = features_of({"prompt": ["2+2="]}, one, training=False)
    assert feature["input_ids"][: asked["length"]] == asked["input_ids"]


@pytest.mark.parametrize("prompt", ["the question was : why", "two an", "answer:", "", "because\n"])
@pytest.mark.parametrize("completion", [" because it was so .", "d two is four", "\nyes"])
def test_a_prompt_has_the_tokens_that_it_has_when_it_is_answered(prompt: str, completion: str) -> None:
    one = problem("completion", tokenizer=piece_tokenizer())
    (feature,) = features_of({"prompt": [prompt], "completion": [completion]}, one)
    (asked,) = features_of({"prompt": [prompt]}, one, training=False)
    assert feature["input_ids"][: asked["length"]] == asked["input_ids"]
    assert feature["labels"][asked["length"] :] == feature["input_ids"][asked["length"] :]
    assert feature["labels"][-1] == one.processor.eos_token_id
    text = one.processor.decode(feature["input_ids"], skip_special_tokens=True)
    assert text == prompt + completion if prompt else text.strip() == completion.strip()


def test_every_turn_of_the_assistant_is_learned_with_its_end() -> None:
    one = problem("chat", chat_template=templates.CHATML)
    (feature,) = features_of({"messages": [TWO]}, one)
    assert learned(feature, one) == "Hello!<|im_end|>|Yes, two.<|im_end|>"


def test_a_chat_whose_template_ends_no_turn_ends_with_the_end_of_text() -> None:
    one = problem("chat", chat_template=templates.PLAIN)
    (feature,) = features_of({"messages": [TWO]}, one)
    assert learned(feature, one) == "Hello!|Yes, two.</s>"
    assert feature["input_ids"][-1] == one.processor.eos_token_id


def test_an_end_of_turn_that_is_no_single_token_is_learned_whole() -> None:
    one = problem("chat", tokenizer=piece_tokenizer(), chat_template=templates.ZEPHYR.replace("eos_token", "'<end>'"))
    (feature,) = features_of({"messages": [HI]}, one)
    assert learned(feature, one).endswith("<end>")


def test_an_answer_that_later_turns_change_is_learned_in_a_text_of_its_own() -> None:
    one = problem("chat", chat_template=templates.QWEN3)
    first, last = features_of({"messages": [TWO]}, one)
    assert learned(first, one) == "<think>\n\n</think>\n\nHello!<|im_end|>"
    assert learned(last, one) == "<think>\n\n</think>\n\nYes, two.<|im_end|>"
    assert first["row"] == last["row"] == 0


def test_what_follows_the_last_answer_is_left_out_of_training() -> None:
    one = problem("chat", chat_template=templates.CHATML)
    assert features_of({"messages": [[*HI, TWO[2]]]}, one) == features_of({"messages": [HI]}, one)


def test_pad_is_never_learned_even_where_it_is_the_end_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    try:
        one = problem("completion", tokenizer=tokenizer)
        rows = {"prompt": ["a", "abc"], "completion": ["b", "defgh"]}
        batch = TASK.collator(one)(features_of(rows, one))
    finally:
        tokenizer.pad_token = "<pad>"
    assert batch["labels"][0].tolist() == [IGNORED, batch["input_ids"][0, 1], tokenizer.eos_token_id] + [IGNORED] * 6
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]
    assert (batch["labels"] == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_plain_texts_flow_through_blocks_and_no_token_is_lost() -> None:
    one = problem("text", max_length=8)
    features = features_of({"text": ["abcdefghij", "", "k", "lmn"]}, one)
    assert "".join(learned(feature, one) for feature in features) == "bcdefghij</s>k</s>lmn</s>"
    assert [feature["length"] for feature in features] == [8, 8, 3]
    assert [feature["row"] for feature in features] == [0, 0, 3]


# Cuts


def test_a_long_prompt_is_cut_on_the_left_and_its_answer_stays_whole() -> None:
    one = problem("completion", tokenizer=piece_tokenizer(), max_length=16)
    (feature,) = features_of({"prompt": ["first second third " * 9], "completion": ["yes"]}, one)
    assert feature["truncated"]
    assert feature["length"] == 16
    assert feature["input_ids"][0] == one.processor.bos_token_id
    assert learned(feature, one).endswith("yes</s>")


def test_a_chat_that_is_too_long_loses_its_oldest_exchanges_but_not_the_system_turn() -> None:
    one = problem("chat", chat_template=templates.CHATML, max_length=90)
    system = {"role": "system", "content": "Be brief."}
    (feature,) = features_of({"messages": [[system, *HI, *TWO[2:], *HI]]}, one)
    text = one.processor.decode(feature["input_ids"])
    assert feature["truncated"]
    assert "Be brief." in text
    assert text.count("user") == 2
    assert learned(feature, one) == "Yes, two.<|im_end|>|Hello!<|im_end|>"
    (asked,) = features_of({"messages": [[system, *HI, *TWO[:3]]]}, one, training=False)
    assert asked["truncated"]
    assert one.processor.decode(asked["input_ids"]).startswith("<|im_start|>system\nBe brief.")
    assert one.processor.decode(asked["input_ids"]).endswith("Two?<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_longer_than_the_room_keeps_its_beginning() -> None:
    one = problem("chat", chat_template=templates.CHATML, max_length=24)
    long = [HI[0], {"role": "assistant", "content": "abcdefghijklmnopqrstuvwxyz" * 3}]
    (feature,) = features_of({"messages": [long]}, one)
    assert feature["truncated"]
    assert learned(feature, one).startswith("abcdefghijklm")


# Rows that cannot be used


def test_bad_rows_are_named_with_their_reason() -> None:
    one = problem("chat", chat_template=templates.MISTRAL)
    assert (
        TASK.fault({"prompt": "a", "completion": " \n"}, labels=())
        == "completion: it is empty: expected a text to learn"
    )
    silent = [HI[0], {"role": "assistant", "content": ""}]
    assert TASK.fault({"messages": silent}, labels=()).startswith("messages: turn 2, the assistant's, is empty")
    assert TASK.fault({"messages": HI}, labels=()) is None
    assert TASK.fault({"prompt": "a"}, labels=()) is None
    assert "no turn of the assistant" in str(TASK.misfit({"messages": HI[:1]}, one))
    assert "Only user and assistant" in str(TASK.misfit({"messages": [{"role": "system", "content": "x"}, *HI]}, one))
    assert TASK.misfit({"messages": HI}, one) is None
    assert TASK.misfit({"text": "a"}, one) is None
    with pytest.raises(DataError, match=r"begins 'Hi' has no turn of the assistant to learn \(roles: user\)"):
        features_of({"messages": [HI[:1]]}, one)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("text", {"chat_template": templates.CHATML}, r"processor\.chat_template: it has no effect on rows of text"),
        ("chat", {}, r"processor\.chat_template: the tokenizer of this base has no chat template"),
        ("chat", {"chat_template": "nowhere.jinja"}, r"neither a template .* nor a file"),
        ("chat", {"chat_template": templates.CHATML, "separator": "\n"}, r"processor\.separator: it has no effect"),
        ("text", {"max_length": 2}, r"processor\.max_length = 2: expected 8"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(kind: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        problem(kind, **given)


def test_sampling_settings_without_sampling_are_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(InputError, match=r"generation_config\.temperature = 0.7: it has no effect without sampling"):
        features_of({"text": ["a b"]}, problem("text", generation={"temperature": 0.7}))
    check_generation(problem("text", generation={"temperature": 0.7, "do_sample": True}))
    with pytest.raises(InputError, match=r"generation_config\.num_beams = 0"):
        check_generation(problem("text", generation={"num_beams": 0}))


@pytest.mark.parametrize("name", ["text-generation", "preference-tuning", "text2text-generation"])
def test_more_new_tokens_than_the_base_has_positions_are_refused_before_a_model_is_loaded(name: str) -> None:
    task, processor = load_task(name), byte_tokenizer()
    config = {"max_position_embeddings": 64, "model_type": "llama", "decoder_start_token_id": 0}
    kind = {"text-generation": "completion"}.get(name, next(iter(task.metrics)))
    settings = task.settings({"max_length": 32}, base_config=config, processor=processor, problem_type=kind)
    rows = task.example_rows(kind)
    task.encode(rows, Problem(kind, (), processor, settings, {"max_new_tokens": 63}))
    with pytest.raises(InputError, match=r"^generation_config\.max_new_tokens = 64: the base has 64 positions"):
        task.encode(rows, Problem(kind, (), processor, settings, {"max_new_tokens": 64}))
    unknown = task.settings(
        {"max_length": 32}, base_config={"decoder_start_token_id": 0}, processor=processor, problem_type=kind
    )
    task.encode(rows, Problem(kind, (), processor, unknown, {"max_new_tokens": 10**6}))


# Packing


def test_packed_rows_have_the_loss_and_the_gradients_of_their_sequences(tmp_path: Path) -> None:
    import transformers

    make_base(tmp_path, "llama", auto_class="AutoModelForCausalLM")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = tokenizer.eos_token
    rows = TASK.example_rows("completion")
    plain = problem("completion", tokenizer=tokenizer, max_length=32)
    packed = replace(plain, settings={**plain.settings, "packing": True})
    found = []
    for one in (plain, packed):
        features = features_of(rows, one)
        batch = TASK.collator(one, training=True)(features)
        outputs = TASK.forward(model, batch, one)
        TASK.loss(outputs, batch, one, items=TASK.items(batch)).backward()
        found.append((len(features), TASK.items(batch), [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    (many, items, expected), (few, items_too, got) = found
    assert few < many
    assert items == items_too
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_only_training_rows_are_packed() -> None:
    one = problem("completion", packing=True)
    rows = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    assert len(features_of(rows, one)) == 1
    assert len(features_of(rows, one, training=False)) == 2


# Stop strings and pieces


def test_pieces_hold_back_what_may_be_the_beginning_of_a_stop_string() -> None:
    assert list(until(["ab", "c<", "en", "d>", "more"], ["<end>"])) == ["ab", "c"]
    assert "".join(until(["ab<", "e", "x"], ["<end>"])) == "ab<ex"
    assert list(until(["a", "b"], [])) == ["a", "b"]
    assert cut_at("one two one", ["two", "one t"]) == ""
    assert cut_at("abc", ["d"]) == "abc"


# Whole runs


def written(folder: Path, rows: Sequence[Mapping[str, Any]], **sections: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return write_recipe(
        folder, make_base(folder / "base", "llama"), task="text-generation",
        peft_config={"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        dataset={"data_files": {"train": "train.jsonl", "validation": "dev.jsonl"}},
        arguments={
            "num_train_epochs": 40, "per_device_train_batch_size": 4,
            "eval_strategy": "no", "save_strategy": "no",
        },
        **sections,
    )  # fmt: skip


def toy_rows(kind: str) -> list[dict[str, Any]]:
    rows = TASK.example_rows(kind)
    wanted = TASK.column_sets[kind]
    return [dict(zip(wanted, values, strict=True)) for values in zip(*(rows[name] for name in wanted), strict=True)]


def trained(folder: Path, kind: str, **sections: Any) -> SavedAdapter:
    result = train(read(written(folder, toy_rows(kind), **sections)), RunOptions())
    assert result.learned
    assert result.metrics["validation"]["perplexity"] < result.baseline["validation"]["perplexity"]
    return open_adapter(result.folder, OpenOptions(device="cpu", offline=True))


@pytest.fixture(scope="module")
def chat_adapter(tmp_path_factory: pytest.TempPathFactory) -> SavedAdapter:
    return trained(
        tmp_path_factory.mktemp("chat"),
        "chat",
        processor={"max_length": 48, "chat_template": "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"},
        generation_config={"max_new_tokens": 12},
    )


def test_a_chat_adapter_answers_what_it_learned_and_evaluates_as_it_trained(chat_adapter: SavedAdapter) -> None:
    rows = TASK.example_rows("chat")
    asked = [{"messages": chat[:1]} for chat in rows["messages"]]
    answers = [row["generated_text"] for row in predict(chat_adapter, asked)]
    assert answers == [chat[1]["content"] for chat in rows["messages"]]
    assert [row["generated_text"] for row in predict(chat_adapter, [{"prompt": p} for p in rows["prompt"]])] == answers
    recipe = read(chat_adapter.folder.parents[1] / "recipe.yaml")
    split, split_rows = rows_of_recipe(chat_adapter, recipe, None)
    compared = compare(chat_adapter, split_rows, split=split, resamples=20)
    assert compared.adapter["perplexity"] == pytest.approx(chat_adapter.manifest.metrics["validation"]["perplexity"])
    assert compared.base["perplexity"] > compared.adapter["perplexity"]


def test_rows_with_a_prompt_beside_their_messages_are_chats(chat_adapter: SavedAdapter, tmp_path: Path) -> None:
    """As in HuggingFaceH4/ultrachat_200k: prompt, prompt_id, messages."""
    rows = TASK.example_rows("chat")
    columns = {"prompt": rows["prompt"], "prompt_id": ["a", "b", "c", "d"], "messages": rows["messages"]}
    whole = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    prepared = prepare(read(written(tmp_path, whole, processor={"max_length": 48})))
    assert prepared.problem.problem_type == "chat"
    assert prepared.rows["train"].column_names == ["messages"]
    measured = list(predict(chat_adapter, whole))
    assert [row["tokens"] for row in measured] == [8, 6, 6, 7]
    asked = [{**row, "messages": row["messages"][:1]} for row in whole]
    answers = [row["generated_text"] for row in predict(chat_adapter, asked)]
    assert answers == [chat[1]["content"] for chat in rows["messages"]]


def test_chats_alone_are_refused_by_an_adapter_that_continues_prompts(chat_adapter: SavedAdapter) -> None:
    chats = {"messages": TASK.example_rows("chat")["messages"]}
    completing = Problem("completion", (), chat_adapter.processor, chat_adapter.problem.settings)
    with pytest.raises(DataError, match=r"^messages: this adapter was trained on prompt and completion and continues"):
        TASK.encode(chats, completing)
    prompts = {"prompt": TASK.example_rows("chat")["prompt"]}
    assert TASK.encode({**prompts, **chats}, completing) == TASK.encode(prompts, completing)


def test_the_template_of_the_recipe_lies_beside_the_adapter(chat_adapter: SavedAdapter) -> None:
    assert "m.content" in chat_adapter.processor.chat_template
    assert chat_adapter.manifest.settings["chat_template"] == chat_adapter.processor.chat_template


def test_a_stream_is_the_prediction_piece_by_piece(chat_adapter: SavedAdapter) -> None:
    row = {"prompt": "is the cable slow ?"}
    pieces = list(TASK.stream(chat_adapter.model, row, chat_adapter.problem))
    (prediction,) = predict(chat_adapter, [row])
    assert "".join(pieces) == prediction["generated_text"]
    assert len(pieces) > 3
    assert "".join(streamed(chat_adapter, [row])) == prediction["generated_text"] + "\n"


def test_a_stop_string_ends_prediction_and_stream_alike(chat_adapter: SavedAdapter) -> None:
    one = replace(chat_adapter.problem, generation={"max_new_tokens": 12, "stop_strings": ["is slow"]})
    asked = [{"role": "user", "content": "is the cable slow ?"}]
    features = features_of({"messages": [asked]}, one, training=False)
    with torch.no_grad():
        found = TASK.answer(chat_adapter.model, TASK.collator(one)(features), one, outputs=None)
    (part,) = TASK.decode({name: value.numpy() for name, value in found.items()}, features, one)
    assert part["generated_text"].strip() == "the cable"
    assert "".join(TASK.stream(chat_adapter.model, {"messages": asked}, one)).strip() == "the cable"


def test_sampling_follows_the_seed_and_leaves_the_generator_alone(chat_adapter: SavedAdapter) -> None:
    settings = {"max_new_tokens": 12, "do_sample": True, "temperature": 5.0}
    found = []
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for seed in (0, 0, 1):
        one = replace(chat_adapter.problem, generation=settings, seed=seed)
        found.append("".join(TASK.stream(chat_adapter.model, {"prompt": "is the cable slow ?"}, one)))
    assert found[0] == found[1] != found[2]
    assert torch.equal(before, torch.get_rng_state())


def test_answers_do_not_depend_on_what_shares_their_batch(chat_adapter: SavedAdapter) -> None:
    prompts = ["is the pan good ?", "i", "was the book nice ? and is the cable slow ?"]
    together = [row["generated_text"] for row in predict(chat_adapter, [{"prompt": p} for p in prompts])]
    alone = [next(predict(chat_adapter, [{"prompt": prompt}]))["generated_text"] for prompt in prompts]
    assert together == alone


def test_beams_cannot_be_streamed(chat_adapter: SavedAdapter) -> None:
    one = replace(chat_adapter.problem, generation={"num_beams": 2, "max_new_tokens": 8})
    with pytest.raises(InputError, match=r"--stream: generation_config\.num_beams = 2"):
        list(TASK.stream(chat_adapter.model, {"prompt": "is"}, one))


def test_a_stream_that_nobody_reads_on_ends(chat_adapter: SavedAdapter) -> None:
    stream = TASK.stream(chat_adapter.model, {"prompt": "is the cable slow ?"}, chat_adapter.problem)
    next(stream)
    stream.close()
    assert chat_adapter.model.generation_config.max_new_tokens is None


def test_completions_are_learned_packed_and_unpacked(tmp_path: Path) -> None:
    packed = {"max_length": 32, "packing": True}
    adapter = trained(tmp_path, "completion", processor=packed, generation_config={"max_new_tokens": 12})
    rows = TASK.example_rows("completion")
    answers = [row["generated_text"] for row in predict(adapter, [{"prompt": prompt} for prompt in rows["prompt"]])]
    assert [answer.strip() for answer in answers] == [completion.strip() for completion in rows["completion"]]


def test_plain_text_is_continued_and_never_past_the_models_positions(tmp_path: Path) -> None:
    adapter = trained(tmp_path, "text", processor={"max_length": 64})
    (row,) = predict(adapter, [{"prompt": "i love my"}])
    assert row["generated_text"].strip().split()[1:4] == [".", "it", "works"]
    one = replace(adapter.problem, generation={"max_new_tokens": 80})
    with pytest.raises(InputError, match=r"max_new_tokens = 80: the base has 80 positions"):
        list(TASK.stream(adapter.model, {"prompt": "i love"}, one))
    long = {"prompt": " ".join(["good"] * 500)}
    assert isinstance(next(predict(adapter, [long]))["generated_text"], str)
