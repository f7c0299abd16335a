"""A whole run on a toy problem: it learns, writes one folder, and leaves the base as it was."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import AdapterError, AdapterRefused, GateError, Interrupted, RecipeError
from lora_ft.train.run import RunOptions, TrainResult, train
from lora_ft.train.trainer import AdapterTrainer
from tests.bases import make_base
from tests.toy import read, write_recipe


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def assert_same_tensors(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[TrainResult, dict[str, str], Path]:
    before = digests(tiny_bert)
    folder = tmp_path_factory.mktemp("toy")
    result = train(read(write_recipe(folder, tiny_bert)), RunOptions(command="lora-ft train recipe.yaml"))
    return result, before, tiny_bert


def test_a_run_learns_and_says_so(trained: tuple[TrainResult, dict[str, str], Path]) -> None:
    result, _, _ = trained
    assert result.metrics["validation"]["accuracy"] >= 0.9
    assert result.learned is True
    assert result.main_metric == "f1_macro"
    assert result.manifest is not None
    assert result.manifest.labels == ("negative", "positive")
    assert result.manifest.run["baseline"]["validation"]["accuracy"] == 0.5


def test_the_files_of_the_base_are_byte_identical_afterwards(
    trained: tuple[TrainResult, dict[str, str], Path],
) -> None:
    _, before, base = trained
    assert digests(base) == before


def test_the_folder_holds_what_the_design_says_and_no_base(
    trained: tuple[TrainResult, dict[str, str], Path],
) -> None:
    result, _, base = trained
    names = {file.name for file in result.folder.iterdir()}
    expected = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
        "manifest.json",
        "metrics.json",
    }
    assert expected | {"README.md", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    assert (result.folder / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size
    assert json.loads((result.folder / "metrics.json").read_text())["learned"] is True


def test_plain_peft_gives_the_same_logits(trained: tuple[TrainResult, dict[str, str], Path]) -> None:
    result, _, base = trained
    opened = open_adapter(result.folder, OpenOptions(offline=True))
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    plain = peft.PeftModel.from_pretrained(plain, result.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.folder)
    batch = tokenizer(["the book was great", "awful pan"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, opened.model(**batch).logits)


def test_the_recipe_in_the_folder_trains_the_same_adapter_again(
    trained: tuple[TrainResult, dict[str, str], Path], tmp_path: Path
) -> None:
    result, _, _ = trained
    again = read(result.folder / "recipe.yaml", f"training_args.output_dir={tmp_path / 'again'}")
    second = train(again, RunOptions())
    assert_same_tensors(second.folder, result.folder)


def test_an_adapter_that_is_there_is_not_overwritten_without_being_told(
    trained: tuple[TrainResult, dict[str, str], Path],
) -> None:
    result, _, _ = trained
    recipe = read(result.folder / "recipe.yaml")
    with pytest.raises(AdapterError, match="--overwrite"):
        train(recipe, RunOptions())


def test_what_does_not_verify_never_takes_the_place_of_an_adapter(
    trained: tuple[TrainResult, dict[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _, _ = trained
    before = digests(result.folder)

    def refuse(folder: Path) -> None:
        assert folder != result.folder, "it was verified after it took the place of the other"
        raise AdapterRefused("not what was meant")

    monkeypatch.setattr("lora_ft.train.save.verify_files", refuse)
    short = read(result.folder / "recipe.yaml", "training_args.num_train_epochs=1")
    with pytest.raises(AdapterRefused, match="not what was meant"):
        train(short, RunOptions(overwrite=True))
    assert digests(result.folder) == before


def test_another_base_of_the_same_shape_is_refused(
    trained: tuple[TrainResult, dict[str, str], Path], tmp_path: Path
) -> None:
    result, _, _ = trained
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(AdapterRefused, match="weights"):
        open_adapter(result.folder, OpenOptions(base=str(other), offline=True))


def test_a_run_that_learns_nothing_says_so(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1})
    for split, rows in (
        ("train", 32),
        ("dev", 16),
    ):  # the same text under both labels: nothing can be learned
        lines = [f"the book,{('good', 'bad')[index % 2]}" for index in range(rows)]
        (tmp_path / "data" / f"{split}.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    result = train(read(file), RunOptions())
    assert result.learned is False
    assert result.manifest is not None
    assert result.manifest.learned is False


def test_a_loss_that_is_not_finite_stops_the_run_and_writes_no_adapter(tmp_path: Path, tiny_bert: Path) -> None:
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    recipe = read(write_recipe(tmp_path, tiny_bert, training_args=wild))
    with pytest.raises(GateError, match="not finite"):
        train(recipe, RunOptions())
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_adapter_that_never_moved_is_not_written(tmp_path: Path, tiny_bert: Path) -> None:
    only_warmup = {"max_steps": 1, "warmup_steps": 1}  # the learning rate of the one step is 0
    recipe = read(write_recipe(tmp_path, tiny_bert, training_args=only_warmup))
    with pytest.raises(GateError, match="all zero"):
        train(recipe, RunOptions())
    assert not (tmp_path / "run" / "adapter").exists()


def test_more_processes_asked_for_than_started_stops_the_run(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(GateError, match="2 processes were asked for, 1 started"):
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions(asked_world_size=2))


def test_a_metric_of_another_problem_type_is_refused_before_the_model(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"metric_for_best_model": "pearsonr"})
    with pytest.raises(RecipeError, match="f1_macro"):
        train(read(file), RunOptions())


def test_data_without_a_validation_split_trains_unmeasured_and_early_stopping_is_refused(
    tmp_path: Path, tiny_bert: Path
) -> None:
    file = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1})
    rows = datasets.Dataset.from_csv(str(tmp_path / "data" / "train.csv"), cache_dir=str(tmp_path / "cache"))
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    content = {**json.loads(file.read_text(encoding="utf-8")), "dataset": {"path": "saved"}}
    file.write_text(json.dumps(content), encoding="utf-8")
    result = train(read(file), RunOptions())
    assert result.metrics == {}
    assert result.learned is None
    with pytest.raises(RecipeError, match="early_stopping: the data has no validation split"):
        train(read(file, "early_stopping.early_stopping_patience=2"), RunOptions(overwrite=True))


def test_wishes_that_do_not_fit_the_labels_are_refused_before_the_model(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert, loss={"class_weight": "balanced"})
    for split in ("train", "dev"):
        (tmp_path / "data" / f"{split}.csv").write_text("text,label\ngood,1.5\nbad,0.5\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"loss\.class_weight.*no classes to weigh"):
        train(read(file), RunOptions())


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(
        tmp_path,
        tiny_bert,
        training_args={"num_train_epochs": 12},
        early_stopping={"early_stopping_patience": 1},
    )
    result = train(read(file), RunOptions())
    assert result.manifest is not None
    assert result.manifest.run["epochs"] < 12


def test_ctrl_c_saves_a_checkpoint_and_resume_ends_with_the_adapter_of_a_whole_run(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(read(write_recipe(tmp_path / "whole", tiny_bert)), RunOptions())
    file = write_recipe(tmp_path / "cut", tiny_bert, training_args={"save_total_limit": 1})
    with pytest.raises(AdapterError, match="no checkpoint"):
        train(read(file), RunOptions(resume=True))
    monkeypatch.setattr(AdapterTrainer, "training_step", interrupted_at(23))
    with pytest.raises(Interrupted, match="SIGINT: ended after step 24 of 64"):
        train(read(file), RunOptions())
    monkeypatch.undo()
    assert (tmp_path / "cut" / "run" / "checkpoint-24").is_dir()
    assert not (tmp_path / "cut" / "run" / "adapter").exists()
    with pytest.raises(AdapterError, match="--resume to go on"):
        train(read(file), RunOptions())
    with pytest.raises(AdapterError, match=r"peft_config.r: 4 then, 2 now"):
        train(read(file, "peft_config.r=2"), RunOptions(resume=True))
    resumed = train(read(file), RunOptions(resume=True))
    assert_same_tensors(resumed.folder, whole.folder)


def interrupted_at(step: int) -> Any:
    """A training step that gets a Ctrl-C, as a user would send it, in the middle of a run."""
    whole_step = AdapterTrainer.training_step

    def training_step(trainer: AdapterTrainer, *arguments: Any) -> torch.Tensor:
        if trainer.state.global_step == step:
            signal.raise_signal(signal.SIGINT)
        return whole_step(trainer, *arguments)

    return training_step


@pytest.mark.parametrize("name", ["loraplus", "lorafa"])
def test_pefts_own_optimizers_train(tmp_path: Path, tiny_bert: Path, name: str) -> None:
    rate = 4e-3 if name == "loraplus" else 2e-2
    file = write_recipe(tmp_path, tiny_bert, optimizer={"name": name}, training_args={"learning_rate": rate})
    result = train(read(file), RunOptions())
    assert result.metrics["validation"]["accuracy"] > 0.7


def test_adalora_takes_ranks_away_as_it_plans(tmp_path: Path, tiny_bert: Path) -> None:
    plan = {"peft_type": "ADALORA", "init_r": 6, "target_r": 2, "tinit": 4, "tfinal": 20, "deltaT": 2}
    file = write_recipe(tmp_path, tiny_bert)
    content = json.loads(file.read_text(encoding="utf-8"))
    content["peft_config"] = {**plan, "target_modules": "all-linear"}
    file.write_text(json.dumps(content), encoding="utf-8")
    result = train(read(file), RunOptions())
    saved = json.loads((result.folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = [sum(kept) for kept in saved["rank_pattern"].values()]
    assert ranks
    assert sum(ranks) < 6 * len(ranks)


def test_a_device_with_native_bf16_trains_in_it_and_keeps_what_trains_in_fp32(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ft.models.precision._has_bf16", lambda device: True)  # this machine emulates it
    file = write_recipe(tmp_path, tiny_bert)
    file.write_text(file.read_text(encoding="utf-8").replace('"use_cpu": true,', ""), encoding="utf-8")
    result = train(read(file), RunOptions())
    assert result.manifest is not None
    assert result.manifest.precision == "bfloat16"
    assert {tensor.dtype for tensor in result.manifest.tensors.values()} == {"F32"}
    assert result.metrics["validation"]["accuracy"] > 0.8
    assert open_adapter(result.folder, OpenOptions(offline=True)).precision.name == "bfloat16"


def test_class_weights_neftune_and_label_smoothing_work_together(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(
        tmp_path,
        tiny_bert,
        loss={"class_weight": {"negative": 2.0}},
        training_args={
            "label_smoothing_factor": 0.1,
            "neftune_noise_alpha": 5,
            "gradient_accumulation_steps": 2,
        },
    )
    assert train(read(file), RunOptions()).metrics["validation"]["accuracy"] > 0.8


def test_a_gpt_base_without_pad_token_trains_without_growing_its_embedding(tmp_path: Path, tiny_gpt2: Path) -> None:
    result = train(read(write_recipe(tmp_path, tiny_gpt2)), RunOptions())
    assert result.metrics["validation"]["accuracy"] > 0.8
    assert result.manifest is not None
    assert not any("wte" in name for name in result.manifest.tensors)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_trains_evaluates_each_epoch_and_opens_unquantised(
    tmp_path: Path, tiny_bert: Path, kind: str
) -> None:
    settings = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    file = write_recipe(tmp_path, tiny_bert, quantization_config=settings)
    result = train(read(file), RunOptions())
    assert result.metrics["validation"]["accuracy"] > 0.8
    assert result.manifest is not None
    assert result.manifest.quantization == kind
    open_adapter(result.folder, OpenOptions(offline=True))
    open_adapter(result.folder, OpenOptions(offline=True, quantization="none"))
