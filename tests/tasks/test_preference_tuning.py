"""Preference tuning: the losses are trl's, the reference is the base below the adapter, and a run turns preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_ft.adapters.attach import attach
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import DataError, InputError
from lora_ft.serve.predict import predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.preferences import LOSSES, pair_batch, pairs_of
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.parts import chat_templates as templates
from tests.tasks.parts.tokenizers_of import byte_tokenizer
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

TASK = load_task("preference-tuning")
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
ROWS = TASK.example_rows("pairs")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("preference"), "llama", auto_class="AutoModelForCausalLM")


def problem_of(base: Path) -> Problem:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    return Problem("pairs", (), tokenizer, {"max_length": 64})


def policy(base: Path, **options: object) -> torch.nn.Module:
    """An adapter that has moved away from its base."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    adapted = attach(model.requires_grad_(False), {**LORA, **options}, task_type="CAUSAL_LM", head=())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted.eval()


@pytest.mark.parametrize("loss_type", [name for name in TASK.loss_types if name != "orpo"])
def test_the_losses_are_those_of_trl(base: Path, tmp_path: Path, loss_type: str) -> None:
    trl = pytest.importorskip("trl")
    import datasets

    problem = problem_of(base)
    model = policy(base)
    features = TASK.encode(ROWS, problem)
    batch = pair_batch([{name: features[name][row] for name in features} for row in range(4)], problem)
    pairs = pairs_of(model, batch, reference=True)
    ours = LOSSES[loss_type](pairs, 0.3).mean()
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), loss_type=loss_type, beta=0.3, report_to="none", use_cpu=True, bf16=False,
        per_device_train_batch_size=4, max_length=64, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_dict(ROWS), processing_class=problem.processor
    )
    model.delete_adapter("ref")  # else trl takes the adapter as it came for the reference, not the base below it
    model.eval()
    rows = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    theirs = trainer.compute_loss(model, rows)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_the_odds_ratio_loss_is_its_formula(base: Path) -> None:
    problem = problem_of(base)
    features = TASK.encode(ROWS, problem)
    batch = pair_batch([{name: features[name][row] for name in features} for row in range(4)], problem)
    pairs = pairs_of(policy(base), batch, reference=False)
    p, q = (pairs.chosen / pairs.chosen_tokens).exp(), (pairs.rejected / pairs.rejected_tokens).exp()
    odds = (p / (1 - p)) / (q / (1 - q))
    expected = -p.log() - 0.3 * torch.sigmoid(odds.log()).log()
    assert torch.allclose(LOSSES["orpo"](pairs, 0.3), expected, rtol=1e-4)


def test_the_reference_is_the_base_without_its_adapter_and_gets_no_gradient(base: Path) -> None:
    problem = problem_of(base)
    features = TASK.encode(ROWS, problem)
    batch = pair_batch([{name: features[name][row] for name in features} for row in range(4)], problem)
    bare = transformers.AutoModelForCausalLM.from_pretrained(base)
    fresh = attach(bare, LORA, task_type="CAUSAL_LM", head=())
    start = pairs_of(fresh, batch, reference=True)
    assert torch.equal(start.chosen.detach(), start.reference_chosen)
    moved = pairs_of(policy(base), batch, reference=True)
    assert not moved.reference_chosen.requires_grad
    assert torch.allclose(moved.reference_chosen, start.reference_chosen, atol=1e-4)
    assert not torch.allclose(moved.chosen.detach(), moved.reference_chosen, atol=1e-2)


def test_an_initialisation_that_changes_the_base_is_refused(base: Path) -> None:
    problem = problem_of(base)
    features = TASK.encode(ROWS, problem)
    batch = pair_batch([{name: features[name][0] for name in features}], problem)
    with pytest.raises(InputError, match="which is the reference of this loss"):
        pairs_of(policy(base, init_lora_weights="pissa"), batch, reference=True)


def written(folder: Path, base: Path, rows: dict[str, list[str]], **loss: object) -> Path:
    lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    (folder / "train.jsonl").write_text("\n".join(lines * 4) + "\n", encoding="utf-8")
    (folder / "dev.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write_recipe(
        folder, base, task="preference-tuning", peft_config=LORA, loss=loss,
        dataset={"data_files": {"train": "train.jsonl", "validation": "dev.jsonl"}},
        generation_config={"max_new_tokens": 4},
        arguments={"num_train_epochs": 4, "per_device_train_batch_size": 4},
    )  # fmt: skip


@pytest.mark.parametrize("loss_type", ["sigmoid", "orpo"])
def test_a_run_prefers_what_it_was_taught_and_answers_prompts(base: Path, tmp_path: Path, loss_type: str) -> None:
    result = train(read(written(tmp_path, base, ROWS, loss_type=loss_type, beta=0.3)), RunOptions())
    assert result.baseline["validation"]["reward_accuracy"] < 1.0  # DPO's rewards are all 0 at the start
    assert result.metrics["validation"]["reward_accuracy"] == 1.0
    assert result.learned
    opened = open_adapter(result.folder, OpenOptions(offline=True))
    answers = list(predict(opened, [{"prompt": "is the pan good ?"}]))
    assert isinstance(answers[0]["generated_text"], str)


