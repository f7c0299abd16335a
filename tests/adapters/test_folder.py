"""An adapter folder is written at once or not at all, and comes back as it was."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from transformers import BitsAndBytesConfig

from lora_ft.adapters import folder as room
from lora_ft.adapters import state as state_room
from lora_ft.adapters.folder import attach_saved, write_adapter
from lora_ft.adapters.probe import check_probe
from lora_ft.adapters.state import refuse_base_weights
from lora_ft.adapters.verify import find_adapters, resolve_adapter, verify_files
from lora_ft.errors import AdapterError
from tests.adapters.build import HEADS, forward, load, logits, manifest_for, snapshot, train, trained, write


def test_written_folder_verifies_and_answers_as_before(written, lora, tiny_bert):
    manifest = verify_files(written)
    model = attach_saved(load(tiny_bert, seed=9), written, manifest)
    assert torch.equal(logits(model), logits(lora))
    assert check_probe(model, manifest.probe, forward=forward, precision="float32", quantization=None) == 0
    assert not model.training and not any(one.requires_grad for one in model.parameters())


def test_plain_peft_loads_the_folder_with_equal_logits(written, lora, tiny_bert):
    model = peft.PeftModel.from_pretrained(load(tiny_bert, seed=9), written)
    assert torch.equal(logits(model), logits(lora))


def test_tensors_are_those_of_pefts_own_save(written, lora, tmp_path):
    lora.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = safetensors.torch.load_file(written / "adapter_model.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adapter_config_says_the_same_as_pefts_own_without_what_is_off(written, lora, tmp_path, tiny_bert):
    lora.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = json.loads((written / "adapter_config.json").read_text())
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    assert ours["base_model_name_or_path"] == str(tiny_bert)
    assert ours["modules_to_save"] == list(HEADS["bert"])
    for key in ours:
        expected = sorted(theirs[key]) if key == "target_modules" else theirs[key]
        assert ours[key] == expected, key
    assert all(theirs[key] in (None, False, {}, []) for key in theirs if key not in ours)
    assert not {"eva_config", "rank_pattern", "use_dora"} & ours.keys()


def test_folder_names_no_temporary_path(written):
    for file in written.iterdir():
        assert b".tmp-" not in file.read_bytes(), file.name


def test_adapter_of_a_bf16_base_comes_back(tiny_bert, tmp_path):
    model = trained(tiny_bert)
    manifest = write(tmp_path / "a", model, tiny_bert)
    half = attach_saved(load(tiny_bert, dtype=torch.bfloat16), tmp_path / "a", manifest)
    assert check_probe(half, manifest.probe, forward=forward, precision="bfloat16", quantization=None) < 0.05


def test_adapter_of_an_nf4_base_comes_back_on_nf4_and_on_fp32(tiny_bert, tmp_path):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier", "bert.pooler"]
    )
    model = trained(tiny_bert, quantization_config=quantization)
    manifest = write(tmp_path / "a", model, tiny_bert, quantization="nf4")
    verify_files(tmp_path / "a")
    again = attach_saved(load(tiny_bert, quantization_config=quantization), tmp_path / "a", manifest)
    assert check_probe(again, manifest.probe, forward=forward, precision="float32", quantization="nf4") < 1e-3
    plain = attach_saved(load(tiny_bert), tmp_path / "a", manifest)
    check_probe(plain, manifest.probe, forward=forward, precision="float32", quantization=None)


def test_existing_adapter_is_kept_without_overwrite(adapter, lora, tiny_bert):
    before = snapshot(adapter)
    with pytest.raises(AdapterError, match=r"there is an adapter already.*--overwrite"):
        write(adapter, lora, tiny_bert)
    assert snapshot(adapter) == before


def test_overwrite_replaces_the_adapter_and_leaves_nothing_else(adapter, lora, tiny_bert):
    write(adapter, lora, tiny_bert, overwrite=True, seed=7)
    assert verify_files(adapter).seed == 7
    assert [one.name for one in adapter.parent.iterdir()] == ["shop"]


def test_overwrite_never_deletes_a_folder_that_is_no_adapter(tmp_path, lora, tiny_bert):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(AdapterError, match="no adapter folder; it is never deleted"):
        write(tmp_path / "photos", lora, tiny_bert, overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


class Crash:
    """Raises OSError at the n-th call that touches the disk."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0

    def wrap(self, function: Any) -> Any:
        def crashing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return crashing


