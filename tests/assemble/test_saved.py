"""An adapter folder is opened only when files, base, tensors and probe are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import AdapterError, AdapterRefused
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.toy import read, write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    recipe = write_recipe(tmp_path_factory.mktemp("saved"), tiny_bert, training_args={"num_train_epochs": 2})
    return train(read(recipe), RunOptions()).folder


@pytest.mark.parametrize("quantization", ["as-trained", "none", "nf4", "fp4", "int8"])
def test_a_right_adapter_is_never_refused_however_its_base_is_loaded(folder: Path, quantization: str) -> None:
    opened = open_adapter(folder, OpenOptions(offline=True, quantization=quantization))  # type: ignore[arg-type]
    assert isinstance(opened, SavedAdapter)
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())


def test_a_right_adapter_opens_in_bf16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_ft.assemble import saved
    from lora_ft.models.precision import Precision

    emulated = Precision(device="cpu", compute_dtype=torch.bfloat16, autocast=True)
    monkeypatch.setattr(saved, "plan_precision", lambda **wishes: emulated)
    opened = open_adapter(folder, OpenOptions(offline=True))
    assert opened.precision.name == "bfloat16"


def test_the_run_folder_stands_for_its_adapter(folder: Path) -> None:
    assert open_adapter(folder.parent, OpenOptions(offline=True)).folder == folder


def test_a_base_that_moved_is_given_by_hand(folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_bert, moved)
    open_adapter(folder, OpenOptions(base=str(moved), offline=True))


def test_a_base_of_the_same_shape_with_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=7)
    with pytest.raises(AdapterRefused, match="weights"):
        open_adapter(folder, OpenOptions(base=str(other), offline=True))


def test_a_base_with_another_tokenizer_is_refused(folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    file = other / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"lowercase": true', '"lowercase": false'), encoding="utf-8")
    with pytest.raises(AdapterRefused, match="tokenizer"):
        open_adapter(folder, OpenOptions(base=str(other), offline=True))


def test_a_folder_without_an_adapter_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        open_adapter(tmp_path / "absent", OpenOptions(offline=True))
