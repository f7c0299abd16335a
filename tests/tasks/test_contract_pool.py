"""The contract of the pool: rows of several adapters of any task, in one batch, are answered as each alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lora_ft.adapters.pool import AdapterPool
from lora_ft.assemble.answer import answer, join_rows
from lora_ft.assemble.encode import encode_rows
from lora_ft.assemble.pooled import Member, PooledAdapters, shared_by_rows
from lora_ft.assemble.saved import OpenOptions
from lora_ft.errors import InputError
from lora_ft.models.fingerprint import fingerprint
from lora_ft.tasks.base import load_task
from tests.bases import make_base
from tests.tasks.test_contract import FP32, Built, built

__all__ = ["built"]


def alone(built: Built, rows: datasets.Dataset) -> list[dict[str, Any]]:
    """One feature after the other."""
    features = encode_rows(rows, task=built.task, problem=built.problem)
    answers = answer(built.model, features, task=built.task, problem=built.problem, precision=FP32, batch_size=1)
    return join_rows(answers.parts, features, rows, task=built.task, problem=built.problem)


def close(one: Any, other: Any) -> bool:
    """Equal, numbers to 1e-3 (padding and other rows move sums of floats a little)."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-3, abs=1e-3) if isinstance(one, float) else bool(one == other)


def trusting(pool: AdapterPool, name: str, folder: Path) -> bool:
    del folder
    with pool.on_trial(name):
        return True


def test_rows_of_two_adapters_in_one_batch_are_answered_as_alone(built: Built, tmp_path: Path) -> None:
    truth, rows = {}, built.rows
    if built.task.asks_bare_base:
        rows = rows.select_columns([column.name for column in built.task.inputs() if column.name in rows.column_names])
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        for parameter in built.model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        built.model.eval().save_pretrained(tmp_path / name, save_embedding_layers=False)
        truth[name] = alone(built, rows)
    assert not close(truth["first"], truth["second"]), "the two adapters do not differ"
    pooled = PooledAdapters(
        task=built.task, precision=FP32, quantization=None, base=fingerprint(built.folder, cache_dir=None),
        options=OpenOptions(),
    )  # fmt: skip
    with AdapterPool(built.base().model, prove=trusting) as pooled.pool:
        for name in truth:
            pooled.pool.add(name, tmp_path / name)
            pooled.members[name] = Member(problem=built.problem, centroid=None, mixes_with="", columns=())
        listed = [dict(rows[index]) for index in range(len(rows))]
        names = [name for name in truth for _ in listed]
        found = pooled.predict(listed * 2, names, batch_size=5)
    wanted = truth["first"] + truth["second"]
    for row, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert close(one, other), f"row {row} of {names[row]}: {one} instead of {other}"


def test_settings_that_the_batch_shares_keep_adapters_apart(tmp_path: Path) -> None:
    """T5 with two tokens that begin an answer: of a shared batch, all rows would begin with the first one's."""
    built = Built(load_task("text2text-generation"), "text2text", make_base(tmp_path / "base", "t5"))
    starts = {"first": 0, "second": 20}
    problems = {
        name: replace(built.problem, settings={**built.problem.settings, "decoder_start_token_id": start})
        for name, start in starts.items()
    }
    truth = {}
    for name, problem in problems.items():
        built.model.eval().save_pretrained(tmp_path / name, save_embedding_layers=False)
        built.problem = problem
        truth[name] = alone(built, built.rows)
    assert truth["first"] != truth["second"]
    pooled = PooledAdapters(
        task=built.task, precision=FP32, quantization=None, base=fingerprint(built.folder, cache_dir=None),
        options=OpenOptions(),
    )  # fmt: skip
    with AdapterPool(built.base().model, prove=trusting) as pooled.pool:
        for name, problem in problems.items():
            pooled.pool.add(name, tmp_path / name)
            shared = json.dumps(shared_by_rows(problem), sort_keys=True)
            pooled.members[name] = Member(problem=problem, centroid=None, mixes_with=shared, columns=())
        listed = [dict(built.rows[index]) for index in range(len(built.rows))]
        found = pooled.predict(listed * 2, [name for name in truth for _ in listed], batch_size=8)
    assert found == truth["first"] + truth["second"]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([{"text": "x"}, {"text": "y"}], ["first"], "2 rows and 1 names of adapters"),
        ([{"txt": "x"}], ["first"], "row 1: .*Expected a mapping with text"),
        (["x"], ["first"], "row 1: .*Expected a mapping with text"),
        ([{"text": "x"}], [None], "row 1: None is no name of an adapter"),
    ],
)
def test_rows_that_do_not_fit_their_names_are_one_error(
    rows: list[Any], names: list[Any], message: str, tmp_path: Path
) -> None:
    built = Built(load_task("text-classification"), "single_label_classification", make_base(tmp_path / "base"))
    pooled = PooledAdapters(
        task=built.task, precision=FP32, quantization=None, base=fingerprint(built.folder, cache_dir=None),
        options=OpenOptions(),
    )  # fmt: skip
    with AdapterPool(built.base().model, prove=trusting) as pooled.pool, pytest.raises(InputError, match=message):
        pooled.predict(rows, names)
