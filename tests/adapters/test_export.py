"""Requests that cannot be met are refused with what would do instead, and nothing of a user's is ever replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lora_ft.adapters import export
from lora_ft.adapters.export import check_apart, check_dtype, check_onnx, check_output, check_request
from lora_ft.adapters.verify import read_manifest
from lora_ft.errors import AdapterError, InputError


def test_a_format_that_does_not_exist_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"--format onx: no such format\. Did you mean 'onnx'\? Expected one of safe"):
        check_request("onx", dtype=None)
    with pytest.raises(InputError, match=r"--dtype bf61: no such dtype\. Did you mean 'bf16'\? Expected --dtype bf16"):
        check_request("adapter", dtype="bf61")
    with pytest.raises(InputError, match=r"--dtype is missing\. Expected --dtype bf16 or --dtype int8"):
        check_request("adapter", dtype=None)
    with pytest.raises(InputError, match="only --format adapter has a dtype"):
        check_request("onnx", dtype="bf16")
    for name in export.FORMATS:
        check_request(name, dtype="int8" if name == "adapter" else None)


def test_only_exports_are_overwritten(tmp_path: Path) -> None:
    adapter, photos, old = (tmp_path / name for name in ("adapter", "photos", "old"))
    for folder in (adapter, photos, old):
        folder.mkdir()
    (photos / "cat.jpg").write_text("")
    (old / "export.json").write_text("{}")
    check_output(tmp_path / "new", overwrite=False, adapter=adapter)
    check_output(old, overwrite=True, adapter=adapter)
    with pytest.raises(AdapterError, match=r"is no export \(it has no export.json\); it is never deleted"):
        check_output(photos, overwrite=True, adapter=adapter)
    with pytest.raises(AdapterError, match="there is an export already"):
        check_output(old, overwrite=False, adapter=adapter)
    with pytest.raises(AdapterError, match="exists and is no folder"):
        check_output(photos / "cat.jpg", overwrite=True, adapter=adapter)
    (tmp_path / "link").symlink_to(old)
    with pytest.raises(AdapterError, match="exists and is no folder"):
        check_output(tmp_path / "link", overwrite=True, adapter=adapter)


@pytest.mark.parametrize("output", ["adapter", "adapter/inside", ".", "link"])
def test_an_export_never_goes_into_its_adapter_or_around_it(output: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="lie in one another"):
        check_apart(tmp_path / output, tmp_path / "adapter")


@pytest.mark.parametrize("task", ["text-generation", "preference-tuning", "text2text-generation", "object-detection"])
def test_what_does_not_go_into_a_graph_says_what_to_use(written: Path, task: str, tmp_path: Path) -> None:
    manifest = replace(read_manifest(written), task=task)
    with pytest.raises(AdapterError, match=rf"a {task} adapter is not exported to ONNX: .* Use --format "):
        check_onnx(manifest, where=tmp_path)


def test_whisper_is_not_exported_but_ctc_is(written: Path, tmp_path: Path) -> None:
    manifest = replace(read_manifest(written), task="automatic-speech-recognition")
    check_onnx(replace(manifest, problem_type="ctc"), where=tmp_path)
    with pytest.raises(AdapterError, match="encoder and decoder take turns"):
        check_onnx(replace(manifest, problem_type="seq2seq"), where=tmp_path)


def test_a_missing_package_names_the_extra(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(
        InputError, match=r"needs no_such_runtime, not installed here: pip install -c constraints.txt -e '.\[export\]'"
    ):
        check_onnx(read_manifest(written), where=tmp_path)


def test_int8_is_for_lora_and_for_what_is_not_rounded_yet(written: Path, tmp_path: Path) -> None:
    manifest = read_manifest(written)
    check_dtype(manifest, dtype="int8", where=tmp_path)
    check_dtype(replace(manifest, peft_type="IA3"), dtype="bf16", where=tmp_path)
    with pytest.raises(AdapterError, match=r"matrices A and B of LORA, this is IA3. Use --dtype bf16"):
        check_dtype(replace(manifest, peft_type="IA3"), dtype="int8", where=tmp_path)
    rounded = replace(manifest, run={**manifest.run, "compression": {"dtype": "int8"}})
    with pytest.raises(AdapterError, match="stored in int8 already; rounding twice adds up"):
        check_dtype(rounded, dtype="bf16", where=tmp_path)
