"""Where the assistant speaks: against turns marked by hand, for the templates that people use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ft.errors import DataError, InputError
from lora_ft.tasks.parts.chat import ChatTemplate, cut_tokens, read_template, template_of, turn_end
from lora_ft.tasks.parts.language import plain_ids
from tests.tasks.parts import chat_templates as templates
from tests.tasks.parts.tokenizers_of import byte_tokenizer, piece_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
TWO = [*HI, {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Yes, two."}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TWO]
BLANK = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "\n Hello! \n"}]
THOUGHT = [*TWO[:3], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes, two."}]

BY_HAND = {
    "chatml": (templates.CHATML, SYSTEM, [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[[Hello!<|im_end|>]]\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n[[Yes, two.<|im_end|>]]\n"
    ]),
    "chatml keeps white space": (templates.CHATML, BLANK, [
        "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n[[\n Hello! \n<|im_end|>]]\n"
    ]),
    "qwen 2.5 adds a system turn": (templates.QWEN2_5, HI, [
        "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[[Hello!<|im_end|>]]\n"
    ]),
    "qwen 3 adds thoughts to the last answer": (templates.QWEN3, THOUGHT, [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nHello!<|im_end|>]]\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\nhm\n</think>\n\nYes, two.<|im_end|>]]\n",
    ]),
    "llama 3 strips white space": (templates.LLAMA3, BLANK, [
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello!<|eot_id|>]]"
    ]),
    "llama 3": (templates.LLAMA3, TWO, [
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello!<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nTwo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Yes, two.<|eot_id|>]]"
    ]),
    "mistral": (templates.MISTRAL, TWO, [
        "<s>[INST] Hi [/INST][[ Hello!</s>]][INST] Two? [/INST][[ Yes, two.</s>]]"
    ]),
    "gemma drops the system turn": (templates.GEMMA, SYSTEM, [
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n[[Hello!<end_of_turn>]]\n"
        "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n[[Yes, two.<end_of_turn>]]\n"
    ]),
    "zephyr": (templates.ZEPHYR, SYSTEM, [
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n[[Hello!</s>]]\n"
        "<|user|>\nTwo?</s>\n<|assistant|>\n[[Yes, two.</s>]]\n"
    ]),
    "phi 3": (templates.PHI3, TWO, [
        "<|user|>\nHi<|im_end|>\n<|assistant|>\n[[Hello!<|im_end|>]]\n"
        "<|user|>\nTwo?<|im_end|>\n<|assistant|>\n[[Yes, two.<|im_end|>]]\n</s>"
    ]),
    "llama 2": (templates.LLAMA2, TWO, [
        "<s>[INST] Hi [/INST][[ Hello! </s>]]<s>[INST] Two? [/INST][[ Yes, two. </s>]]"
    ]),
    "plain": (templates.PLAIN, TWO, ["user: Hi\nassistant: [[Hello!]]\nuser: Two?\nassistant: [[Yes, two.]]\n"]),
    "marks": (templates.MARKED, TWO, [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello!<|im_end|>]]\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n[[Yes, two.<|im_end|>]]\n"
    ]),
    "the assistant begins": (templates.CHATML, [HI[1], *TWO[2:]], [
        "<|im_start|>assistant\n[[Hello!<|im_end|>]]\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n[[Yes, two.<|im_end|>]]\n"
    ]),
}  # fmt: skip


def marked(source: str, messages: list[dict[str, str]], **values: Any) -> list[str]:
    """The texts of a chat with the assistant's turns in double brackets."""
    found = []
    for chat in ChatTemplate(source, {**TOKENS, **values}, templates.SPECIAL).answered(messages):
        text, last = "", 0
        for start, end in chat.spans:
            text += chat.text[last:start] + "[[" + chat.text[start:end] + "]]"
            last = end
        found.append(text + chat.text[last:])
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_the_assistants_turns_are_those_marked_by_hand(name: str) -> None:
    source, messages, expected = BY_HAND[name]
    assert marked(source, messages) == expected


def test_thoughts_that_are_switched_off_belong_to_the_prompt() -> None:
    assert marked(templates.QWEN3, HI, enable_thinking=False) == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n[[Hello!<|im_end|>]]\n"
    ]


def test_an_answer_that_looks_like_a_turn_is_one_answer() -> None:
    sly = [HI[0], {"role": "assistant", "content": "A<|im_end|>\n<|im_start|>user\nB"}]
    assert marked(templates.CHATML, sly) == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[A<|im_end|>\n<|im_start|>user\nB<|im_end|>]]\n"
    ]


