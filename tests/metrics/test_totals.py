"""Sums of drawn rows are the sums of those rows, and libraries that are missing are named."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lora_ft.errors import InputError
from lora_ft.metrics.libraries import library
from lora_ft.metrics.totals import ratio, row_weights, totals


def test_totals_are_the_sums_of_the_rows_that_were_drawn() -> None:
    generator = np.random.default_rng(0)
    table = generator.integers(0, 9, size=(20, 3)).astype(float)
    rows = generator.integers(0, 20, size=20)
    assert totals(table, rows).tolist() == table[rows].sum(axis=0).tolist()
    assert totals(table, None).tolist() == table.sum(axis=0).tolist()
    assert totals(table, np.array([3])).tolist() == table[3].tolist()
    assert row_weights(rows, 20).sum() == 20


def test_nothing_over_nothing_is_zero_without_a_warning() -> None:
    with np.errstate(all="raise"):
        assert ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist() == [0.5, 0.0]
        assert float(ratio(0.0, 0.0)) == 0.0


@pytest.mark.parametrize(
    ("module", "extra", "install"),
    [
        ("jiwer", "audio", "pip install 'lora-ft[audio]'"),
        ("faster_coco_eval", "vision", "pip install 'lora-ft[vision]'"),
        ("seqeval", None, "pip install --upgrade lora-ft"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    module: str, extra: str | None, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as fault:
        library(module, metrics="of something", extra=extra)
    assert module in str(fault.value)
    assert str(fault.value).endswith(install)


def test_a_library_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_metric_library.py").write_text("import a_module_that_nobody_has\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        library("broken_metric_library", metrics="of something")
