"""Batches under a budget of tokens: every row once, the budget kept, the same steps on any number of processes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.data.balancing import ClassDraw
from lora_ft.data.batching import padding_ratio
from lora_ft.data.token_budget import BudgetedBatches, BudgetedSteps, Order, TokenBudget

ORDERS: tuple[Order, ...] = ("group_by_length", "random", "sequential")
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=150)


@st.composite
def planned(draw: st.DrawFn) -> BudgetedSteps:
    lengths = np.array(draw(LENGTHS), dtype=np.int64)
    budget = TokenBudget(
        draw(st.integers(64, 400)), rows=draw(st.integers(1, 30)), pieces=draw(st.sampled_from([1, 4]))
    )
    return BudgetedSteps(lengths, budget=budget, seed=draw(st.integers(0, 3)), order=draw(st.sampled_from(ORDERS)))


def batches_of(steps: BudgetedSteps, *, an_epoch: int, share: tuple[int, int] = (0, 1), epoch: int) -> list[list[int]]:
    sampler = BudgetedBatches(steps, an_epoch=an_epoch, share=share)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def skewed(rows: int) -> np.ndarray:
    rng = random.Random(0)
    return np.array([min(512, int(rng.lognormvariate(3.5, 0.9)) + 1) for _ in range(rows)], dtype=np.int64)


@given(steps=planned(), epochs=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_every_row_comes_once_in_batches_that_keep_to_the_budget_and_epochs_are_as_long_as_was_said(
    steps: BudgetedSteps, epochs: int
) -> None:
    lengths, budget = steps.lengths, steps.budget
    an_epoch = steps.an_epoch(epochs=epochs, max_steps=-1)
    for epoch in range(epochs):
        batches = batches_of(steps, an_epoch=an_epoch, epoch=epoch)
        assert len(batches) == an_epoch * budget.pieces
        real = [batch for batch in batches if batch[0] < len(lengths)]
        assert sorted(row for batch in real for row in batch) == list(range(len(lengths)))
        assert all(len(batch) * max(lengths[batch]) <= budget.tokens and len(batch) <= budget.rows for batch in real)
        assert all(len(batch) == 1 for batch in batches if batch not in real)
        assert batches == batches_of(steps, an_epoch=an_epoch, epoch=epoch)
        for at in range(0, len(batches), budget.pieces):
            assert batches[at][0] < len(lengths), "a step of ghosts alone"


@given(steps=planned(), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_step_has_the_same_batches_on_one_two_and_four_processes(steps: BudgetedSteps, epoch: int) -> None:
    an_epoch, pieces = steps.an_epoch(epochs=4, max_steps=0), steps.budget.pieces

    def cut(world: int) -> list[list[list[int]]]:
        own = [batches_of(steps, an_epoch=an_epoch, share=(rank, world), epoch=epoch) for rank in range(world)]
        together = [batch for turn in zip(*own, strict=True) for batch in turn]
        return [together[at : at + pieces] for at in range(0, len(together), pieces)]

    assert all(cut(1) == cut(world) for world in (2, 4) if pieces % world == 0)


@given(lengths=LENGTHS, tokens=st.integers(64, 300), rows=st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_rows_in_their_order_are_cut_as_row_by_row_counting_cuts_them(
    lengths: list[int], tokens: int, rows: int
) -> None:
    slow, longest, count = [], 0, 0
    for at, length in enumerate(lengths):
        if count and (count == rows or (count + 1) * max(longest, length) > tokens):
            slow.append(at)
            longest = count = 0
        longest, count = max(longest, length), count + 1
    assert TokenBudget(tokens, rows=rows, pieces=1).ends(np.array(lengths)) == [*slow, len(lengths)]


@pytest.mark.parametrize("max_steps", [1, 40, 1_000])
def test_the_epochs_of_a_run_by_steps_are_all_looked_at(max_steps: int) -> None:
    steps = BudgetedSteps(skewed(300), budget=TokenBudget(512, rows=64, pieces=1), seed=0, order="random")
    an_epoch = steps.an_epoch(epochs=1.0, max_steps=max_steps)
    used = -(-max_steps // an_epoch)
    assert an_epoch >= max(len(steps.of_epoch(epoch, count=0)) for epoch in range(used))
    assert all(len(steps.of_epoch(epoch, count=an_epoch)) == an_epoch for epoch in range(used))


def test_all_epochs_have_as_many_steps_as_the_one_that_needs_most() -> None:
    steps = BudgetedSteps(skewed(300), budget=TokenBudget(512, rows=64, pieces=1), seed=0, order="random")
    needed = [len(steps.of_epoch(epoch, count=0)) for epoch in range(8)]
    assert needed[0] < max(needed) == steps.an_epoch(epochs=7.5, max_steps=-1)


def test_padding_is_less_than_with_as_many_rows_a_batch_and_tokens_a_step_vary_less() -> None:
    lengths = skewed(3_000)
    budget = TokenBudget(2_048, rows=256, pieces=1)
    steps = BudgetedSteps(lengths, budget=budget, seed=0, order="group_by_length")
    found = BudgetedBatches(steps, an_epoch=steps.an_epoch(epochs=3, max_steps=0)).every(0)
    assert padding_ratio(lengths.tolist(), [batch.tolist() for batch in found]) < 1.05
    tokens = np.array([lengths[batch].sum() for batch in found])
    assert tokens.std() / tokens.mean() < 0.15
    assert lengths[found[0]].max() == lengths.max(), "the longest row comes first"
    assert len({len(batch) for batch in found}) > 10


def test_epochs_differ_in_order_and_in_what_stands_together() -> None:
    steps = BudgetedSteps(skewed(9_000), budget=TokenBudget(512, rows=64, pieces=2), seed=0, order="group_by_length")
    an_epoch = steps.an_epoch(epochs=2, max_steps=0)
    first, second = ([{*rows.tolist()} for rows in steps.of_epoch(epoch, count=an_epoch)] for epoch in (0, 1))
    assert first != second
    assert len([one for one in first if one in second]) < len(first) / 10


def test_drawn_rows_come_as_often_as_they_are_drawn() -> None:
    draw = ClassDraw(np.array([0] * 90 + [1] * 10), strategy="oversample", ratio=1.0, seed=0)
    for order in ("group_by_length", "random"):
        budget = TokenBudget(600, rows=64, pieces=2)
        steps = BudgetedSteps(skewed(100), budget=budget, seed=0, order=order, draw=draw)
        found = BudgetedBatches(steps, an_epoch=steps.an_epoch(epochs=2, max_steps=0)).every(1)
        assert sorted(row for batch in found for row in batch.tolist()) == sorted(draw.rows(1).tolist())
