"""Encoding keeps the order, knows the row of each feature, leaves nothing on disk; lazily it is the same each time."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lora_ft.data.batching import LengthGroupedSampler
from lora_ft.data.encode import LazySplit, encode_split
from tests.data.rows_of import table


def lengths(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        "input_ids": [[len(text)] for text in rows["text"]],
        "length": [len(text) for text in rows["text"]],
    }


def test_features_follow_the_rows_and_the_rows_columns_are_gone() -> None:
    rows = table(["a"] * 2500, ["x" * (i % 7) for i in range(2500)])
    features = encode_split(rows, lengths, description="encode")
    assert features.column_names == ["input_ids", "length", "row"]
    assert list(features["length"]) == [i % 7 for i in range(2500)]


def test_nothing_is_cached_and_nothing_is_pickled(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["x", "y"]}).save_to_disk(str(tmp_path / "saved"))
    rows = datasets.load_from_disk(str(tmp_path / "saved"))
    before = sorted(tmp_path.rglob("*"))
    seen: list[int] = []

    def count(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        seen.append(len(batch["text"]))
        return lengths(batch)

    for _ in range(2):
        assert encode_split(rows, count, description="encode").cache_files == []
    assert seen == [2, 2]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("rows", "shown"), [(10, False), (5000, True)])
def test_a_bar_shows_for_many_rows_only(rows: int, shown: bool, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    encode_split(table(["a"] * rows), lengths, description="encode these")
    assert ("encode these" in capfd.readouterr().err) == shown
    assert not datasets.are_progress_bars_disabled()


def test_no_rows_give_no_features() -> None:
    features = encode_split(table(["a"]).select([]), lengths, description="encode")
    assert (len(features), features.column_names) == (0, ["length", "row"])


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=30), size=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_each_feature_knows_its_row_over_all_batches(counts: list[int], size: int) -> None:
    def windows(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [at for at, text in enumerate(batch["text"]) for _ in range(int(text))]
        return {"length": [1] * len(rows), "row": rows}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ft.data.encode.BATCH_ROWS", size)
        features = encode_split(table(["a"] * len(counts), list(map(str, counts))), windows, description="encode")
    assert list(features["row"]) == [row for row, count in enumerate(counts) for _ in range(count)]


def test_without_word_of_them_features_belong_to_the_rows_one_by_one() -> None:
    features = encode_split(table(["a"] * 2500), lengths, description="encode")
    assert list(features["row"]) == list(range(2500))


def noisy(rows: Mapping[str, Sequence[Any]], *, index: int, epoch: int) -> dict[str, list[Any]]:
    """A stand-in for a task that augments: what comes out follows from seed, epoch and row."""
    noise = np.random.default_rng((7, epoch, index)).integers(1 << 30)
    return {"text": list(rows["text"]), "noise": [int(noise)]}


def lazy(count: int = 12) -> LazySplit:
    rows = table(["a"] * count, [f"text {row}" for row in range(count)])
    return LazySplit(rows, noisy, lengths=[count - row for row in range(count)])


def test_a_lazy_split_encodes_the_row_that_is_read_and_nothing_for_its_columns() -> None:
    seen: list[int] = []

    def note(rows: Mapping[str, Sequence[Any]], *, index: int, epoch: int) -> dict[str, list[Any]]:
        seen.append(index)
        return noisy(rows, index=index, epoch=epoch)

    split = LazySplit(table(["a"] * 3, ["x", "y", "z"]), note, lengths=[5, 6, 7])
    assert (len(split), split["length"], split["row"]) == (3, [5, 6, 7], [0, 1, 2])
    assert seen == []
    assert (split[1]["text"], split[1]["row"]) == ("y", 1)
    assert split[-1]["text"] == "z"
    assert seen == [1, 1, 2]
    assert [feature["text"] for feature in split] == ["x", "y", "z"]
    with pytest.raises(IndexError):
        split[3]
    with pytest.raises(KeyError):
        split["text"]


def test_a_lazy_split_refuses_an_encoder_that_makes_several_features() -> None:
    def windows(rows: Mapping[str, Sequence[Any]], *, index: int, epoch: int) -> dict[str, list[Any]]:
        return {"text": ["a", "b"]}

    with pytest.raises(ValueError, match="row 0: a lazy split has one feature for each row"):
        LazySplit(table(["a"]), windows, lengths=[1])[0]


def test_a_lazy_split_can_be_pickled() -> None:
    split = lazy(3)
    split.set_epoch(2)
    copy = pickle.loads(pickle.dumps(split))
    assert [copy[row] for row in range(3)] == [split[row] for row in range(3)]
    assert copy["length"] == split["length"]


def noises(loader: Any) -> list[list[int]]:
    return [[feature["noise"] for feature in batch] for batch in loader]


def test_augmentation_follows_epoch_and_row_whatever_the_number_of_workers() -> None:
    alone = DataLoader(lazy(), batch_size=4, collate_fn=list)
    living = DataLoader(lazy(), batch_size=4, collate_fn=list, num_workers=2, persistent_workers=True)
    found = []
    for epoch in (0, 1, 0):
        for loader in (alone, living):
            loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        expected = noises(alone)
        assert noises(living) == expected
        found.append(expected)
    assert found[0] == found[2] != found[1]


def test_accelerate_tells_a_lazy_split_the_epoch() -> None:
    loader = prepare_data_loader(DataLoader(lazy(), batch_size=4, collate_fn=list), put_on_device=False)
    loader.set_epoch(3)
    assert int(loader.dataset.epoch) == 3


def test_rows_of_like_length_are_grouped_without_encoding_any() -> None:
    split = lazy(64)
    order = list(LengthGroupedSampler(split["length"], global_batch_size=4, seed=0))
    assert sorted(order) == split["row"]
    assert isinstance(split, torch.utils.data.Dataset)
