"""An exported graph answers as the adapter does, in every family, size and length; what does not leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from lora_ft.adapters import export_onnx as graphs
from lora_ft.adapters.probe import stored_tensors
from lora_ft.assemble.exported_onnx import export_onnx
from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import AdapterError, RunError
from tests.adapters.build import snapshot
from tests.assemble.make_adapter import make_adapter

OPTIONS = OpenOptions(offline=True, device="cpu")
SINGLE = {"problem_type": "single_label_classification", "labels": ("bad", "fair", "good")}
SOUNDS = ("audio-classification", "automatic-speech-recognition")
CONVOLUTIONS = {"peft_type": "LORA", "r": 4, "target_modules": "all-conv"}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "text-classification", SINGLE),
    "distilbert": ("distilbert", "token-classification", {"labels": ("O", "B-PER", "I-PER")}),
    "roberta": ("roberta", "question-answering", {}),
    "masked": ("bert", "fill-mask", {"stored": "AutoModelForMaskedLM"}),
    "vit": ("vit", "image-classification", SINGLE),
    "resnet": ("resnet", "image-classification", {**SINGLE, "peft_config": CONVOLUTIONS}),
    "wav2vec2": ("wav2vec2", "audio-classification", {**SINGLE, "labels": ("no", "yes")}),
    "ast": ("ast", "audio-classification", {**SINGLE, "labels": ("no", "yes")}),
    "ctc": ("wav2vec2", "automatic-speech-recognition", {}),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("bert"), "bert", "text-classification", **SINGLE)


def export(adapter: Path, output: Path, *, overwrite: bool = False) -> tuple[SavedAdapter, dict[str, Any]]:
    opened = open_adapter(adapter, OPTIONS)
    return opened, export_onnx(opened, output, options=OPTIONS, command="test", overwrite=overwrite)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_of_every_family_answers_the_probe_as_the_adapter_does(name: str, tmp_path: Path) -> None:
    kind, task, given = FAMILIES[name]
    adapter = make_adapter(tmp_path, kind, task, **given)
    before = snapshot(tmp_path / "base")
    opened, record = export(adapter, tmp_path / "graph")
    assert record == json.loads((tmp_path / "graph" / "export.json").read_text())
    assert 0 <= record["parity"]["largest_difference"] <= 1e-4
    sizes = {tuple(next(iter(batch.values()))) for batch in record["parity"]["batches"]}
    assert len({size[0] for size in sizes}) >= 3, "several batch sizes"
    if any("sequence" in one["axes"] for one in record["inputs"].values()):
        assert len({size[1] for size in sizes}) >= 3, "several lengths"
    batch = stored_tensors(opened.manifest.probe.inputs)
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "model.onnx")
    inputs = graphs.graph_inputs(opened.model.get_base_model(), batch)
    found = session.run(record["outputs"], {one.name: inputs[one.name].numpy() for one in session.get_inputs()})
    outputs = {key: torch.from_numpy(value) for key, value in zip(record["outputs"], found, strict=True)}
    with torch.no_grad():
        theirs = opened.task.forward(opened.model, batch, opened.problem)
    assert record["padding"] == (task not in SOUNDS or kind == "ast")
    samples = batch.get("samples", torch.ones(len(next(iter(inputs.values())))))
    alike = samples == samples.max()  # without a mask, a graph is for sounds of one length
    for key, value in outputs.items():
        torch.testing.assert_close(value[alike], theirs[key][alike], atol=1e-4, rtol=1e-4)
    assert snapshot(tmp_path / "base") == before


def test_labels_settings_and_tokenizer_lie_beside_the_graph(bert: Path, tmp_path: Path) -> None:
    opened, record = export(bert, tmp_path / "graph")
    assert record["labels"] == ["bad", "fair", "good"]
    assert record["settings"] == dict(opened.manifest.settings)
    assert record["inputs"]["input_ids"] == {"dtype": "int64", "axes": ["batch", "sequence"]}
    assert {"tokenizer.json", "tokenizer_config.json", "model.onnx"} <= {
        one.name for one in (tmp_path / "graph").iterdir()
    }


def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_left(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = graphs.write_graph

    def shifted(model: Any, *given: Any, **more: Any) -> Any:
        with torch.no_grad():
            model.classifier.bias.add_(0.01)
        return write(model, *given, **more)

    monkeypatch.setattr("lora_ft.assemble.exported_onnx.write_graph", shifted)
    with pytest.raises(RunError, match=r"onnx: logits differs by 0.01 between onnxruntime and torch, allowed 0.00"):
        export(bert, tmp_path / "graph")
    assert not list(tmp_path.iterdir())


def test_a_size_that_tracing_bakes_in_is_found_out(tmp_path: Path) -> None:
    class Baked(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:
            return {"logits": input_ids.float() * int(input_ids.shape[1])}

    batch = {"input_ids": torch.arange(8).reshape(2, 4)}
    graphs.write_graph(Baked(), batch, tmp_path / "model.onnx", outputs=["logits"])
    batches = list(graphs.other_sizes(batch, longest=16))
    expected = [graphs.answers(Baked(), one, outputs=["logits"]) for one in batches]
    assert graphs.compare_graph(tmp_path / "model.onnx", batches[:1], expected[:1], outputs=["logits"]) == 0
    with pytest.raises(RunError, match="logits differs by"):
        graphs.compare_graph(tmp_path / "model.onnx", batches, expected, outputs=["logits"])


def test_a_base_of_sounds_that_reads_a_mask_gets_one() -> None:
    class Hears(torch.nn.Module):
        def __init__(self, norm: str) -> None:
            super().__init__()
            self.config = SimpleNamespace(feat_extract_norm=norm)

        def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None: ...

    batch = {"input_values": torch.ones(2, 4), "samples": torch.tensor([4, 3]), "labels": torch.tensor([0, 1])}
    assert graphs.graph_inputs(Hears("layer"), batch)["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert list(graphs.graph_inputs(Hears("group"), batch)) == ["input_values"]


def test_other_sizes_never_exceed_what_the_model_has_positions_for() -> None:
    batch = {"input_ids": torch.arange(40).reshape(4, 10), "attention_mask": torch.ones(4, 10)}
    lengths = [one["input_ids"].shape for one in graphs.other_sizes(batch, longest=12)]
    assert lengths == [(4, 10), (1, 10), (9, 10), (4, 5), (4, 12)]
    images = [
        one["pixel_values"].shape[0] for one in graphs.other_sizes({"pixel_values": torch.ones(2, 3, 4, 4)}, longest=1)
    ]
    assert images == [2, 1, 5]


def test_an_earlier_export_is_kept_unless_overwrite_is_given(bert: Path, tmp_path: Path) -> None:
    export(bert, tmp_path / "graph")
    before = snapshot(tmp_path / "graph")
    with pytest.raises(AdapterError, match=r"there is an export already\. Choose another one, or give --overwrite"):
        export(bert, tmp_path / "graph")
    assert snapshot(tmp_path / "graph") == before
    export(bert, tmp_path / "graph", overwrite=True)
    assert snapshot(tmp_path / "graph").keys() == before.keys()


def test_the_lines_of_the_docs_answer_with_onnxruntime_and_numpy(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    lines = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in lines.splitlines() if line.strip()]) <= 14
    assert "torch" not in lines and "transformers" not in lines
    opened, _ = export(bert, tmp_path / "shop-onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(lines, "docs/export.md", "exec"), names)
    import datasets

    rows = datasets.Dataset.from_dict({"text": names["texts"]})
    ours = [max(one["scores"], key=one["scores"].get) for one in opened.predict(rows, batch_size=4)]
    assert names["answers"] == ours
    assert np.isfinite(names["logits"]).all()
    shutil.rmtree(tmp_path / "shop-onnx")
