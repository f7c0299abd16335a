"""The stacked LoRA beside its slow twin: one adapter after the other, one row after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.ops import stacked_lora
from lora_ft.ops.stacked_lora import add_stacked_lora, scale_rows


def slow_twin(
    out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, counts: list[int]
) -> torch.Tensor:
    """Row by row."""
    owners = [index for index, count in enumerate(counts) for _ in range(count)]
    rows = [out[row] + (x[row] @ a[owner].T) @ b[owner] for row, owner in enumerate(owners)]
    return torch.stack(rows)


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    tokens=st.integers(1, 7),
    rank=st.integers(1, 4),
    segment=st.sampled_from([0, 40, 10**9]),
)
@settings(max_examples=150, deadline=None)
def test_every_way_gives_each_row_the_update_of_its_own_adapter(
    counts: list[int], tokens: int, rank: int, segment: int
) -> None:
    rows, read, width = sum(counts), 6, 5
    x, out = numbers(rows, tokens, read, seed=1), numbers(rows, tokens, width, seed=2)
    a, b = numbers(len(counts), rank, read, seed=3), numbers(len(counts), rank, width, seed=4)
    wanted = slow_twin(out, x, a, b, counts=counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked_lora, "SEGMENT_FLOATS", segment)
        add_stacked_lora(out, x, a, b, counts=counts)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("tokens", "rank"), [(1, 8), (64, 1)])
def test_padding_and_repeating_are_both_taken_and_both_right(
    tokens: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked_lora, "SEGMENT_FLOATS", 10**9)
    counts = [3, 1, 2]
    x, out = numbers(6, tokens, 6, seed=1), numbers(6, tokens, 5, seed=2)
    a, b = numbers(3, rank, 6, seed=3), numbers(3, rank, 5, seed=4)
    wanted = slow_twin(out, x, a, b, counts=counts)
    add_stacked_lora(out, x, a, b, counts=counts)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_strided_stacks_are_read_in_place() -> None:
    flat = numbers(3, 100, seed=5)
    a, b = flat[:, 10:34].view(3, 4, 6), flat[:, 50:70].view(3, 4, 5)
    x, out = numbers(3, 2, 6, seed=1), numbers(3, 2, 5, seed=2)
    wanted = slow_twin(out, x, a, b, counts=[1, 1, 1])
    add_stacked_lora(out, x, a, b, counts=[1, 1, 1])
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_a_16_bit_base_gets_the_update_in_its_own_type() -> None:
    x, out = numbers(2, 3, 6, seed=1, dtype=torch.float32), numbers(2, 3, 5, seed=2, dtype=torch.bfloat16)
    a, b = numbers(2, 4, 6, seed=3, dtype=torch.float32), numbers(2, 4, 5, seed=4, dtype=torch.float32)
    wanted = slow_twin(out.float(), x, a, b, counts=[1, 1])
    add_stacked_lora(out, x, a, b, counts=[1, 1])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("biased", [True, False])
def test_scaling_leaves_the_bias_of_the_base_as_it_is(biased: bool) -> None:
    out, scale = numbers(3, 2, 5, seed=1), numbers(2, 5, seed=2)
    bias = numbers(5, seed=3) if biased else None
    plain = out - bias if bias is not None else out
    wanted = torch.stack([plain[0] * scale[0], plain[1] * scale[0], plain[2] * scale[1]])
    wanted = wanted + bias if bias is not None else wanted
    scale_rows(out, scale, bias, counts=[2, 1])
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
