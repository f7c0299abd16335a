"""Whisper: one prompt for training and prediction, targets after it, settings that the base can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from lora_ft.errors import InputError
from lora_ft.tasks.parts import audio_whisper as whisper
from lora_ft.tasks.parts.labelled import token_loss
from lora_ft.tasks.parts.problem import Problem
from tests.bases_speech import speech_parts, whisper_generation

CONFIG, PROCESSOR = speech_parts("whisper", hidden=16, layers=1)


def settings(**given: Any) -> dict[str, Any]:
    return whisper.whisper_settings(given, base_config=CONFIG.to_dict(), tokenizer=PROCESSOR.tokenizer)


def problem(generation: dict[str, Any] | None = None, **given: Any) -> Problem:
    return Problem("seq2seq", (), PROCESSOR, settings(**given), generation=generation or {})


def model() -> Any:
    torch.manual_seed(0)
    made = tf.WhisperForConditionalGeneration(CONFIG).eval()
    whisper_generation(made, PROCESSOR.tokenizer)
    return made


@pytest.mark.parametrize(("language", "task"), [("english", "transcribe"), ("de", "translate"), ("Chinese", None)])
def test_the_prompt_is_that_of_the_base_s_own_tokenizer(language: str, task: str | None) -> None:
    given = {"language": language, **({"task": task} if task else {})}
    tokenizer = speech_parts("whisper", hidden=16, layers=1)[1].tokenizer
    tokenizer.set_prefix_tokens(language=language, task=task or "transcribe", predict_timestamps=False)
    assert settings(**given)["prompt"] == tokenizer.prefix_tokens


def test_targets_are_the_transcript_and_its_end_and_the_decoder_reads_one_token_behind() -> None:
    about = problem(language="en")
    ids = [whisper.whisper_tokens(text, PROCESSOR.tokenizer) for text in ("yes", "no yes")]
    batch = whisper.decoder_batch(ids, about)
    prompt, end = about.settings["prompt"], PROCESSOR.tokenizer.eos_token_id
    assert [token for token in batch["labels"][0].tolist() if token != -100] == ids[0]
    assert ids[0][-1] == end
    for row, target in enumerate(ids):
        whole = [*prompt, *target]
        length = len(whole) - 1
        assert batch["decoder_input_ids"][row, :length].tolist() == whole[:-1]
        assert batch["labels"][row, :length].tolist() == [*[-100] * 3, *target]
        assert set(batch["labels"][row, length:].tolist()) <= {-100}


def test_the_decoder_inputs_are_those_that_the_model_would_shift_itself() -> None:
    about = problem()
    batch = whisper.decoder_batch([whisper.whisper_tokens("no", PROCESSOR.tokenizer)], about)
    full = batch["labels"].clone()
    full[0, :3] = torch.tensor(about.settings["prompt"][1:])
    features = torch.randn(1, 16, 200)
    made = model()
    with torch.no_grad():
        ours = made(input_features=features, decoder_input_ids=batch["decoder_input_ids"]).logits
        theirs = made(input_features=features, labels=full).logits
    assert torch.equal(ours, theirs)


def test_the_loss_counts_the_transcript_alone() -> None:
    logits, labels = torch.randn(1, 5, 9), torch.tensor([[-100, -100, 3, 4, -100]])
    found = token_loss({"logits": logits}, labels, items=2, label_smoothing=0.0)
    chances = logits.log_softmax(-1)[0]
    assert float(found) == pytest.approx(-float(chances[2, 3] + chances[3, 4]) / 2, rel=1e-5)


@pytest.mark.parametrize("generation", [{"max_new_tokens": 5}, {"max_new_tokens": 5, "num_beams": 2}])
def test_generation_goes_on_from_the_prompt_that_was_trained_with(generation: dict[str, Any]) -> None:
    made, seen = model(), []
    decoder = made.model.decoder
    hook = decoder.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["input_ids"]), with_kwargs=True)
    about = problem(generation, language="de")
    features = torch.randn(2, 16, 200)
    with torch.no_grad():
        tokens = whisper.transcribe(made, features, about)
    hook.remove()
    assert (seen[0] == torch.tensor(about.settings["prompt"])).all()
    assert tokens.shape[0] == 2
    assert tokens.shape[1] <= 5
    if "num_beams" not in generation:
        with torch.no_grad():
            prompt = torch.tensor([about.settings["prompt"]] * 2)
            logits = made(input_features=features, decoder_input_ids=prompt).logits[:, -1]
        logits[:, PROCESSOR.tokenizer.eos_token_id] = -torch.inf  # begin_suppress_tokens of the base
        assert tokens[:, 0].tolist() == logits.argmax(-1).tolist()


def test_what_the_recipe_does_not_say_is_greedy_whatever_the_base_says() -> None:
    made, features = model(), torch.randn(2, 16, 200)
    with torch.no_grad():
        plain = whisper.transcribe(made, features, problem())
        made.generation_config.update(num_beams=3, do_sample=True, temperature=5.0, max_length=20)
        own = made.generation_config
        assert torch.equal(whisper.transcribe(made, features, problem()), plain)
    assert made.generation_config is own
    assert own.num_beams == 3


def test_generation_settings_that_the_base_cannot_do_are_refused() -> None:
    whisper.check_generation(problem({"max_new_tokens": 60}))
    with pytest.raises(InputError, match=r"generation_config\.max_new_tokens = 61: the base writes at most 60 tokens"):
        whisper.check_generation(problem({"max_new_tokens": 61}))
    with pytest.raises(InputError, match=r"generation_config\.num_beams = 0"):
        whisper.check_generation(problem({"num_beams": 0}))


def test_an_old_base_without_language_ids_is_prompted_all_the_same() -> None:
    made, seen = model(), []
    del made.generation_config.lang_to_id, made.generation_config.task_to_id
    made.model.decoder.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"]), with_kwargs=True
    )
    about = problem({"max_new_tokens": 3}, language="de")
    with torch.no_grad():
        whisper.transcribe(made, torch.randn(1, 16, 200), about)
    assert seen[0].tolist() == [about.settings["prompt"]]


def test_a_language_that_the_base_does_not_know_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"processor\.language = germann.*Did you mean 'german'"):
        settings(language="germann")


def test_an_english_only_base_has_neither_language_nor_task() -> None:
    english = {"vocab_size": whisper.ENGLISH_ONLY_VOCABULARY}
    made = whisper.whisper_settings({}, base_config=english, tokenizer=PROCESSOR.tokenizer)
    assert "language" not in made
    assert len(made["prompt"]) == 2
    with pytest.raises(InputError, match=r"processor\.language = de, task = transcribe: the base is English-only"):
        whisper.whisper_settings({"language": "de"}, base_config=english, tokenizer=PROCESSOR.tokenizer)
