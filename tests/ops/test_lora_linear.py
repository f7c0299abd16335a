"""LoRA linear layers that share an input, beside their slow twin: one layer after the other in plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_ft.ops import pieces
from lora_ft.ops.byte_dropout import ByteMask, draw_mask
from lora_ft.ops.lora_linear import FrozenLinear, _Call, _LoraLinears, lora_linears

WIDTHS, RANKS, READ = (5, 7, 4), (2, 3, 2), 6


def slow_twin(
    x: torch.Tensor, weights: list[torch.Tensor | None], flat: list[torch.Tensor], mask: ByteMask | None
) -> tuple[torch.Tensor, ...]:
    """Each layer alone; biases and scalings as `layers_of` gives them."""
    dropped = x if mask is None else x * mask.kept.view_as(x) * mask.scale
    outputs = []
    for number, weight in enumerate(weights):
        added = (number + 2) * (dropped @ flat[2 * number].t() @ flat[2 * number + 1].t())
        outputs.append(added if weight is None else x @ weight.t() + number + added)
    return tuple(outputs)


def layers_of(weights: list[torch.Tensor | None]) -> list[FrozenLinear]:
    return [
        FrozenLinear(None, None, number + 2)
        if weight is None
        else FrozenLinear(lambda weight=weight: weight, torch.full((len(weight),), float(number)), number + 2)  # type: ignore[misc]
        for number, weight in enumerate(weights)
    ]


@pytest.fixture
def made() -> tuple[torch.Tensor, list[torch.Tensor | None], list[torch.Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, READ, dtype=torch.float64, requires_grad=True)
    weights: list[torch.Tensor | None] = [torch.randn(width, READ, dtype=torch.float64) for width in WIDTHS]
    flat = []
    for width, rank in zip(WIDTHS, RANKS, strict=True):
        flat += [torch.randn(rank, READ, dtype=torch.float64), torch.randn(width, rank, dtype=torch.float64)]
    return x, weights, [one.requires_grad_() for one in flat]


@pytest.mark.parametrize(("dropout", "piece"), [(False, 2**18), (True, 2**18), (True, 4 * READ), (True, 1)])
@pytest.mark.parametrize("without_weight", [False, True])
def test_outputs_and_gradients_are_those_of_the_slow_twin(  # type: ignore[no-untyped-def]
    made, monkeypatch: pytest.MonkeyPatch, dropout: bool, piece: int, without_weight: bool
) -> None:
    monkeypatch.setattr(pieces, "PIECE_VALUES", piece)  # six rows: in one piece, in pieces of 4 and 2, of 1
    x, weights, flat = made
    weights = [None] * len(weights) if without_weight else weights
    mask = draw_mask(6, READ, p=0.3, device=x.device) if dropout else None
    call = _Call(tuple(layers_of(weights)), mask, torch.float64)
    torch.autograd.gradcheck(lambda *tensors: _LoraLinears.apply(tensors[0], call, *tensors[1:]), (x, *flat))
    found, wanted = _LoraLinears.apply(x, call, *flat), slow_twin(x, weights, flat, mask)
    leaves = [x, *flat]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    g = [torch.randn_like(one) for one in wanted]
    for one, other in zip(torch.autograd.grad(found, leaves, g), torch.autograd.grad(wanted, leaves, g), strict=True):
        torch.testing.assert_close(one, other)


def test_what_needs_no_gradient_gets_none(made) -> None:  # type: ignore[no-untyped-def]
    x, weights, flat = made
    x, flat[0] = x.detach(), flat[0].detach()
    outputs = lora_linears(x, layers_of(weights), list(zip(flat[::2], flat[1::2], strict=True)), p=0, dtype=x.dtype)
    sum(one.sum() for one in outputs).backward()  # type: ignore[union-attr]
    assert x.grad is None
    assert flat[0].grad is None
    assert all(one.grad is not None for one in flat[1:])


def test_an_output_that_nobody_reads_gives_its_adapter_no_gradient(made) -> None:  # type: ignore[no-untyped-def]
    x, weights, flat = made
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    outputs = lora_linears(x, layers_of(weights), pairs, p=0, dtype=x.dtype)
    leaves = [x, *flat]
    found = torch.autograd.grad(outputs[0].sum() + outputs[2].sum(), leaves, allow_unused=True)
    twin = slow_twin(x, weights, flat, None)
    wanted = torch.autograd.grad(twin[0].sum() + twin[2].sum(), leaves, allow_unused=True)
    assert [one is None for one in found] == [one is None for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)


def test_in_16_bits_masters_and_their_gradients_stay_float32(made) -> None:  # type: ignore[no-untyped-def]
    x, weights, flat = made
    x = x.detach().float().requires_grad_()
    half = [one.to(torch.bfloat16) for one in weights]
    masters = [one.detach().float().requires_grad_() for one in flat]
    pairs = list(zip(masters[::2], masters[1::2], strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = lora_linears(x, layers_of(half), pairs, p=0, dtype=torch.bfloat16)
    assert {one.dtype for one in outputs} == {torch.bfloat16}
    sum(one.float().sum() for one in outputs).backward()  # type: ignore[union-attr]
    assert {one.grad.dtype for one in (x, *masters)} == {torch.float32}
    twin = slow_twin(x.double(), weights, [one.double() for one in masters], None)
    for one, other in zip(outputs, twin, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.2)


def test_in_16_bits_pieces_add_up_in_32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, read = 4_096, 8
    monkeypatch.setattr(pieces, "PIECE_VALUES", 4 * read)
    x, weight, b = torch.ones(rows, read), torch.ones(4, read), torch.ones(4, 2)
    a = torch.ones(2, read, requires_grad=True)
    mask = draw_mask(rows, read, p=0.1, device=x.device)
    layer = FrozenLinear(lambda: weight.to(torch.bfloat16), None, 1.0)
    (output,) = _LoraLinears.apply(x, _Call((layer,), mask, torch.bfloat16), a, b)
    output.sum().backward()
    wanted = 4 * mask.scale * mask.kept.double().sum(0).expand(2, -1)
    assert a.grad is not None
    torch.testing.assert_close(a.grad.double(), wanted, rtol=0.01, atol=0.0)


def saved_bytes(compute: object) -> int:
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = compute()  # type: ignore[operator]
    del kept
    return sum(seen.values())


def test_the_input_is_saved_once_and_dropout_as_one_byte_a_value() -> None:
    rows, read, count = 256, 128, 3
    x = torch.randn(rows, read, requires_grad=True)
    weights: list[torch.Tensor | None] = [torch.randn(read, read) for _ in range(count)]
    pairs = [(torch.randn(2, read, requires_grad=True), torch.randn(read, 2, requires_grad=True)) for _ in range(count)]
    small = sum(4 * one.numel() for pair in pairs for one in pair) + 4 * rows * 2 * count
    plain = saved_bytes(lambda: lora_linears(x, layers_of(weights), pairs, p=0, dtype=x.dtype))
    dropped = saved_bytes(lambda: lora_linears(x, layers_of(weights), pairs, p=0.1, dtype=x.dtype))
    assert plain <= 4 * rows * read + small
    assert rows * read <= dropped - plain <= rows * read + 8

    def pefts() -> list[torch.Tensor]:
        return [nn.functional.dropout(x, 0.1) @ a.t() @ b.t() + x @ w.t() for (a, b), w in zip(pairs, weights)]  # type: ignore[arg-type, misc, union-attr] # noqa: B905

    assert dropped < saved_bytes(pefts) / 4


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_each_value_is_dropped_with_exactly_p(p: float) -> None:
    torch.manual_seed(0)
    mask = draw_mask(2_000, 515, p=p, device=torch.device("cpu"))
    kept = mask.kept.double()
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(1 - kept.mean() - p) < 4 * deviation + 4 * (0.25 / 2_000) ** 0.5 / 256
    assert mask.scale == pytest.approx(1 / (1 - p))
    by_place = kept[:, :512].view(2_000, 64, 8).mean((0, 1))  # the eight bytes of a word
    assert (1 - by_place - p).abs().max() < 5 * deviation * 8**0.5


def test_masks_follow_from_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (draw_mask(7, 9, p=0.3, device=torch.device("cpu")).kept for _ in range(2))
    torch.set_rng_state(state)
    again = draw_mask(7, 9, p=0.3, device=torch.device("cpu")).kept
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_no_row_at_all_is_no_problem() -> None:
    pairs = [(torch.randn(2, 4, requires_grad=True), torch.randn(3, 2, requires_grad=True))]
    (output,) = lora_linears(torch.zeros(2, 0, 4), layers_of([torch.randn(3, 4)]), pairs, p=0.1, dtype=torch.float32)
    assert output.shape == (2, 0, 3)
    output.sum().backward()
    assert torch.equal(pairs[0][1].grad, torch.zeros(3, 2))
