"""Weights are safetensors, all there, and as long as their headers say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ft.errors import ModelError
from lora_ft.models.weights import INDEX, SINGLE, stored_dtype, stored_tensors, weight_files


@pytest.fixture
def base(tiny_bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bert, tmp_path / "base")


def test_headers_tell_what_safetensors_loads(base):
    loaded = load_file(base / SINGLE)
    stored = stored_tensors(base)
    assert [tensor.name for tensor in stored] == sorted(loaded)
    content = (base / SINGLE).read_bytes()
    for tensor in stored:
        raw = content[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes]
        assert raw == loaded[tensor.name].numpy().tobytes()
        assert tensor.shape == tuple(loaded[tensor.name].shape)


def test_stored_dtype_is_that_of_most_bytes(tmp_path):
    save_file({"a": torch.zeros(100, dtype=torch.bfloat16), "b": torch.zeros(3)}, tmp_path / SINGLE)
    assert stored_dtype(stored_tensors(tmp_path)) == "BF16"


def test_pickled_weights_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch_model.bin.*safetensors only.*save_pretrained"):
        weight_files(tmp_path)


def test_missing_shards_are_named(base):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (base / SINGLE).rename(base / shards["a"])
    (base / INDEX).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"1 of 2 weight files are missing: model-00002-of-00002.safetensors. The"):
        weight_files(base)


def test_index_cannot_point_outside_of_the_folder(base):
    (base / SINGLE).rename(base / "other.safetensors")
    (base / INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="is not a file of this folder"):
        weight_files(base)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', "{"])
def test_broken_index_is_an_error_of_ours(base, content):
    (base / SINGLE).unlink()
    (base / INDEX).write_text(content)
    with pytest.raises(ModelError, match="not an index of shards"):
        weight_files(base)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_cut_off_file_is_damaged(base, keep):
    content = (base / SINGLE).read_bytes()
    (base / SINGLE).write_bytes(content[:keep])
    with pytest.raises(ModelError, match="the weights are damaged"):
        stored_tensors(base)


def test_header_that_contradicts_itself_is_damaged(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match=r"a: 8 bytes for shape \(3,\) of F32"):
        stored_tensors(tmp_path)
