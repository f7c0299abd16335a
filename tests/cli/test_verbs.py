"""The command line from outside: exit codes, messages, and what it prints."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.calls import ROOT, Run, refused
from tests.toy import write_recipe, write_reviews

EIGHT = """\
task: text-classification
model: {pretrained_model_name_or_path: %s}
peft_config: {peft_type: LORA, r: "8", lora_alfa: 16}
quantization_config: {load_in_4bit: true, bnb_4bit_quant_typ: nf4}
dataset:
  data_files: {train: data/train.csv, validation: data/dev.csv}
  columns: {text: text, label: sentiment}
processor: {max_lenght: 32}
training_args:
  output_dir: run
  learning_rate: "1e-4"
  metric_for_best_model: bleu
  num_epochs: 3
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_recipe(folder, tiny_bert)
    subprocess.run([sys.executable, "-m", "lora_ft", "train", str(recipe)], check=True, cwd=ROOT, capture_output=True)
    return folder / "run" / "adapter"


def test_eight_mistakes_come_in_one_report_in_half_a_second_without_torch(tmp_path: Path) -> None:
    write_reviews(tmp_path / "data" / "train.csv", 8, seed=1)
    write_reviews(tmp_path / "data" / "dev.csv", 8, seed=2)
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(EIGHT % "org/base", encoding="utf-8")
    seconds, told = [], ""
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        (told,) = refused(["check", recipe])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for words in (
        "peft_config.r", "lora_alfa", "'lora_alpha'", "bnb_4bit_quant_typ", "'bnb_4bit_quant_type'", "sentiment",
        "max_lenght", "'max_length'", "learning_rate", "bleu", "num_epochs", "'num_train_epochs'",
    ):  # fmt: skip
        assert words in told, f"{words} not in:\n{told}"
    assert "9 faults" in told, "the label column is missing in two files"
    assert f"{recipe}:3:" in told
    assert min(seconds) < 0.5, f"{min(seconds):.2f} CPU seconds (wall time is that of a busy test machine)"


def test_a_wrong_verb_and_a_missing_recipe_end_with_two(run: Run, tmp_path: Path) -> None:
    assert run("trian")[0] == 2
    code, _, error = run("check", tmp_path / "absent.yaml")
    assert code == 2
    assert "absent.yaml" in error
    assert "Traceback" not in error


def test_init_gives_a_recipe_and_schema_gives_json(run: Run) -> None:
    code, text, _ = run("init", "text-classification")
    assert code == 0
    assert "task: text-classification" in text
    assert json.loads(run("schema")[1])["properties"]["task"]
    assert "text_pair" in run("tasks")[1]


def test_predict_keeps_the_order_of_texts_files_and_streams(run: Run, adapter: Path, tmp_path: Path) -> None:
    texts = [
        "the book was great",
        "awful pan",
        "this cable is perfect",
        "this shirt broke and the day was awful",
    ]
    code, out, _ = run("predict", adapter, *texts, "--offline", "--batch-size", 2)
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    assert [answer["label"] for answer in answers] == ["positive", "negative", "positive", "negative"]
    assert set(answers[0]) == {"text", "label", "score", "scores"}

    streamed = run("predict", adapter, "--input", "-", "--offline", stdin="\n".join(texts) + "\n")[1]
    assert [json.loads(line)["label"] for line in streamed.splitlines()] == [answer["label"] for answer in answers]

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts), encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    assert run("predict", adapter, "--input", file, "--output", output, "--offline")[0] == 0
    assert [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()] == texts


