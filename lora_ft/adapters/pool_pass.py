"""One pass of a base over rows of different adapters: which rows are whose, and what each layer adds to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lora_ft.adapters.convolutions import CONVOLUTIONS
from lora_ft.adapters.pool_tensors import Layout, PoolTensors
from lora_ft.errors import RunError
from lora_ft.ops.stacked_lora import add_stacked_lora, scale_rows

Views = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class NotByRow(RunError):
    """A layer computes once for all rows of a batch: adapters on it cannot share a pass."""


class Stack:
    """Adapters of one layout side by side; of a single one it is a view.

    Attributes:
        parts: Module -> where its matrices lie.
        flat: `(adapters, elements)`.
    """

    def __init__(self, adapters: Sequence[PoolTensors]) -> None:
        self.parts = adapters[0].parts
        self.flat = adapters[0].flat[None] if len(adapters) == 1 else torch.stack([one.flat for one in adapters])
        self._views: dict[str, Views] = {}

    def views(self, module: str) -> Views:
        """A, B and DoRA's factors of all of them for one module; the next token asks again."""
        if module not in self._views:
            self._views[module] = self.parts[module].views(self.flat)
        return self._views[module]


@dataclass(frozen=True)
class Segment:
    """Rows of one adapter, side by side in the batch.

    Attributes:
        name: Of the adapter; None: the bare base.
        adapter: Its tensors; None: the bare base.
        rows: Their numbers in the order asked.
    """

    name: str | None
    adapter: PoolTensors | None
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Segments of one layout, one after the other.

    Attributes:
        stack: Their adapters.
        start: First row in the batch.
        counts: Rows of each.
    """

    stack: Stack
    start: int
    counts: tuple[int, ...]


@dataclass
class Pass:
    """Rows and their adapters, while a base computes.

    Attributes:
        segments: In the order of the batch: those of one layout together, the bare base last.
        groups: The same, but for the bare base.
        touched: Modules that answer otherwise than in the bare base.
        widths: Module of a head -> outputs of each segment's own, where they differ; found out while it computes.
    """

    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]
    touched: frozenset[str]
    widths: dict[str, list[int]] = field(default_factory=dict)

    @property
    def order(self) -> list[int]:
        """Place in the batch -> number of the row in the order asked."""
        return [row for segment in self.segments for row in segment.rows]

    @property
    def alone(self) -> bool:
        """Whether all rows are of one adapter: then nothing needs to know which row is which."""
        return len(self.segments) == 1

    def arrange(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch in the order of the segments: tensors and lists with one entry a row; all else stays."""
        order = self.order
        if order == sorted(order):
            return dict(batch)
        return {name: _rows(value, order, of=len(order)) for name, value in batch.items()}

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """Values with one entry a row, `(rows, ...)`, back in the order asked."""
        order = torch.tensor(self.order, device=values.device)
        return values.index_select(0, torch.argsort(order))

    def split(self, outputs: Mapping[str, Any]) -> Iterator[tuple[Segment, dict[str, Any]]]:
        """What belongs to each segment of the arranged batch itself, or of what a model made of it.

        Args:
            outputs: Values with one entry a row; `logits` are cut to the width of each segment's own head.
        """
        total, start = len(self.order), 0
        for index, segment in enumerate(self.segments):
            places = range(start, start + len(segment.rows))
            own = {name: _rows(value, places, of=total) for name, value in outputs.items()}
            for widths in self.widths.values() if "logits" in own else ():
                if max(widths) == own["logits"].shape[-1]:
                    own["logits"] = own["logits"][..., : widths[index]]
                    break
            yield segment, own
            start = places.stop

    def counts_at(self, rows: int, *, module: str) -> int:
        """How many rows a module sees for each row of the batch: beams, windows of an image, tokens in a row.

        Raises:
            NotByRow: It is no whole number.
        """
        times, rest = divmod(rows, len(self.order))
        if rest:
            raise NotByRow(
                f"{module}: computes {rows} rows for a batch of {len(self.order)}: adapters on it cannot share a pass. "
                "Ask for the rows of each adapter alone."
            )
        return times


