"""The folder for a server holds what the server reads, is loaded by plain peft, and is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel

from lora_ft.adapters.probe import stored_tensors
from lora_ft.assemble import exported
from lora_ft.assemble.export_checks import check_export
from lora_ft.assemble.exported import export_served, refuse_another
from lora_ft.assemble.merged import fold, remember
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import AdapterError, RunError
from tests.adapters.build import snapshot
from tests.assemble.make_adapter import LORA, make_adapter

OPTIONS = OpenOptions(offline=True, device="cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = {**LORA, "rank_pattern": {"q_proj": 2}, "use_rslora": True}
    folder = tmp_path_factory.mktemp("llama")
    return make_adapter(folder, "llama", "text-generation", stored="AutoModelForCausalLM", peft_config=given)


@pytest.mark.parametrize("server", ["vllm", "lorax"])
def test_plain_peft_answers_the_probe_with_the_servers_folder(llama: Path, tmp_path: Path, server: str) -> None:
    before = snapshot(llama.parent)
    opened = open_adapter(llama, OPTIONS)
    record = export_served(opened, tmp_path / server, server=server, command="test", overwrite=False)
    assert snapshot(llama.parent) == before
    assert record == json.loads((tmp_path / server / "export.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(llama.parent / "base")
    plain = PeftModel.from_pretrained(base, str(tmp_path / server)).eval()
    batch = {
        name: value
        for name, value in stored_tensors(opened.manifest.probe.inputs).items()
        if name in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, opened.model(**batch).logits, atol=2e-6, rtol=1e-5)
    config = json.loads((tmp_path / server / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama.parent / "base")
    assert config["r"] == record["rank"] == {"vllm": 4, "lorax": 8}[server]
    assert len(record["changes"]) == 3
    assert ("--max-lora-rank 8" in record["next"]) == (server == "vllm")


def test_a_product_that_moves_ends_the_export(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "EXACT", -1.0)
    with pytest.raises(RunError, match="vllm: the products of A and B would change by"):
        export_served(open_adapter(llama, OPTIONS), tmp_path / "x", server="vllm", command="test", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_merged_model_that_answers_otherwise_is_refused(llama: Path) -> None:
    folded = fold(remember(open_adapter(llama, OPTIONS), None, why=None), OPTIONS)
    assert refuse_another(folded.merged, folded).max < 1e-4
    with torch.no_grad():
        folded.merged.model.lm_head.weight.mul_(1.1)
    with pytest.raises(
        RunError, match=r"answers to the probe differ by .*, allowed .* Keep the adapter beside its base"
    ):
        refuse_another(folded.merged, folded)


def test_the_family_of_the_base_is_known_before_torch_is_needed(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path, "gpt2", "text-generation", stored="AutoModelForCausalLM")
    given = {"dtype": None, "overwrite": False, "base": None}
    check_export(adapter, tmp_path / "x", name="lorax", **given)
    with pytest.raises(AdapterError, match="the base is a gpt2; known with adapters are cohere, cohere2, "):
        check_export(adapter, tmp_path / "x", name="vllm", **given)
