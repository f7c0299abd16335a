"""Metrics load offline, by name and as files, and share nothing between processes."""

from __future__ import annotations

import math
from pathlib import Path

import evaluate
import pytest
import pytest_socket

from lora_ft.errors import InputError
from lora_ft.metrics import load as loading
from lora_ft.metrics.load import load_metric, metric_names
from tests.metrics.rows import NEEDS, ROWS

FOLDER = Path(loading.__file__).parent


def test_every_file_of_the_room_is_a_metric_or_named_as_none() -> None:
    files = {file.stem for file in FOLDER.glob("*.py")} - {"__init__", *loading.NOT_METRICS}
    assert set(metric_names()) == files == set(ROWS)


@pytest.mark.parametrize("name", metric_names())
def test_a_metric_loads_and_computes_without_sockets_or_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"the metric {name} is of an extra")
    pytest_socket.disable_socket()
    metric = load_metric(name)
    assert isinstance(metric, evaluate.Metric)
    scores = metric.compute(**ROWS[name])
    assert scores
    assert all(type(value) is float and math.isfinite(value) for value in scores.values())
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("name", metric_names())
def test_the_file_is_a_module_of_evaluate_that_loads_offline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"the metric {name} is of an extra")
    pytest_socket.disable_socket()
    metric = evaluate.load(str(FOLDER / f"{name}.py"), keep_in_memory=True, cache_dir=str(tmp_path))
    assert metric.compute(**ROWS[name]) == load_metric(name).compute(**ROWS[name])


def test_two_metrics_at_once_do_not_disturb_each_other() -> None:
    one, other = load_metric("single_label"), load_metric("single_label")
    one.add_batch(predictions=[0, 1], references=[0, 1])
    other.add_batch(predictions=[0, 1], references=[1, 0])
    assert (one.compute()["accuracy"], other.compute()["accuracy"]) == (1.0, 0.0)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"metric = 'singel_label': there is no such metric. Did you mean 'single_label'"
    ):
        load_metric("singel_label")
