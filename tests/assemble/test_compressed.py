"""A smaller adapter folder says what it cost: every metric before and after, or that none could be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_ft.assemble.compressed import Rows, export_compressed
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.data.labels import canonical_labels
from lora_ft.errors import AdapterError, AdapterRefused
from tests.adapters.build import snapshot
from tests.assemble.make_adapter import make_adapter

OPTIONS = OpenOptions(offline=True, device="cpu")
ROWS = canonical_labels(
    datasets.Dataset.from_dict(
        {"text": ["a good book", "the pan broke", "it is nice", "bad cable"], "label": ["good", "bad", "fair", "bad"]}
    ),
    problem_type="single_label_classification",
    labels=("bad", "fair", "good"),
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(
        tmp_path_factory.mktemp("bert"), "bert", "text-classification",
        problem_type="single_label_classification", labels=("bad", "fair", "good"),
    )  # fmt: skip


def compressed(adapter: Path, output: Path, dtype: str = "int8", **more: Any) -> Any:
    given = {"measured_on": Rows("test", ROWS), "batch_size": 2, "command": "test", "overwrite": False, **more}
    return export_compressed(open_adapter(adapter, OPTIONS), output, dtype=dtype, quantization=None, **given)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_every_metric_before_and_after_is_in_the_manifest(adapter: Path, tmp_path: Path, dtype: str) -> None:
    before = snapshot(adapter)
    manifest = compressed(adapter, tmp_path / "small", dtype)
    found = manifest.run["compression"]
    assert (found["dtype"], found["split"], found["rows"], found["not_measured"]) == (dtype, "test", 4, None)
    assert {"accuracy", "f1_macro", "f1/good"} <= set(found["metrics"])
    first, second = (open_adapter(one, OPTIONS) for one in (adapter, tmp_path / "small"))
    for index, opened in enumerate((first, second)):
        references = references_of(ROWS, task=opened.task, problem=opened.problem)
        scores = opened.task.score(opened.predict(ROWS, batch_size=4), references, opened.problem)
        assert {name: pair[index] for name, pair in found["metrics"].items()} == pytest.approx(scores)
    assert 0 < found["probe"]["largest_difference"] < 0.1
    sizes = [next(folder.glob("adapter_model*")).stat().st_size for folder in (adapter, tmp_path / "small")]
    assert found["bytes"] == sizes and sizes[1] < sizes[0]
    assert f"## Stored in {dtype}" in (tmp_path / "small" / "README.md").read_text()
    assert second.manifest == manifest and snapshot(adapter) == before


def test_without_rows_only_the_probe_is_measured_and_the_reason_is_said(adapter: Path, tmp_path: Path) -> None:
    manifest = compressed(adapter, tmp_path / "small", measured_on=Rows(None, None, why="data/dev.csv: no such file"))
    found = manifest.run["compression"]
    assert (found["metrics"], found["rows"], found["not_measured"]) == ({}, 0, "data/dev.csv: no such file")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "No metric was measured (data/dev.csv: no such file); the probe's values moved by" in card


def test_a_folder_that_fails_on_the_way_is_not_left(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise AdapterRefused(f"{folder.name}: damaged")

    monkeypatch.setattr("lora_ft.assemble.compressed.verify_files", refuse)
    with pytest.raises(AdapterRefused, match="damaged"):
        compressed(adapter, tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_it_is_never_written_into_its_own_source(adapter: Path) -> None:
    before = snapshot(adapter)
    with pytest.raises(AdapterError, match="lie in one another"):
        compressed(adapter, adapter / "small", overwrite=True)
    assert snapshot(adapter) == before
