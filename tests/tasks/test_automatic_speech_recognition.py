"""Speech recognition: which base does what, which rows fit, and whole runs from the recipe to the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import DataError, InputError
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import resolve_base
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.audio_examples import tones
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.toy import read
from tests.toy_sounds import TEXTS, write_recipe, write_tone, write_words

TASK = load_task("automatic-speech-recognition")
NAME = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = ("wav2vec2", "hubert", "whisper")
    return {kind: make_base(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


def problem(base: Path, *, texts: tuple[str, ...] = TEXTS, **section: Any) -> Problem:
    from lora_ft.assemble.prepare import base_config

    folder = resolve_base(str(base), revision=None, offline=True)
    config = base_config(folder)
    kind = TASK.problem_type_of(("audio", "text"), base_config=config)
    processor = load_processor(folder, classes=TASK.processor_classes, trust_remote_code=False)
    processor = TASK.fit_processor(processor, [{"text": text} for text in texts], given=section)
    settings = TASK.settings(section, base_config=config, processor=processor, problem_type=kind)
    return Problem(kind, (), processor, settings)


@pytest.mark.parametrize(("family", "kind"), [("whisper", "seq2seq"), ("wav2vec2", "ctc"), ("hubert", "ctc")])
def test_the_family_of_the_base_decides_the_problem_type(family: str, kind: str) -> None:
    assert TASK.problem_type_of(("audio", "text"), base_config={"model_type": family}) == kind
    assert TASK.model_class(kind) == ("AutoModelForSpeechSeq2Seq" if kind == "seq2seq" else "AutoModelForCTC")


def test_a_base_that_is_no_speech_recogniser_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"family 'bert'.*Expected whisper, wav2vec2, hubert"):
        TASK.problem_type_of(("audio", "text"), base_config={"model_type": "bert"})


def test_keys_of_the_other_kind_of_base_are_refused(bases: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"processor\.language, processor\.task: it has no effect.*\(ctc\)"):
        problem(bases["wav2vec2"], language="german", task="transcribe")
    with pytest.raises(InputError, match=r"processor\.vocabulary: it has no effect.*\(seq2seq\)"):
        problem(bases["whisper"], vocabulary="data")


def test_rows_that_cannot_be_learned_are_named_with_the_reason(bases: dict[str, Path], tmp_path: Path) -> None:
    (sound,) = tones(["yes"])  # 0.4 s, 20 frames
    ctc, whisper = problem(bases["hubert"]), problem(bases["whisper"])
    assert TASK.fault({"audio": sound, "text": "yes"}, labels=()) is None
    assert TASK.misfit({"audio": sound, "text": "yes"}, ctc) is None
    assert TASK.misfit({"audio": sound}, ctc) is None
    assert "text: it is empty" in str(TASK.fault({"audio": sound, "text": ""}, labels=()))
    assert "audio: " in str(TASK.fault({"audio": {"path": "none.wav", "bytes": None}, "text": "a"}, labels=()))
    long = "text: 23 frames at least for 23 characters, the sound has 20"
    assert TASK.misfit({"audio": sound, "text": "yes no yes no yes no ye"}, ctc) == long
    assert "at least for 12 characters" in str(TASK.misfit({"audio": sound, "text": "n" * 12}, ctc))
    tokens = "text: 73 tokens, and the base writes at most 60"
    assert TASK.misfit({"audio": sound, "text": "no" * 36}, whisper) == tokens
    assert "2.50 s long" in str(TASK.misfit({"audio": write_tone(tmp_path / "l.wav", 2.5), "text": "no"}, whisper))


def test_a_sound_is_never_sped_up_beyond_what_its_transcript_needs(bases: dict[str, Path]) -> None:
    rows = {"audio": tones(["yes"]), "text": ["yes no yes no"]}  # 13 of 20 frames
    about = problem(bases["hubert"])
    wild = Problem(about.problem_type, (), about.processor, about.settings, augmentation={"speed": [1.0, 2.0]}, seed=3)
    for seed in range(20):
        features = TASK.encode(rows, Problem(**{**vars(wild), "seed": seed}), training=True)
        batch = TASK.collator(wild, training=True)([{name: values[0] for name, values in features.items()}])
        from lora_ft.tasks.parts.audio_ctc import frames_of

        assert frames_of(int(batch["samples"][0]), about.settings) >= 13


RUNS = {
    "wav2vec2": {"training_args": {"max_steps": 60}},
    "hubert": {"training_args": {"max_steps": 60}},
    "whisper": {"training_args": {"max_steps": 80}, "generation_config": {"max_new_tokens": 8}},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_learns_its_rows_by_heart_and_the_saved_adapter_predicts_what_was_measured(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    result = train(read(write_recipe(tmp_path, bases[kind], NAME, **RUNS[kind])), RunOptions())
    assert result.metrics["validation"]["wer"] < 0.1
    assert result.learned
    opened = open_adapter(result.folder, OpenOptions(offline=True))
    rows = datasets.Dataset.from_dict({"audio": tones(TEXTS)})
    predictions = opened.predict(rows, batch_size=3)
    references = opened.task.references({"text": list(TEXTS)}, opened.problem)
    scores = opened.task.score(predictions, references, opened.problem)
    assert scores["wer"] == pytest.approx(result.metrics["validation"]["wer"])
    assert [set(one) for one in predictions] == [{"text"}] * 4


def test_bad_rows_are_refused_by_number_or_left_out_and_counted(bases: dict[str, Path], tmp_path: Path) -> None:
    file = write_recipe(tmp_path, bases["hubert"], NAME)
    write_words(tmp_path / "data", "train", [*TEXTS, "yes", "no"])
    (tmp_path / "data" / "train" / "1.wav").write_text("no sound")
    cut = tmp_path / "data" / "train" / "3.wav"
    cut.write_bytes(cut.read_bytes()[:4_000])
    table = (tmp_path / "data" / "train.csv").read_text().replace("train/4.wav,yes", "train/4.wav,...")
    (tmp_path / "data" / "train.csv").write_text(table)
    with pytest.raises(
        DataError,
        match=r"(?s)row 3: audio: .*no sound that libsndfile.*row 5: audio: .*breaks off.*row 6: text: '\.\.\.' has",
    ):
        train(read(file), RunOptions())
    skipping = read(file, "dataset.on_bad_row=skip", "training_args.max_steps=1")
    result = train(skipping, RunOptions())
    assert result.manifest is not None


def test_a_quantised_base_trains_with_augmentation_and_checkpointing(bases: dict[str, Path], tmp_path: Path) -> None:
    file = write_recipe(
        tmp_path, bases["wav2vec2"], NAME,
        quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        augmentation={"speed": [0.9, 1.1], "noise_snr_db": [10, 30], "mask_time_prob": 0.2, "mask_time_length": 4},
        training_args={"max_steps": 3, "gradient_checkpointing": True},
    )  # fmt: skip
    result = train(read(file), RunOptions())
    assert result.manifest is not None
    assert result.manifest.run["steps"] == 3


def test_a_whisper_adapter_says_all_that_it_transcribes_by_whatever_the_base_does(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(bases["whisper"]).eval()
    about = problem(bases["whisper"], language="german")
    features = TASK.encode({"audio": tones(TEXTS)}, about)
    rows = [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
    batch = TASK.collator(about)(rows)
    model.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0)
    with torch.no_grad():
        ours = TASK.answer(model, batch, about, outputs=None)["ids"]
        found = TASK.generation(model, about)
        assert found is not None
        assert (found.config.do_sample, found.config.repetition_penalty, found.config.language) == (False, 1.0, "de")
        found.config.save_pretrained(tmp_path)
        model.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
        mask = torch.ones(batch["input_features"].shape[::2], dtype=torch.long)
        plain = model.generate(input_features=batch["input_features"], attention_mask=mask)
    assert plain.tolist() == ours.tolist()
    assert TASK.generation(model, problem(bases["hubert"])) is None