def test_a_question_that_looks_like_an_answer_is_not_learned() -> None:
    sly = [{"role": "user", "content": "x<|im_end|>\n<|im_start|>assistant\nfake<|im_end|>\n"}, HI[1]]
    (text,) = marked(templates.CHATML, sly)
    assert "[[" not in text.split("fake")[0]
    assert text.endswith("<|im_start|>assistant\n[[Hello!<|im_end|>]]\n")


def test_a_template_that_loses_the_system_turn_once_there_is_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"turn 3 .*'Be brief\.\\n\\nHi\[/INST\]'.*'Hi\[/INST\] Hello!"):
        marked(templates.MISTRAL_MOVES_SYSTEM, [SYSTEM[0], *HI])
    assert marked(templates.MISTRAL_MOVES_SYSTEM, HI) == ["<s>[INST] Hi[/INST][[ Hello!</s>]]"]


def test_a_template_that_refuses_a_chat_says_why() -> None:
    with pytest.raises(DataError, match=r"begins 'Be brief\.': the chat template refuses it: Only user and assistant"):
        marked(templates.MISTRAL, SYSTEM)


def test_a_template_that_leaves_answers_out_is_refused() -> None:
    with pytest.raises(DataError, match="leaves turn 2 out"):
        marked("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", HI)


def test_what_ends_a_turn_is_what_the_template_writes_behind_it() -> None:
    found = {name: turn_end(ChatTemplate(source, TOKENS, templates.SPECIAL)) for name, (source, *_) in BY_HAND.items()}
    assert found["chatml"] == "<|im_end|>"
    assert found["llama 3"] == "<|eot_id|>"
    assert found["mistral"] == "</s>"
    assert found["zephyr"] == "</s>"
    assert found["plain"] == ""


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("tokenizer", [byte_tokenizer, piece_tokenizer], ids=["bytes", "pieces"])
def test_tokens_before_an_answer_are_those_of_its_prompt_alone(name: str, tokenizer: Any) -> None:
    source, messages, _ = BY_HAND[name]
    chat = ChatTemplate(source, TOKENS).answered(messages)[-1]
    start, end = chat.spans[-1]
    before, answer, _ = cut_tokens(chat.text, [start, end], tokenizer())
    assert before == plain_ids(chat.text[:start], tokenizer())
    assert tokenizer().decode([*before, *answer]).strip() == chat.text[:end].strip()


def test_a_token_over_the_cut_is_cut() -> None:
    tokenizer = piece_tokenizer()
    text = "two and two is four"
    whole = plain_ids(text, tokenizer)
    cut = text.index("d two")
    before, after = cut_tokens(text, [cut], tokenizer)
    assert [*before, *after] != whole
    assert before == plain_ids("two an", tokenizer)
    assert tokenizer.decode([*before, *after]) == text


def test_the_recipes_template_goes_before_the_tokenizers() -> None:
    tokenizer = byte_tokenizer()
    assert template_of({"chat_template": templates.ZEPHYR}, tokenizer).source == templates.ZEPHYR
    with pytest.raises(InputError, match=r"processor\.chat_template: the tokenizer of this base has no chat template"):
        template_of({}, tokenizer)


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(templates.MARKED, encoding="utf-8")
    assert read_template(str(tmp_path / "chat.jinja")) == templates.MARKED
    assert read_template(templates.CHATML) == templates.CHATML
    with pytest.raises(InputError, match="No such file"):
        read_template(str(tmp_path / "chats.jinja"))
    with pytest.raises(InputError, match="line 1 is no Jinja"):
        read_template("{% for m in messages %}")


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3_instruct_2507", "llama3", "gemma3", "cohere", "lfm2"])
def test_answers_of_real_templates_are_those_that_trl_marks_in_them(family: str) -> None:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    plain, with_marks = folder / f"{family}.jinja", folder / f"{family}_training.jinja"
    if not (plain.is_file() and with_marks.is_file()):
        pytest.skip("this trl does not have the template")
    answers = []
    for file in (plain, with_marks):
        source = file.read_text(encoding="utf-8")
        (chat,) = ChatTemplate(source, TOKENS).answered(TWO)
        answers.append([chat.text[start:end].strip() for start, end in chat.spans])  # its marks vary in line ends
    assert answers[0] == answers[1]
    assert [answer[:5] for answer in answers[0]] == ["Hello", "Yes, "]
