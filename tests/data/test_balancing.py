"""Which rows an epoch draws: as many of each class as asked for, all of them in time, by seed and epoch alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from lora_ft.data.balancing import NO_LABEL, ClassDraw, DrawnSampler, Strategy, class_groups, drawn_counts
from lora_ft.data.batching import LengthGroupedSampler

STRATEGIES: tuple[Strategy, ...] = ("oversample", "undersample", "balanced")


def draw(counts: list[int], strategy: Strategy, *, ratio: float = 1.0, seed: int = 0) -> ClassDraw:
    groups = np.repeat(np.arange(len(counts)), counts)
    return ClassDraw(np.random.default_rng(9).permutation(groups), strategy=strategy, ratio=ratio, seed=seed)


@pytest.mark.parametrize(
    ("strategy", "ratio", "drawn"),
    [
        ("oversample", 1.0, [95, 95, 95]),
        ("oversample", 0.2, [95, 19, 20]),
        ("undersample", 1.0, [5, 5, 5]),
        ("undersample", 0.1, [50, 5, 20]),
        ("balanced", 1.0, [40, 40, 40]),
    ],
)
def test_the_ratio_says_how_many_rows_of_each_class_are_drawn(
    strategy: Strategy, ratio: float, drawn: list[int]
) -> None:
    assert drawn_counts([95, 5, 20], strategy=strategy, ratio=ratio) == drawn


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    strategy=st.sampled_from(STRATEGIES),
    ratio=st.floats(0.05, 1.0),
    epoch=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_an_epoch_draws_what_it_counts_and_seed_and_epoch_decide_it(
    counts: list[int], strategy: Strategy, ratio: float, epoch: int
) -> None:
    one = draw(counts, strategy, ratio=ratio)
    rows = one.rows(epoch)
    assert len(rows) == len(one)
    found = Counter(one.groups[rows].tolist())
    assert found == {name: drawn for name, (_, drawn) in one.counts().items()}
    assert np.array_equal(draw(counts, strategy, ratio=ratio).rows(epoch), rows)
    for name, (own, drawn) in one.counts().items():
        times = Counter(rows[one.groups[rows] == name].tolist())
        assert max(times.values()) - min((times[row] for row in np.flatnonzero(one.groups == name)), default=0) <= 1
        assert drawn > own or max(times.values()) == 1  # no row twice while there are others


def test_undersampling_takes_another_part_in_each_epoch_until_all_rows_were_seen() -> None:
    one = draw([100, 10], "undersample")
    parts = [set(one.rows(epoch).tolist()) & set(np.flatnonzero(one.groups == 0).tolist()) for epoch in range(10)]
    assert all(len(part) == 10 for part in parts)
    assert len(set.union(*parts)) == 100


def test_epochs_and_seeds_differ() -> None:
    one = draw([30, 7], "oversample")
    assert not np.array_equal(one.rows(0), one.rows(1))
    assert not np.array_equal(one.rows(0), draw([30, 7], "oversample", seed=1).rows(0))


def test_a_row_with_several_labels_counts_for_the_rarest_of_them() -> None:
    hot = [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert class_groups(hot, several=True).tolist() == [0, 1, 0, NO_LABEL, 2]
    assert class_groups([2, 0, 1], several=False).tolist() == [2, 0, 1]


def test_batches_of_like_length_hold_the_drawn_rows() -> None:
    one = draw([90, 12], "oversample")
    lengths = np.random.default_rng(0).integers(1, 60, 102)
    sampler = LengthGroupedSampler(lengths.tolist(), global_batch_size=8, seed=0, draw=one)
    assert len(sampler) == 180
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == sorted(one.rows(epoch).tolist())


def test_rows_at_random_are_the_drawn_ones_in_another_order_in_each_epoch() -> None:
    one = draw([9, 3], "balanced")
    sampler = DrawnSampler(one)
    assert len(sampler) == 12
    first = list(sampler)
    assert sorted(first) == sorted(one.rows(0).tolist())
    assert first != one.rows(0).tolist()
    loader = prepare_data_loader(DataLoader(torch.arange(12), batch_size=4, sampler=sampler), put_on_device=False)
    loader.set_epoch(2)
    assert sampler.epoch == 2


@pytest.mark.parametrize("grouped", [True, False])
def test_global_batches_are_the_same_on_one_and_two_processes(grouped: bool) -> None:
    one = draw([90, 10], "oversample")

    def steps(processes: int) -> list[set[int]]:
        sampler: torch.utils.data.Sampler[int] = DrawnSampler(one)
        if grouped:
            sampler = LengthGroupedSampler([1 + row % 7 for row in range(100)], global_batch_size=12, seed=0, draw=one)
        shards = [
            list(
                BatchSamplerShard(
                    BatchSampler(sampler, 12 // processes, False), num_processes=processes, process_index=index
                )
            )
            for index in range(processes)
        ]
        return [{row for batch in step for row in batch} for step in zip(*shards, strict=True)]

    assert steps(1)[:15] == steps(2)[:15]
