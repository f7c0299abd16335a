"""`swiglu` beside torch's own product, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lora_ft.ops import pieces
from lora_ft.ops.swiglu import swiglu

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def factors(dtype: torch.dtype = torch.float32, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(*(shape or (2, 6, 32)), generator=drawn).to(dtype).requires_grad_() for _ in range(2))
    return gate, up


def saved_bytes(product: Product) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        output = product(*factors(torch.float32, 16, 32))
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("values", [1, 64, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradients_are_torchs_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, values: int
) -> None:
    monkeypatch.setattr(pieces, "PIECE_VALUES", values)
    gate, up = factors(dtype)
    output, wanted = swiglu(gate, up), plain(gate, up)
    assert torch.equal(output, wanted)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for found, right in zip(*(torch.autograd.grad(one, (gate, up), gradient) for one in (output, wanted)), strict=True):
        assert torch.equal(found, right)


def test_factors_and_gradients_may_lie_in_memory_as_they_like() -> None:
    gate, up = factors(torch.float32, 8, 4)
    output = swiglu(gate.t(), up.t())
    assert torch.equal(output, plain(gate.t(), up.t()))
    found = torch.autograd.grad(output, (gate, up), torch.ones(8, 4).t())
    right = torch.autograd.grad(plain(gate.t(), up.t()), (gate, up), torch.ones(8, 4).t())
    assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


def test_the_gradient_is_the_derivative() -> None:
    assert torch.autograd.gradcheck(swiglu, factors(torch.float64, 3, 4))


def test_only_the_factors_are_saved() -> None:
    assert saved_bytes(swiglu) == 2 * 16 * 32 * 4
    assert saved_bytes(plain) == 3 * 16 * 32 * 4