def plan(rows: Sequence[tuple[str | None, PoolTensors | None]], *, stack: Any) -> Pass:
    """Sorts the rows of a batch by layout and adapter.

    Args:
        rows: Name and tensors of each row's adapter.
        stack: Function from adapters of one layout to their `Stack`.
    """
    own: dict[str | None, list[int]] = {}
    for number, (name, _) in enumerate(rows):
        own.setdefault(name, []).append(number)
    segments = [Segment(name, rows[numbers[0]][1], tuple(numbers)) for name, numbers in own.items()]
    layouts: dict[Layout | None, int] = {}
    for segment in segments:
        layouts.setdefault(segment.adapter.layout if segment.adapter else None, len(layouts))
    last = len(layouts)

    def place(segment: Segment) -> int:
        return last if segment.adapter is None else layouts[segment.adapter.layout]

    segments.sort(key=place)
    groups, start = [], 0
    for _, members in groupby(segments, key=place):
        listed = list(members)
        adapters = [one.adapter for one in listed if one.adapter is not None]
        counts = tuple(len(one.rows) for one in listed)
        if adapters:
            groups.append(Group(stack=stack(adapters), start=start, counts=counts))
        start += sum(counts)
    touched = {name for group in groups for name in group.stack.parts}
    touched |= {name for segment in segments if segment.adapter is not None for name in segment.adapter.heads}
    return Pass(segments=tuple(segments), groups=tuple(groups), touched=frozenset(touched))


def add_lora(now: Pass, module: nn.Module, name: str, *, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What a module answers with the adapters of a pass; `out` is changed in place where that is possible.

    Args:
        now: The pass.
        module: The module of the base.
        name: Its full name.
        x: Its input, rows first.
        out: Its output, rows first.
    """
    groups = [group for group in now.groups if name in group.stack.parts]
    if not groups:
        return out
    out = out.contiguous()
    times = 1 if now.alone else now.counts_at(x.shape[0], module=name)
    for group in groups:
        counts = (x.shape[0],) if now.alone else tuple(count * times for count in group.counts)
        rows = slice(group.start * times, group.start * times + sum(counts))
        views = group.stack.views(name)
        if isinstance(module, CONVOLUTIONS):
            _add_convolution(out[rows], x[rows], views, module, counts=counts)
        else:
            _add_linear(out[rows], x[rows], views, bias=module.bias, counts=counts)
    return out


def _add_linear(out: torch.Tensor, x: torch.Tensor, views: Views, *, bias: Any, counts: tuple[int, ...]) -> None:
    """Rows of a linear layer, `(rows, ..., out)` and `(rows, ..., in)`."""
    a, b, factors = views
    flat = out.view(out.shape[0], -1, out.shape[-1])
    if factors is not None:
        scale_rows(flat, factors, bias, counts=counts)
    read = x.reshape(x.shape[0], -1, x.shape[-1])
    add_stacked_lora(flat, read.to(a.dtype), a, b, counts=counts)


def _add_convolution(out: torch.Tensor, x: torch.Tensor, views: Views, module: Any, *, counts: tuple[int, ...]) -> None:
    """Rows of a convolution, `(rows, out, ...)` and `(rows, in, ...)`, one adapter after the other."""
    a, b, factors = views
    convolve = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
    if factors is not None:
        scale_rows(out.view(out.shape[0], out.shape[1], -1).transpose(1, 2), factors, module.bias, counts=counts)
    edges = torch.tensor([0, *counts]).cumsum(0).tolist()
    for index, (start, end) in enumerate(pairwise(edges)):
        h = convolve(x[start:end].to(a.dtype), a[index], stride=module.stride, padding=module.padding)
        out[start:end].add_(convolve(h, b[index], groups=module.groups))


def answer_heads(
    now: Pass, name: str, *, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: torch.Tensor
) -> torch.Tensor:
    """What the heads of a pass answer, each on its own rows; narrower ones are filled up with minus infinity.

    Args:
        now: The pass.
        name: Full name of the head's module in the base.
        args: What it was called with.
        kwargs: The same by name.
        out: What the base's own head answered, `(rows, ..., outputs)`.
    """
    heads = [segment.adapter.heads.get(name) if segment.adapter else None for segment in now.segments]
    if not any(head is not None for head in heads):
        return out
    if now.alone and heads[0] is not None:
        alone: torch.Tensor = heads[0](*args, **kwargs)
        return alone
    times = now.counts_at(out.shape[0], module=name)
    total, start, answers = out.shape[0], 0, []
    for segment, head in zip(now.segments, heads, strict=True):
        places = range(start, start + len(segment.rows) * times)
        start = places.stop
        if head is None:
            answers.append(out[places.start : places.stop])
            continue
        given = [_rows(value, places, of=total) for value in args]
        answers.append(head(*given, **{key: _rows(value, places, of=total) for key, value in kwargs.items()}))
    widths = [answer.shape[-1] for answer in answers]
    if len(set(widths)) > 1:
        now.widths[name] = widths
        most = max(widths)
        answers = [F.pad(one, (0, most - one.shape[-1]), value=float("-inf")) for one in answers]
    return torch.cat(answers)


def _rows(value: Any, places: Sequence[int], *, of: int) -> Any:
    """The entries of some rows, of what has one for each of `of` rows; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == of:
        if isinstance(places, range):
            return value[places.start : places.stop]
        return value[torch.tensor(places, device=value.device)]
    if isinstance(value, list) and len(value) == of:
        return [value[place] for place in places]
    return value
