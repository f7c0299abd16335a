"""What of the section `lean` ran is in the manifest; what is named off needs not even its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_ft.train.run import RunOptions, TrainResult, train
from tests.toy import read, write_recipe
from tests.train.test_label_loss import run as run_of_task

OPS = ("lora_linear", "byte_dropout", "label_loss", "rms_norm", "swiglu", "pieces")
OFF = ("lean.lora_linear=false",)
DROPOUT = "peft_config.lora_dropout=0.1"


def run(folder: Path, base: Path, *overrides: str) -> TrainResult:
    return train(read(write_recipe(folder, base, training_args={"max_steps": 3}), *overrides), RunOptions())


def facts(result: TrainResult) -> dict[str, Any]:
    assert result.manifest is not None
    return dict(result.manifest.run["lean"])


def test_what_ran_and_what_did_not_is_told(tmp_path: Path, tiny_bert: Path) -> None:
    found = facts(run(tmp_path / "on", tiny_bert, DROPOUT))
    assert found["lora_linear"] > sum(found["lora_groups"]) > 0
    assert found["byte_dropout"] is found["first_token"] is True
    assert found["dequantized_bytes"] == found["checkpointed_layers"] == found["rms_norm"] == found["swiglu"] == 0
    assert found["prefix_cache"] == "off: every row is read once, and nothing is kept"
    named = ("lean.byte_dropout=false", "lean.first_token=false", "lean.prefix_cache=false")
    off = facts(run(tmp_path / "off", tiny_bert, DROPOUT, *named))
    assert off["byte_dropout"] is False
    assert off["first_token"] == "off: lean.first_token is false"
    assert off["prefix_cache"] == "off: lean.prefix_cache is false"


@pytest.mark.slow
def test_weights_that_stay_dequantised_are_counted(tmp_path: Path, tiny_bert: Path) -> None:
    nf4 = "quantization_config={load_in_4bit: true, bnb_4bit_quant_type: nf4}"
    assert facts(run(tmp_path / "kept", tiny_bert, nf4))["dequantized_bytes"] > 0
    assert facts(run(tmp_path / "not", tiny_bert, nf4, "lean.dequantized_gb=0.0"))["dequantized_bytes"] == 0


def text_generation(folder: Path, **lean: bool) -> TrainResult:
    folder.mkdir()
    return run_of_task(folder, "text-generation", lean=lean, peft_config={})


def weights(result: TrainResult) -> dict[str, Any]:
    return load_file(result.folder / "adapter_model.safetensors")


def test_blocks_of_a_decoder_are_counted_and_teach_what_its_own_do(tmp_path: Path) -> None:
    ours, own = text_generation(tmp_path / "on"), text_generation(tmp_path / "off", rms_norm=False, swiglu=False)
    assert (facts(ours)["rms_norm"], facts(ours)["swiglu"]) == (5, 2)
    assert facts(own)["rms_norm"] == "off: lean.rms_norm is false"
    assert facts(own)["swiglu"] == "off: lean.swiglu is false"
    others = weights(own)
    for name, tensor in weights(ours).items():
        assert float((tensor - others[name]).abs().max()) < 1e-5, name


def test_a_decoder_learns_without_the_files_of_what_is_named_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"lora_linear": False, "label_loss": False, "rms_norm": False, "swiglu": False}
    with_files = weights(text_generation(tmp_path / "with", **off))
    take_files_away(monkeypatch)
    without = weights(text_generation(tmp_path / "without", **off))
    assert all((tensor == without[name]).all() for name, tensor in with_files.items())
    for number, name in enumerate(off):
        with pytest.raises(ImportError):
            text_generation(tmp_path / str(number), **{**off, name: True})


def take_files_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on an import of them fails."""
    for name in OPS:
        monkeypatch.setitem(sys.modules, f"lora_ft.ops.{name}", None)
    for name in [one for one in sys.modules if one.startswith("lora_ft.adapters.lean_")]:
        monkeypatch.delitem(sys.modules, name)


def test_without_its_file_what_is_named_off_is_computed_by_peft(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_files = weights(run(tmp_path / "with", tiny_bert, *OFF))
    take_files_away(monkeypatch)
    without = weights(run(tmp_path / "without", tiny_bert, *OFF))
    assert all((tensor == without[name]).all() for name, tensor in with_files.items())
    with pytest.raises(ImportError):
        run(tmp_path / "asked", tiny_bert)
