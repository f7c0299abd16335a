"""`lora-ft export` from outside: what is printed, exit codes, and that it is refused before torch is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.train.run import RunOptions, train
from tests.adapters.build import snapshot
from tests.cli.calls import Run, refused
from tests.toy import read, write_recipe


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    recipe = write_recipe(tmp_path_factory.mktemp("export"), tiny_bert, training_args={"num_train_epochs": 1})
    return train(read(recipe), RunOptions()).folder


@pytest.fixture
def run(run: Run) -> Run:
    def call(adapter: Path, name: str, output: Path, *more: object) -> tuple[int, str, str]:
        return run("export", adapter, "--format", name, "--output", output, "--offline", "--device", "cpu", *more)

    return call


def test_onnx_prints_and_records_the_largest_difference(run: Run, adapter: Path, tmp_path: Path) -> None:
    code, out, err = run(adapter, "onnx", tmp_path / "graph")
    assert code == 0, err
    record = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert (
        f"onnxruntime and torch differ by {record['parity']['largest_difference']:.1e} at most, over 9 batches" in out
    )
    assert "input_ids [batch, sequence]" in out


def test_safetensors_is_read_by_plain_transformers(run: Run, adapter: Path, tmp_path: Path, tiny_bert: Path) -> None:
    before = snapshot(tiny_bert)
    code, out, err = run(adapter, "safetensors", tmp_path / "merged")
    assert code == 0, err
    assert "AutoModelForSequenceClassification in float32, read back by plain transformers" in out
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert list(model.config.id2label.values()) == ["negative", "positive"]
    assert snapshot(tiny_bert) == before
    code, _, err = run(adapter, "safetensors", tmp_path / "merged")
    assert code == 2 and "--overwrite" in err


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_smaller_adapter_prints_every_metric_and_works_as_one(
    run: Run, adapter: Path, tmp_path: Path, dtype: str
) -> None:
    code, out, err = run(adapter, "adapter", tmp_path / "small", "--dtype", dtype)
    assert code == 0, err
    assert f"{dtype}; 32 rows of validation" in out.replace("\n", " ")
    for words in ("accuracy", "f1/positive", "bytes", "probe, largest value"):
        assert words in out
    opened = open_adapter(tmp_path / "small", OpenOptions(offline=True, device="cpu"))
    assert opened.manifest.run["compression"]["metrics"]["accuracy"][0] == pytest.approx(
        opened.manifest.metrics["validation"]["accuracy"]
    )


def test_rows_that_are_gone_are_said(run: Run, adapter: Path, tmp_path: Path) -> None:
    import shutil

    moved = Path(shutil.copytree(adapter.parent.parent, tmp_path / "moved")) / adapter.relative_to(adapter.parents[1])
    gone = adapter.parents[1] / "data"
    gone.rename(gone.with_name("elsewhere"))
    try:
        code, out, err = run(moved, "adapter", tmp_path / "small", "--dtype", "bf16")
    finally:
        gone.with_name("elsewhere").rename(gone)
    assert code == 0, err
    assert "bf16; no metric" in out and "accuracy" not in out
    code, out, err = run(
        moved, "adapter", tmp_path / "small", "--dtype", "bf16", "--overwrite", "--data", gone / "dev.csv"
    )
    assert code == 0 and "accuracy" in out, err


def test_a_server_refuses_an_encoder_with_every_reason(run: Run, adapter: Path, tmp_path: Path) -> None:
    code, _, err = run(adapter, "vllm", tmp_path / "served")
    assert code == 2
    for words in ("its task is text-classification", "modules_to_save = ['classifier']", "the base is a bert"):
        assert words in err
    assert not (tmp_path / "served").exists()


def test_what_the_files_tell_is_refused_without_torch(adapter: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "export.json").write_text("{}")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    cases = [
        ([adapter, "--format", "onx", "--output", tmp_path / "x"], "Did you mean 'onnx'?"),
        ([adapter, "--format", "onnx", "--output", full], "there is an export already"),
        ([adapter, "--format", "safetensors", "--output", full], "it is never deleted"),
        ([adapter, "--format", "lorax", "--output", tmp_path / "x"], "LoRAX cannot load this adapter"),
        ([damaged, "--format", "onnx", "--output", tmp_path / "x"], "manifest.json"),
        ([adapter, "--format", "adapter", "--dtype", "int4", "--output", tmp_path / "x"], "Did you mean 'int8'?"),
    ]
    told = refused(*(["export", *words] for words, _ in cases))
    for said, (_, message) in zip(told, cases, strict=True):
        assert message in said
    assert sorted(one.name for one in tmp_path.iterdir()) == ["damaged", "full"]


def test_a_smaller_adapter_is_exported_as_its_original_would_be(run: Run, adapter: Path, tmp_path: Path) -> None:
    assert run(adapter, "adapter", tmp_path / "small", "--dtype", "int8")[0] == 0
    for name in ("onnx", "safetensors"):
        code, _, err = run(tmp_path / "small", name, tmp_path / name)
        assert code == 0, err
    code, _, err = run(tmp_path / "small", "adapter", tmp_path / "smaller", "--dtype", "bf16")
    assert code == 2 and "stored in int8 already" in err
