"""bf16 and int8: how far they round, what they keep, that older readers refuse, and that nothing is misread."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_ft.adapters.compress import compress, expand, float_tensors, from_int8, to_int8
from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.manifest import FORMAT_VERSION
from lora_ft.adapters.tensors import LABELS_KEY, SCALE
from lora_ft.adapters.verify import read_manifest, verify_files, weights_file
from lora_ft.errors import AdapterRefused
from tests.adapters.build import LABELS, load, logits, resign

INT8_FILE = "adapter_model.int8.safetensors"


def pack(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Stores the tensors of a folder in a smaller type, as `export_compressed` does."""
    source = folder / "adapter_model.safetensors"
    stored = compress(load_file(source), dtype=dtype)
    source.unlink()
    target = folder / (INT8_FILE if dtype == "int8" else source.name)
    save_file(stored, target, metadata={"format": "pt", LABELS_KEY: json.dumps(list(LABELS))})
    sign(folder, target.name)
    return stored


def sign(folder: Path, name: str) -> None:
    """Makes the manifest right for a file of that name."""
    from lora_ft.adapters.tensors import read_header
    from lora_ft.adapters.verify import hash_file

    def change(content: dict) -> None:
        content["files"].pop("adapter_model.safetensors", None)
        content["files"][name] = vars(hash_file(folder / name))
        tensors = read_header(folder / name)[0]
        content["tensors"] = {key: {"shape": list(one.shape), "dtype": one.dtype} for key, one in tensors.items()}
        content["format_version"] = FORMAT_VERSION

    stand_in = folder / "adapter_model.safetensors"
    if name != stand_in.name:
        shutil.copyfile(folder / name, stand_in)
    resign(folder, change)
    if name != stand_in.name:
        stand_in.unlink()


@pytest.mark.parametrize("shape", [(4, 64), (64, 4), (4, 4), (4, 8, 3, 3), (16, 4, 1, 1)])
def test_int8_moves_no_element_by_more_than_half_a_step_of_its_component(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rank = min(shape[0], tensor.flatten(1).shape[1])
    by_rows = shape[0] <= tensor.flatten(1).shape[1]
    matrix = tensor.flatten(1) if by_rows else tensor.flatten(1).T
    matrix[0] *= 1000  # a large component must not coarsen the others
    tensor = (matrix if by_rows else matrix.T).reshape(shape).contiguous()
    rounded, scale = to_int8(tensor)
    assert (rounded.dtype, rounded.shape, scale.shape) == (torch.int8, tensor.shape, (rank,))
    back = from_int8(rounded, scale)
    moved = (back - tensor).flatten(1).abs()
    assert (moved <= (scale[:, None] if by_rows else scale[None, :]) * 0.5001).all()
    assert torch.equal(to_int8(back)[0], rounded), "rounding twice is rounding once"


def test_zeros_stay_zeros() -> None:
    rounded, scale = to_int8(torch.zeros(4, 8))
    assert not rounded.any() and torch.equal(from_int8(rounded, scale), torch.zeros(4, 8))
    assert torch.equal(scale, torch.ones(4)), "0 / 0 is no number that a cast to int8 would have to be trusted with"


def test_only_the_matrices_of_lora_go_to_8_bits() -> None:
    tensors = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 8),
        "base_model.model.q.lora_B.weight": torch.randn(8, 2),
        "base_model.model.q.lora_magnitude_vector": torch.randn(8),
        "base_model.model.embed.lora_embedding_A": torch.randn(2, 8),
        "base_model.model.classifier.weight": torch.randn(3, 8),
        "base_model.model.indices": torch.arange(4),
    }
    stored = compress(tensors, dtype="int8")
    types = {name.removeprefix("base_model.model."): one.dtype for name, one in stored.items()}
    assert {name for name, kind in types.items() if kind == torch.int8} == {
        "q.lora_A.weight", "q.lora_B.weight", "embed.lora_embedding_A"
    }  # fmt: skip
    assert types["classifier.weight"] == types["q.lora_magnitude_vector"] == torch.bfloat16
    assert types["indices"] == torch.int64
    assert expand(stored).keys() == tensors.keys()
    assert compress(tensors, dtype="bf16").keys() == tensors.keys()


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_an_adapter_stored_in_fp16_is_stored_as_asked(dtype: str) -> None:
    tensors = {"q.lora_A.weight": torch.ones(2, 8).half(), "classifier.weight": torch.ones(3, 8).half()}
    types = {name: one.dtype for name, one in compress(tensors, dtype=dtype).items()}
    assert torch.float16 not in types.values()
    assert types["classifier.weight"] == torch.bfloat16


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_compressed_folder_is_verified_loaded_and_answers_nearly_as_before(
    adapter: Path, lora: PeftModel, tiny_bert: Path, dtype: str
) -> None:
    stored = pack(adapter, dtype)
    manifest = verify_files(adapter)
    model = attach_saved(load(tiny_bert), adapter, manifest)
    assert all(one.dtype == torch.float32 for one in model.parameters())
    difference = float((logits(model) - logits(lora)).abs().max())
    assert 0 < difference < (0.03 if dtype == "bf16" else 0.1)
    assert weights_file(adapter).stat().st_size < sum(one.nbytes for one in stored.values()) + 10_000


def test_plain_peft_reads_bf16_and_finds_nothing_in_int8(adapter: Path, tiny_bert: Path, tmp_path: Path) -> None:
    packed = Path(shutil.copytree(adapter, tmp_path / "packed"))
    pack(packed, "int8")
    pack(adapter, "bf16")
    ours = attach_saved(load(tiny_bert), adapter, read_manifest(adapter))
    plain = PeftModel.from_pretrained(load(tiny_bert), str(adapter)).eval()
    assert torch.equal(logits(plain), logits(ours))
    with pytest.raises((ValueError, OSError)):
        PeftModel.from_pretrained(load(tiny_bert), str(packed))


def test_attaching_leaves_the_folder_as_it_is(adapter: Path, tiny_bert: Path) -> None:
    from tests.adapters.build import snapshot

    pack(adapter, "int8")
    before = snapshot(adapter)
    attach_saved(load(tiny_bert), adapter, verify_files(adapter))
    assert snapshot(adapter) == before
    assert not any(one.dtype == torch.int8 or SCALE in name for name, one in float_tensors(adapter).items())


def test_int8_without_its_scales_is_refused(adapter: Path) -> None:
    stored = pack(adapter, "int8")
    lost = next(name for name in stored if name.endswith(SCALE))
    rest = {name: one for name, one in stored.items() if name != lost}
    save_file(rest, adapter / INT8_FILE, metadata={"format": "pt", LABELS_KEY: json.dumps(list(LABELS))})
    sign(adapter, INT8_FILE)
    with pytest.raises(AdapterRefused, match=rf"1 tensors in int8 have no scales \(first: {lost.removesuffix(SCALE)}"):
        verify_files(adapter)


def test_an_older_lora_ft_refuses_what_it_would_misread(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(adapter, "int8")
    monkeypatch.setattr("lora_ft.adapters.manifest.FORMAT_VERSION", 2)
    with pytest.raises(AdapterRefused, match="format_version = 4: written by a newer lora_ft"):
        verify_files(adapter)


def test_a_second_file_of_tensors_is_refused(adapter: Path) -> None:
    source = adapter / "adapter_model.safetensors"
    kept = source.read_bytes()
    pack(adapter, "int8")
    source.write_bytes(kept)
    with pytest.raises(AdapterRefused, match=r"not part of the adapter"):
        verify_files(adapter)