def test_a_long_prompt_is_cut_once_so_that_both_answers_follow_the_same_tokens(base: Path) -> None:
    problem = problem_of(base)
    rows = {"prompt": ["good bad " * 40], "chosen": [" nice" * 30], "rejected": [" sad"]}
    features = TASK.encode(rows, problem)
    prompts = []
    for side in ("chosen", "rejected"):
        ids, labels = features[f"{side}_ids"][0], features[f"{side}_labels"][0]
        assert len(ids) == len(labels) <= 64
        prompts.append([token for token, label in zip(ids, labels, strict=True) if label == -100])
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) >= 16
    assert features["truncated"] == [True]


def test_equal_and_empty_answers_are_named(base: Path, tmp_path: Path) -> None:
    rows = {"prompt": ["a", "b", "c"], "chosen": ["good", " ", "x"], "rejected": ["bad", "y", "x"]}
    with pytest.raises(DataError) as caught:
        train(read(written(tmp_path, base, rows)), RunOptions())
    assert "chosen: it is empty" in str(caught.value)
    assert "the same as chosen" in str(caught.value)


# Chats

ASKED = [{"role": "user", "content": "Hi"}]
KIND, RUDE = ([*ASKED, {"role": "assistant", "content": text}] for text in ("Hello!", "Go."))


def chat_problem(**given: Any) -> Problem:
    processor = byte_tokenizer()
    given = {"max_length": 200, "chat_template": templates.CHATML, **given}
    return Problem(
        "chat", (), processor, TASK.settings(given, base_config={}, processor=processor, problem_type="chat")
    )


def sides(rows: dict[str, Any], one: Problem) -> dict[str, tuple[str, str]]:
    """What each side reads, and what of it is learned, as texts."""
    features = TASK.encode(rows, one)
    found = {}
    for side in ("chosen", "rejected"):
        ids, labels = features[f"{side}_ids"][0], features[f"{side}_labels"][0]
        kept = [token for token, label in zip(ids, labels, strict=True) if label == token]
        assert labels[-len(kept) :] == kept
        found[side] = one.processor.decode(ids), one.processor.decode(kept)
    return found


def test_of_two_chats_the_last_answers_are_learned_with_their_end_of_turn() -> None:
    before = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    expected = {
        "chosen": (f"{before}Hello!<|im_end|>", "Hello!<|im_end|>"),
        "rejected": (f"{before}Go.<|im_end|>", "Go.<|im_end|>"),
    }
    assert sides({"chosen_messages": [KIND], "rejected_messages": [RUDE]}, chat_problem()) == expected
    apart = {"prompt_messages": [ASKED], "chosen_messages": [KIND[1:]], "rejected_messages": [RUDE[1:]]}
    assert sides(apart, chat_problem()) == expected
    repeated = {**apart, "chosen_messages": [KIND], "rejected_messages": [RUDE]}
    assert sides(repeated, chat_problem()) == expected


def test_a_chat_model_is_asked_by_the_template_that_it_learned_with() -> None:
    one = chat_problem()
    (asked,) = TASK.encode({"prompt": ["Hi"]}, one)["input_ids"]
    assert one.processor.decode(asked) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert TASK.encode({"prompt_messages": [ASKED]}, one)["input_ids"] == [asked]


def test_both_sides_of_a_long_chat_lose_the_same_old_exchanges() -> None:
    old = [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "y"}]
    long = [*RUDE[:-1], {"role": "assistant", "content": "z" * 100}]
    rows = {"chosen_messages": [[*old, *KIND]], "rejected_messages": [[*old, *long]]}
    found = sides(rows, chat_problem())
    assert found["chosen"][0] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"
    assert TASK.encode(rows, chat_problem())["truncated"] == [True]


def test_chats_that_cannot_be_compared_are_named() -> None:
    def fault(chosen: Any, rejected: Any, **more: Any) -> str:
        return str(TASK.fault({"chosen_messages": chosen, "rejected_messages": rejected, **more}, labels=()))

    assert fault(KIND, RUDE) == "None"
    assert fault(KIND, KIND).startswith("rejected_messages: the same as chosen_messages")
    assert fault(ASKED, RUDE).startswith("chosen_messages: the last turn is empty, or not the assistant's")
    other = [{"role": "user", "content": "Ho"}, RUDE[1]]
    assert fault(KIND, other).startswith("rejected_messages: its turns before the last are not those of chosen")
    refused = [{"role": "system", "content": "x"}, *KIND]
    row = {"chosen_messages": refused, "rejected_messages": [refused[0], *RUDE]}
    assert str(TASK.misfit(row, chat_problem(chat_template=templates.MISTRAL))).startswith("chosen_messages: the chat")


def test_hub_preferences_are_learned_as_chats_and_refused_as_texts_with_the_way_out(base: Path, tmp_path: Path) -> None:
    """As in HuggingFaceH4/ultrafeedback_binarized: prompt is a text, chosen and rejected are whole chats."""
    chats = TASK.example_rows("chat")
    rows = {"prompt": chats["prompt"], "chosen": chats["chosen_messages"], "rejected": chats["rejected_messages"]}
    file = written(tmp_path, base, rows)
    with pytest.raises(
        DataError, match=r"chosen is a chat .* expected a text; `lora-ft tasks` names columns for chats"
    ):
        prepare(read(file))
    prepared = prepare(
        read(file, "dataset.columns.chosen_messages=chosen", "dataset.columns.rejected_messages=rejected")
    )
    assert prepared.problem.problem_type == "chat"
    assert set(prepared.rows["train"].column_names) == {"chosen_messages", "rejected_messages"}