def test_evaluate_prints_base_and_adapter_side_by_side(run: Run, adapter: Path, tmp_path: Path) -> None:
    code, out, _ = run("evaluate", adapter, "--offline", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["rows"] == 32
    assert report["adapter"]["accuracy"] > report["base"]["accuracy"] == 0.5
    low, high = report["interval_95"]["accuracy"]
    assert low <= report["adapter"]["accuracy"] <= high
    rows = write_reviews(tmp_path / "new.csv", 12, seed=9)
    predictions = tmp_path / "p.jsonl"
    code, out, _ = run("evaluate", adapter, "--data", rows, "--offline", "--predictions", predictions)
    assert code == 0
    assert "12 rows" in out
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [line["reference"] for line in lines[:2]] == ["negative", "positive"]


def test_verify_show_and_list_say_what_an_adapter_is(run: Run, adapter: Path) -> None:
    code, out, _ = run("verify", adapter, "--offline")
    assert code == 0
    assert "verified" in out
    assert "text-classification" in run("show", adapter)[1]
    assert json.loads(run("show", adapter, "--json")[1])["labels"] == ["negative", "positive"]
    assert "text-classification" in run("list", adapter.parent.parent)[1]


def test_a_damaged_adapter_is_refused_with_two_and_no_traceback(run: Run, adapter: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    weights = copy / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    code, _, error = run("predict", copy, "text", "--offline")
    assert code == 2
    assert "adapter_model.safetensors" in error
    assert "Traceback" not in error


def test_predict_wants_texts_or_an_input_but_not_both(run: Run, adapter: Path) -> None:
    assert run("predict", adapter)[0] == 2
    assert run("predict", adapter, "text", "--input", "-")[0] == 2
    code, _, error = run("predict", adapter, ROOT / "README.md")
    assert code == 2
    assert "--input" in error


def test_an_adapter_for_pairs_refuses_single_texts_and_reads_pairs(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    pairs = {"columns": {"text": "text", "text_pair": "other", "label": "label"}}
    recipe = write_recipe(tmp_path, tiny_bert, dataset=pairs, training_args={"num_train_epochs": 1})
    for split in ("train", "dev"):
        lines = [f"good book,{('good', 'bad')[i % 2]} pan {i},{('yes', 'no')[i % 2]}" for i in range(16)]
        (tmp_path / "data" / f"{split}.csv").write_text("text,other,label\n" + "\n".join(lines), encoding="utf-8")
    assert run("train", recipe)[0] == 0
    adapter = tmp_path / "run"
    code, _, error = run("predict", adapter, "good book", "--offline")
    assert code == 2
    assert "text and text_pair" in error
    line = json.dumps({"text": "good book", "text_pair": "bad pan"})
    code, out, _ = run("predict", adapter, "--input", "-", "--offline", stdin=line + "\n")
    assert code == 0
    assert json.loads(out)["label"] in ("yes", "no")


def test_an_output_folder_that_cannot_be_made_is_one_message(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    code, _, error = run("train", write_recipe(tmp_path, tiny_bert), "training_args.output_dir=/proc/absent/run")
    assert code == 2
    assert "cannot be" in error
    assert "Traceback" not in error


def test_an_adapter_that_is_there_needs_overwrite_and_says_so_before_torch_is_imported(adapter: Path) -> None:
    recipe = adapter.parent.parent / "recipe.yaml"
    (told,) = refused(["train", recipe])
    assert "--overwrite" in told


def test_an_adapter_that_is_finished_is_not_trained_again(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1})
    code, out, _ = run("train", str(file), "--auto-resume")
    assert code == 0
    assert "finished already" not in out
    made = (tmp_path / "run" / "adapter" / "manifest.json").read_bytes()
    code, out, _ = run("train", str(file), "--auto-resume")
    assert code == 0
    assert out.startswith("finished already: ")
    assert (tmp_path / "run" / "adapter" / "manifest.json").read_bytes() == made
    code, _, error = run("train", str(file), "peft_config.r=2", "--auto-resume")
    assert code == 2
    assert "was made by another recipe (peft_config.r: 4 then, 2 now)" in error
    code, _, error = run("train", str(file), "--auto-resume", "--overwrite")
    assert code == 2
    assert "Give one of them" in error


def test_resume_without_a_checkpoint_is_refused(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    code, _, error = run("train", write_recipe(tmp_path, tiny_bert), "--resume")
    assert code == 2
    assert "no checkpoint to resume from" in error
