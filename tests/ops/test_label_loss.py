"""The label-position cross-entropy beside its slow twin: torch's own over all logits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.ops.label_loss import FrozenHead, label_cross_entropy, label_measures

VOCABULARY, WIDTH, RANK = 23, 6, 2
SMALL = VOCABULARY * 8 * 4
"""Memory for four positions in float64, or two with a softcap: several chunks in every test."""


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_twin(
    hidden: torch.Tensor, labels: torch.Tensor, head: FrozenHead, down: torch.Tensor | None, *, smoothing: float
) -> torch.Tensor:
    return F.cross_entropy(full_logits(hidden, head, down), labels, reduction="none", label_smoothing=smoothing)


def full_logits(hidden: torch.Tensor, head: FrozenHead, down: torch.Tensor | None) -> torch.Tensor:
    """All logits at once, `(n, vocabulary)`."""
    logits = hidden @ head.weight.T
    if head.up is not None and down is not None:
        logits = logits + down @ head.up.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits.float() * head.scale if logits.dtype is torch.bfloat16 else logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def case(
    n: int,
    *,
    bias: bool = False,
    lora: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor, FrozenHead, torch.Tensor | None]:
    """Hidden states, labels, a head, and what its LoRA is given."""
    head = FrozenHead(
        weight=numbers(VOCABULARY, WIDTH, seed=1, dtype=dtype),
        dtype=dtype,
        bias=numbers(VOCABULARY, seed=2, dtype=dtype) if bias else None,
        up=numbers(VOCABULARY, RANK, seed=3, dtype=dtype).requires_grad_() if lora else None,
        scale=scale,
        softcap=softcap,
    )
    hidden = numbers(n, WIDTH, seed=4, dtype=dtype).requires_grad_()
    down = numbers(n, RANK, seed=5, dtype=dtype).requires_grad_() if lora else None
    labels = torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(6))
    return hidden, labels, head, down


OPTIONS = list(product((False, True), (False, True), (1.0, 0.3), (None, 2.0), (0.0, 0.1)))


@pytest.mark.parametrize(("bias", "lora", "scale", "softcap", "smoothing"), OPTIONS)
def test_losses_and_gradients_are_those_of_full_logits_with_every_option(
    bias: bool, lora: bool, scale: float, softcap: float | None, smoothing: float
) -> None:
    hidden, labels, head, down = case(9, bias=bias, lora=lora, scale=scale, softcap=softcap)
    trained = [one for one in (hidden, down, head.up) if one is not None]
    weights = numbers(9, seed=7)  # as a preference loss weighs positions
    ours = label_cross_entropy(hidden, labels, head=head, down=down, label_smoothing=smoothing, chunk_bytes=SMALL)
    wanted = slow_twin(hidden, labels, head, down, smoothing=smoothing)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(ours @ weights, trained)
    for one, other in zip(found, torch.autograd.grad(wanted @ weights, trained), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("softcap", "smoothing"), [(None, 0.0), (2.0, 0.1)])
def test_gradients_are_those_of_differences(softcap: float | None, smoothing: float) -> None:
    hidden, labels, head, down = case(5, bias=True, lora=True, scale=0.7, softcap=softcap)
    assert down is not None
    assert head.up is not None

    def losses(hidden: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        now = FrozenHead(head.weight, head.dtype, bias=head.bias, up=up, scale=head.scale, softcap=softcap)
        return label_cross_entropy(hidden, labels, head=now, down=down, label_smoothing=smoothing, chunk_bytes=SMALL)

    assert torch.autograd.gradcheck(losses, (hidden, down, head.up))


@given(n=st.integers(0, 12), chunk_bytes=st.integers(1, 10_000), softcap=st.sampled_from([None, 3.0]))
@settings(max_examples=25, deadline=None)
def test_no_size_of_chunks_changes_anything(n: int, chunk_bytes: int, softcap: float | None) -> None:
    hidden, labels, head, _ = case(n, softcap=softcap)
    ours = label_cross_entropy(hidden, labels, head=head, chunk_bytes=chunk_bytes)
    wanted = slow_twin(hidden, labels, head, None, smoothing=0.0)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(ours.sum(), [hidden])
    (gradient,) = torch.autograd.grad(wanted.sum(), [hidden])
    torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-12)
    losses, right = label_measures(hidden, labels, head=head, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-12, atol=1e-12)
    assert right.tolist() == full_logits(hidden, head, None).argmax(-1).eq(labels).tolist()


def test_in_bfloat16_loss_and_gradient_are_the_twins_up_to_its_rounding() -> None:
    hidden, labels, head, down = case(40, bias=True, lora=True, dtype=torch.bfloat16)
    ours = label_cross_entropy(hidden, labels, head=head, down=down)
    wanted = slow_twin(hidden, labels, head, down, smoothing=0.0)
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, wanted, rtol=0.02, atol=0.05)
    trained = [one for one in (hidden, down, head.up) if one is not None]
    found = torch.autograd.grad(ours.mean(), trained)
    for one, other in zip(found, torch.autograd.grad(wanted.mean(), trained), strict=True):
        assert one.dtype is torch.bfloat16
        assert float((one - other).norm()) < 0.02 * float(other.norm())


def test_a_label_that_is_all_but_impossible_has_a_finite_loss() -> None:
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = FrozenHead(torch.tensor([[0.0], [300.0]]), torch.float32)
    assert label_cross_entropy(hidden, torch.tensor([0]), head=head).item() == 300.0


def kept_bytes(n: int, *, lora: bool = False, grad: bool = True) -> int:
    """What autograd keeps for the backward pass."""
    hidden, labels, head, down = case(n, lora=lora)
    kept: list[int] = []

    def pack(one: torch.Tensor) -> torch.Tensor:
        kept.append(one.numel() * one.element_size())
        return one

    with torch.set_grad_enabled(grad), torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        label_cross_entropy(hidden, labels, head=head, down=down)
    return sum(kept)


def test_nothing_as_wide_as_the_vocabulary_is_kept_and_nothing_without_a_gradient() -> None:
    assert kept_bytes(50) == 50 * WIDTH * 8
    assert kept_bytes(50, lora=True) == 50 * 8 * 2 * (WIDTH + RANK)
    assert kept_bytes(50, grad=False) == 0
