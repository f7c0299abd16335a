"""Length-grouped batches: every row once, little padding, the same on any number of processes."""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from lora_ft.data.batching import LengthGroupedSampler, padding_ratio

LENGTHS = st.lists(st.integers(1, 512), min_size=0, max_size=300)


def cut(order: list[int], size: int) -> list[list[int]]:
    return [order[at : at + size] for at in range(0, len(order), size)]


@given(lengths=LENGTHS, size=st.integers(1, 40), seed=st.integers(0, 3), epoch=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_every_row_comes_once_and_seed_and_epoch_decide_the_order(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    sampler = LengthGroupedSampler(lengths, global_batch_size=size, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == list(range(len(sampler)))
    again = LengthGroupedSampler(tuple(lengths), global_batch_size=size, seed=seed)
    again.set_epoch(epoch)
    assert list(again) == order == list(sampler)


@given(lengths=LENGTHS.filter(len), size=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_the_longest_row_is_in_the_first_batch_if_that_is_full(lengths: list[int], size: int) -> None:
    order = list(LengthGroupedSampler(lengths, global_batch_size=size, seed=0))
    if len(lengths) >= size:
        full = len(lengths) // size * size
        assert lengths[order[0]] == max(lengths[row] for row in order[:full])


def skewed(rows: int = 2000) -> list[int]:
    generator = random.Random(0)
    return [min(512, int(generator.lognormvariate(3.5, 0.9)) + 1) for _ in range(rows)]


@given(seed=st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_padding_is_much_less_than_at_random(seed: int) -> None:
    lengths = skewed()
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    grouped = padding_ratio(lengths, cut(list(LengthGroupedSampler(lengths, global_batch_size=16, seed=seed)), 16))
    assert grouped < 1.15
    assert padding_ratio(lengths, cut(order, 16)) > 1.8


def test_the_longest_row_of_many_megabatches_comes_first() -> None:
    lengths = [*range(1, 900), 2000, *range(1, 900)]
    for seed in range(5):
        assert next(iter(LengthGroupedSampler(lengths, global_batch_size=4, seed=seed))) == 899


def test_the_incomplete_batch_comes_last_and_shifts_no_other() -> None:
    order = list(LengthGroupedSampler(range(100), global_batch_size=16, seed=0))
    assert sorted(order[-4:]) == [0, 1, 2, 3]
    assert all(max(batch) - min(batch) == 15 for batch in cut(order[:96], 16))


def test_epochs_differ_and_batches_do_not_follow_length() -> None:
    lengths = skewed(800)
    sampler = LengthGroupedSampler(lengths, global_batch_size=16, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    tallest = [max(lengths[row] for row in batch) for batch in cut(first, 16)]
    falls = sum(one > other for one, other in pairwise(tallest[1:]))
    assert len(tallest) / 4 < falls < 3 * len(tallest) / 4


def test_global_batches_are_the_same_on_one_two_and_four_processes() -> None:
    lengths = skewed(330)

    def steps(processes: int) -> list[set[int]]:
        size = 16 // processes
        shards = [
            list(
                BatchSamplerShard(
                    BatchSampler(LengthGroupedSampler(lengths, global_batch_size=16, seed=1), size, False),
                    num_processes=processes,
                    process_index=index,
                )
            )
            for index in range(processes)
        ]
        return [{row for batch in step for row in batch} for step in zip(*shards, strict=True)]

    alone = steps(1)[:20]
    assert alone == steps(2)[:20] == steps(4)[:20]


def test_accelerate_hands_the_epoch_on() -> None:
    sampler = LengthGroupedSampler(range(1, 65), global_batch_size=4, seed=0)
    loader = prepare_data_loader(DataLoader(torch.arange(64), batch_size=4, sampler=sampler), put_on_device=False)
    loader.set_epoch(3)
    assert sampler.epoch == 3


def test_padding_ratio_counts_tokens() -> None:
    assert padding_ratio([1, 3, 2, 2], [[0, 1], [2, 3]]) == 10 / 8
    assert padding_ratio([5], [[0]]) == 1.0
    assert padding_ratio([], []) == 1.0
