"""One adapter folded into its base: a plain checkpoint that answers as the adapter does, and says how far it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_ft.adapters.merge_plan import MERGED, read_sources
from lora_ft.assemble import merged as room
from lora_ft.assemble.combined import asking, open_sources
from lora_ft.assemble.merged import Folded, Unmerged, fold, probe_answers, remember, write_merged
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import AdapterError, RunError
from lora_ft.evaluate.merge_search import validation_rows
from lora_ft.models.weights import stored_tensors
from lora_ft.recipe.schema import TaskFacts
from lora_ft.tasks.base import load_task, task_names
from lora_ft.tasks.question_answering import QuestionAnswering
from lora_ft.train.run import RunOptions, train
from tests.adapters.build import snapshot
from tests.bases import make_base
from tests.toy import read, write_recipe

TASKS: dict[str, TaskFacts] = {name: load_task(name).facts() for name in task_names()}
OFFLINE = OpenOptions(offline=True)
TEXTS = ["the book was great", "awful pan", "this shirt broke and the day was awful"]


def made(root: Path, base: Path, **sections: Any) -> Path:
    recipe = write_recipe(root, base, training_args={"num_train_epochs": 1}, **sections)
    return train(read(recipe), RunOptions()).folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return made(tmp_path_factory.mktemp("plain"), tiny_bert)


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return made(tmp_path_factory.mktemp("qlora"), tiny_bert, quantization_config=nf4)


def folded(adapter: Path) -> tuple[Unmerged, Folded]:
    opened = open_adapter(adapter, OFFLINE)
    rows, why = validation_rows(opened, tasks=TASKS)
    before = remember(opened, rows, why=why)
    return before, fold(before, OFFLINE)


def written(adapter: Path, target: Path, *, overwrite: bool = False) -> dict[str, Any]:
    before, after = folded(adapter)
    (source,) = read_sources([adapter])
    return write_merged(
        target, source=source, before=before, folded=after, metrics={}, command="lora-ft merge", overwrite=overwrite
    )


def test_the_checkpoint_loads_in_plain_transformers_and_answers_as_the_adapter(
    plain: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    base = snapshot(tiny_bert)
    record = written(plain, tmp_path / "merged")
    assert snapshot(tiny_bert) == base, "the base stays as it is"
    assert not [one for one in tmp_path.iterdir() if one.name != "merged"], "no temporary folder is left"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.hidden_dropout_prob == 0.1, "the dropout of the base, not that of the run"
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")(TEXTS, padding=True, return_tensors="pt")
    adapter = open_adapter(plain, OFFLINE).model
    with torch.no_grad():
        difference = model(**batch).logits - adapter(**batch).logits
    assert difference.abs().max() < 1e-5
    assert record["drift"]["unmerged"]["validation"]["max"] < 1e-5
    assert record["drift"]["read_back"]["max"] == 0
    stored = json.loads((tmp_path / "merged" / MERGED).read_text())
    assert stored == record
    assert stored["base"]["fingerprint"]["weights"]
    assert stored["sources"][0]["sha256"]["adapter_model.safetensors"]
    assert "AutoModelForSequenceClassification.from_pretrained" in (tmp_path / "merged" / "README.md").read_text()


def test_a_qlora_adapter_goes_into_the_original_precision_and_its_drift_is_measured(
    qlora: Path, tmp_path: Path
) -> None:
    record = written(qlora, tmp_path / "merged")
    assert record["quantization_of_the_adapter"] == "nf4"
    assert record["dtype"] == "float32"
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "merged")} == {"F32"}
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert record["drift"]["unmerged"]["probe"]["max"] < 1e-5
    for what in ("probe", "validation"):
        assert 1e-3 < record["drift"]["as_trained"][what]["max"] < record["drift"]["as_trained"][what]["scale"]


def test_a_base_in_bf16_stays_in_bf16(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    transformers.AutoModel.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    record = written(made(tmp_path / "run", base), tmp_path / "merged")
    assert record["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "merged")} == {"BF16"}
    drift = record["drift"]["unmerged"]["probe"]
    assert 0 < drift["max"] < 0.05 * max(1.0, drift["scale"])


def test_rows_that_are_gone_are_said_and_the_probe_is_still_measured(tiny_bert: Path, tmp_path: Path) -> None:
    adapter = made(tmp_path / "run", tiny_bert)
    (tmp_path / "run" / "data" / "dev.csv").unlink()
    record = written(adapter, tmp_path / "merged")
    assert "recipe.yaml" in record["not_measured"]
    assert "no such file" in record["not_measured"]
    assert set(record["drift"]["as_trained"]) == {"probe"}


def test_files_that_read_back_otherwise_are_not_kept(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = folded(plain)
    (source,) = read_sources([plain])
    save = type(after.merged.model).save_pretrained

    def damaged(model: Any, folder: Path) -> None:
        with torch.no_grad():
            kept = model.classifier.bias.clone()
            model.classifier.bias += 1
            save(model, folder)
            model.classifier.bias.copy_(kept)

    monkeypatch.setattr(type(after.merged.model), "save_pretrained", damaged)
    with pytest.raises(RunError, match="answers differ by"):
        write_merged(
            tmp_path / "merged", source=source, before=before, folded=after, metrics={}, command="", overwrite=False
        )
    assert not list(tmp_path.iterdir())


def test_an_earlier_merge_is_replaced_only_when_asked(plain: Path, tmp_path: Path) -> None:
    written(plain, tmp_path / "merged")
    first = snapshot(tmp_path / "merged")
    with pytest.raises(AdapterError, match="--overwrite"):
        written(plain, tmp_path / "merged")
    assert snapshot(tmp_path / "merged") == first
    written(plain, tmp_path / "merged", overwrite=True)


def test_answers_that_are_not_finite_stop_the_merge(plain: Path) -> None:
    _, after = folded(plain)
    with torch.no_grad():
        after.merged.model.classifier.bias.fill_(float("nan"))
    answers = probe_answers(replace(after.merged))
    with pytest.raises(RunError, match="not finite"):
        room.drift(answers, after.unmerged_probe)


@pytest.mark.parametrize("wrapped", [False, True])
def test_questions_are_answered_with_the_token_types_that_the_adapter_saw(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peft's wrapper for question answering takes token_type_ids and keeps them from the base; ours goes without it."""
    if wrapped:  # as adapters of plain peft are
        monkeypatch.setattr(QuestionAnswering, "peft_task_type", "QUESTION_ANS")
    base = make_base(tmp_path / "base")
    contexts = [f"the {thing} broke on day {day}" for thing in ("phone", "shirt", "cable") for day in ("one", "two")]
    entry = {
        "paragraphs": [
            {"context": text, "qas": [{"id": text, "question": "what broke", "answers": [_answer(text)]}]}
            for text in contexts
        ]
    }
    for name in ("train", "dev"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": "v2.0", "data": [entry]}))
    recipe = {
        "task": "question-answering",
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": "train.json", "validation": "dev.json"}},
        "processor": {"max_length": 20, "stride": 6, "max_answer_length": 3},
        "training_args": {
            "output_dir": "run", "learning_rate": 1e-2, "num_train_epochs": 4, "report_to": "none", "use_cpu": True,
            "per_device_train_batch_size": 2,
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    adapter = train(read(tmp_path / "recipe.yaml"), RunOptions()).folder
    record = written(adapter, tmp_path / "merged")
    assert record["drift"]["unmerged"]["validation"]["max"] < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    batch = tokenizer("what broke", contexts[0], return_tensors="pt")
    assert ("token_type_ids" in batch) is not wrapped
    opened = open_adapter(adapter, OFFLINE)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        wanted = opened.model(**opened.processor("what broke", contexts[0], return_tensors="pt")).start_logits
        assert (model(**batch).start_logits - wanted).abs().max() < 1e-5
    copy = Path(shutil.copytree(adapter, tmp_path / "copy" / "adapter"))
    with asking(open_sources(read_sources([adapter, copy]), OFFLINE), 1) as shared:
        assert (probe_answers(shared) - probe_answers(opened)).abs().max() < 1e-5


def _answer(text: str) -> dict[str, Any]:
    thing = text.split()[1]
    return {"text": thing, "answer_start": text.index(thing)}


ASKED = {
    "text-generation": {"prompt": "is the cable slow ?"},
    "text2text-generation": {"text": "is the cable slow ?"},
}

SPECIAL = {"text-generation": "<|endoftext|>", "text2text-generation": "</s>"}


@pytest.mark.parametrize("task", ["text-generation", "text2text-generation"])
def test_a_merged_generator_answers_greedily_as_its_adapter_whatever_the_base_does(task: str, tmp_path: Path) -> None:
    stopped = {"max_new_tokens": 9, "stop_strings": ["is slow", SPECIAL[task]]}
    adapter = generator(tmp_path, task, generation_config=stopped)
    record = written(adapter, tmp_path / "merged")
    opened = open_adapter(adapter, OFFLINE)
    auto = getattr(transformers, opened.task.auto_class)
    model = auto.from_pretrained(tmp_path / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    settings = model.generation_config
    assert (settings.do_sample, settings.max_new_tokens, settings.stop_strings) == (False, 9, None)
    assert settings.repetition_penalty in (None, 1.0)
    assert settings.temperature in (None, 1.0)
    assert tokenizer.convert_tokens_to_ids(SPECIAL[task]) in settings.eos_token_id
    assert record["stop_strings"] == ["is slow"]
    assert 'stop_strings=["is slow"], tokenizer=processor' in (tmp_path / "merged" / "README.md").read_text()
    encoded = opened.task.encode({name: [text] for name, text in ASKED[task].items()}, opened.problem)
    ids = torch.tensor(encoded["input_ids"])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        found = model.generate(**inputs)
        batch = opened.task.collator(opened.problem)([{name: values[0] for name, values in encoded.items()}])
        problem = replace(opened.problem, generation={**stopped, "stop_strings": [SPECIAL[task]]})
        ours = opened.task.answer(opened.model, batch, problem, outputs=None)["generated"][0]
    kept = found[0, (1 if task.startswith("text2text") else ids.shape[1]) :].tolist()
    assert kept == [token for token in ours.tolist() if token != -1]


def generator(folder: Path, task: str, **sections: Any) -> Path:
    """A trained adapter on a base that samples wildly of its own accord."""
    answer = {"text-generation": "completion", "text2text-generation": "target"}[task]
    rows = [{**ASKED[task], answer: "the cable is slow and bad"}] * 8
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = make_base(folder / "base", {"text-generation": "llama", "text2text-generation": "t5"}[task])
    file = base / "generation_config.json"
    stored = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**stored, "do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0}))
    recipe = {
        "task": task,
        "offline": True,
        "model": {"pretrained_model_name_or_path": str(base)},
        "peft_config": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
        "dataset": {"data_files": {"train": "train.jsonl", "validation": "dev.jsonl"}},
        "training_args": {
            "output_dir": "run", "learning_rate": 1e-2, "num_train_epochs": 4, "report_to": "none", "use_cpu": True,
            "per_device_train_batch_size": 4, "disable_tqdm": True,
        },
        **sections,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return train(read(folder / "recipe.yaml"), RunOptions()).folder
