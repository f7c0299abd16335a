"""`rms_norm` beside the lines that families of transformers have for it."""

from __future__ import annotations

import pytest
import torch

from lora_ft.ops import pieces
from lora_ft.ops.rms_norm import rms_norm

EPS = 1e-6


def plain(x: torch.Tensor, weight: torch.Tensor, offset: float) -> torch.Tensor:
    """As Llama (no offset) and Gemma (1) write it; in float64 where x is."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return (scaled * (offset + weight.to(wide.dtype))).type_as(x) if offset else weight * scaled.to(x.dtype)


def made(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul_(3).to(dtype)


@pytest.mark.parametrize("values", [1, 24, 2**18])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
                                   (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])  # fmt: skip
def test_it_says_what_the_family_says_to_the_last_bit_and_has_its_gradient(
    monkeypatch: pytest.MonkeyPatch, types: tuple[torch.dtype, torch.dtype], offset: float, values: int
) -> None:
    monkeypatch.setattr(pieces, "PIECE_VALUES", values)
    x, weight = made(types[0], 2, 5, 8).requires_grad_(), made(types[1], 8)
    output, wanted = rms_norm(x, weight, eps=EPS, offset=offset), plain(x, weight, offset)
    assert output.dtype == wanted.dtype
    assert torch.equal(output, wanted)
    gradient = made(output.dtype, 2, 5, 8)
    (found,), (right,) = (torch.autograd.grad(one, x, gradient) for one in (output, wanted))
    assert found.dtype == right.dtype
    narrow = found.dtype == torch.bfloat16 or output.dtype == torch.bfloat16
    assert (found - right).abs().max() <= (2**-7 if narrow else 1e-6) * right.abs().max()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_gradient_is_the_derivative(offset: float) -> None:
    x, weight = made(torch.float64, 3, 4).requires_grad_(), made(torch.float64, 4)
    assert torch.autograd.gradcheck(lambda one: rms_norm(one, weight, eps=EPS, offset=offset), x)


def test_of_16_bits_no_wide_copy_is_saved() -> None:
    x, weight = made(torch.bfloat16, 64, 32).requires_grad_(), made(torch.bfloat16, 32)
    sizes: list[int] = []

    def size(tensor: torch.Tensor) -> None:
        sizes.append(tensor.numel() * tensor.element_size())

    with torch.autograd.graph.saved_tensors_hooks(size, lambda _: None):
        rms_norm(x, weight, eps=EPS)
    assert sum(sizes) == 64 * 32 * 2 + 64 * 4 + 32 * 2


def test_rows_without_values_are_none() -> None:
    x = torch.zeros(0, 4, requires_grad=True)
    assert rms_norm(x, torch.ones(4), eps=EPS).shape == (0, 4)