def arm(monkeypatch: pytest.MonkeyPatch, crash: Crash) -> None:
    for owner, name in (
        (pathlib.Path, "write_text"),
        (pathlib.Path, "mkdir"),
        (pathlib.Path, "rename"),
        (os, "fsync"),
    ):
        monkeypatch.setattr(owner, name, crash.wrap(vars(owner)[name]))
    monkeypatch.setattr(room, "save_file", crash.wrap(safetensors.torch.save_file))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_crash_at_any_write_leaves_the_old_adapter_and_no_temporary_folder(
    monkeypatch, written, tmp_path, lora, tiny_bert, overwrite
):
    crash = Crash(at=0)
    with monkeypatch.context() as patch:
        arm(patch, crash)
        if overwrite:
            shutil.copytree(written, tmp_path / "count")
        crash.calls = 0
        write(tmp_path / "count", lora, tiny_bert, overwrite=overwrite)
    shutil.rmtree(tmp_path / "count")
    assert crash.calls > 15
    target = tmp_path / "shop"
    if overwrite:
        shutil.copytree(written, target)
    before = snapshot(tmp_path)
    for at in range(1, crash.calls + 1):
        with monkeypatch.context() as patch:
            arm(patch, Crash(at=at))
            with pytest.raises(AdapterError, match=r"cannot be written.*No space left.*untouched"):
                write(target, lora, tiny_bert, overwrite=overwrite)
        assert snapshot(tmp_path) == before, at
        assert [one.name for one in tmp_path.iterdir()] == (["shop"] if overwrite else []), at


def test_a_crash_of_the_processor_leaves_nothing(tmp_path, lora, written):
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("half")
            raise OSError("disk full")

    with pytest.raises(AdapterError, match="disk full"):
        write_adapter(
            tmp_path / "a",
            model=lora,
            processor=Broken(),
            recipe_yaml="",
            manifest=verify_files(written),
            metrics={},
            card="",
            overwrite=False,
        )
    assert not list(tmp_path.iterdir())


def test_metrics_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path, lora, tiny_bert):
    with pytest.raises(AdapterError, match="cannot be written as JSON"):
        write(tmp_path / "a", lora, tiny_bert, metrics={"validation": {"f1": float("nan")}})
    assert not list(tmp_path.iterdir())


def test_weights_of_the_base_are_never_saved(lora):
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    state = {name: lora.get_parameter(name)}
    with pytest.raises(AdapterError, match=r"1 frozen tensors of the base.*word_embeddings"):
        refuse_base_weights(lora, state)


def test_a_folder_with_weights_of_the_base_is_never_written(lora, tiny_bert, tmp_path, monkeypatch):
    name = "base_model.model.bert.embeddings.LayerNorm.bias"
    monkeypatch.setattr(state_room, "get_peft_model_state_dict", lambda *_, **__: {name: lora.get_parameter(name)})
    with pytest.raises(AdapterError, match="An adapter folder never holds the base"):
        write(tmp_path / "a", lora, tiny_bert)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_the_model_in_memory_as_it_was(tiny_bert, tmp_path):
    model = trained(
        tiny_bert, {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "init_lora_weights": "pissa"}
    )
    before, config = logits(model), dict(vars(model.peft_config["default"]))
    flags = [one.requires_grad for one in model.parameters()]
    write(tmp_path / "a", model, tiny_bert)
    assert torch.equal(logits(model), before)
    assert dict(vars(model.peft_config["default"])) == config
    assert [one.requires_grad for one in model.parameters()] == flags
    assert train(model, steps=2)[1] < 10


def test_run_folder_stands_for_its_adapter(adapter, tmp_path):
    (tmp_path / "run").mkdir()
    adapter.rename(tmp_path / "run" / "adapter")
    assert resolve_adapter(tmp_path / "run") == tmp_path / "run" / "adapter"
    assert resolve_adapter(tmp_path / "run" / "adapter") == tmp_path / "run" / "adapter"


def test_a_misspelt_folder_gets_the_nearest_name(adapter):
    with pytest.raises(AdapterError, match=r"no such folder. Did you mean 'shop'?"):
        resolve_adapter(adapter.parent / "shup")


def test_a_folder_without_adapter_names_those_below_it(adapter):
    with pytest.raises(AdapterError, match=r"no adapter here.*There are: shop"):
        resolve_adapter(adapter.parent)


def test_an_interrupted_overwrite_is_explained(adapter):
    adapter.rename(adapter.parent / ".shop.old-1-ab")
    with pytest.raises(AdapterError, match=r"overwrite was interrupted: rename .*\.shop\.old-1-ab to shop"):
        resolve_adapter(adapter)


def test_list_finds_adapters_and_no_unfinished_ones(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "deep" / "er" / "adapter")
    shutil.copytree(adapter, tmp_path / ".shop.tmp-1-ab")
    assert find_adapters(tmp_path) == [tmp_path / "deep" / "er" / "adapter", adapter]


def test_generation_settings_are_saved_with_the_adapter_and_verified(lora, tiny_bert, tmp_path):
    settings = transformers.GenerationConfig(max_new_tokens=7, do_sample=True, top_p=0.5, lang_to_id={"<|en|>": 3})
    manifest = manifest_for(lora, tiny_bert)
    written = write_adapter(
        tmp_path / "shop",
        model=lora,
        processor=transformers.AutoTokenizer.from_pretrained(tiny_bert),
        recipe_yaml="",
        manifest=manifest,
        metrics={},
        card="",
        overwrite=False,
        generation_config=settings,
    )
    assert "generation_config.json" in written.files
    verify_files(tmp_path / "shop")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "shop")
    assert (again.max_new_tokens, again.do_sample, again.top_p) == (7, True, 0.5)
    assert again.lang_to_id == {"<|en|>": 3}
