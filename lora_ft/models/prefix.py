"""The layers below the lowest one that is trained: found, run alone, and passed over where their output is known.

Nothing in them learns, so that the same row always leaves them as it did before: with adapters in the top 2 of 6
layers, 4 of 6 need to compute each row only once. They are stood in for within a forward pass and put back after it:
outside of one the model is as transformers and peft made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Prefix:
    """The layers below the lowest one that is trained.

    Attributes:
        name: Of the list of layers in the model.
        layers: All layers.
        count: How many of the first of them are below.
    """

    name: str
    layers: nn.ModuleList
    count: int


@dataclass(frozen=True)
class Reached:
    """A forward pass up to the end of a prefix.

    Attributes:
        hidden: What its last layer returned; where all is well `(batch, tokens, width)`.
        order: Numbers of the layers in the order in which they were called.
        called: Names of all modules that were called on the way, each once.
    """

    hidden: Any
    order: tuple[int, ...]
    called: tuple[str, ...]


class PrefixDone(Exception):
    """The last layer of a prefix has answered; what comes after it is not wanted.

    Args:
        hidden: Its answer.
    """

    def __init__(self, hidden: Any) -> None:
        super().__init__("the end of the prefix")
        self.hidden = hidden


def find_prefix(model: nn.Module) -> Prefix | None:
    """The longest list of layers in a model, and how many lie below the first with something to train in it.

    Lists within layers (experts) are none. Whether the layers are called in their order, and whether something before
    them is trained, shows in a forward pass alone; see `reach`.

    Args:
        model: The model with its adapter.

    Returns:
        The prefix; None where not even one whole layer is below.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    if not lists:
        return None
    name, layers = max(lists.items(), key=lambda one: len(one[1]))
    trained = [number for number, layer in enumerate(layers) if any(one.requires_grad for one in layer.parameters())]
    count = trained[0] if trained else len(layers)
    return Prefix(name, layers, count) if count else None


def run_prefix(prefix: Prefix, forward: Callable[[], object]) -> Any:
    """Runs a model up to the end of its prefix.

    Args:
        prefix: The prefix.
        forward: A forward pass of the model.

    Returns:
        What the last layer of the prefix returned, `(batch, tokens, width)`.
    """
    last = prefix.count - 1
    with _replaced(prefix.layers, {last: _Last(prefix.layers[last])}):
        try:
            forward()
        except PrefixDone as done:
            return done.hidden
    return None


def reach(model: nn.Module, prefix: Prefix, forward: Callable[[], object]) -> Reached:
    """Runs a model up to the end of its prefix, and watches what is called on the way.

    Args:
        model: The model.
        prefix: Its prefix.
        forward: A forward pass.
    """
    order: list[int] = []
    called: dict[str, None] = {}
    numbers = {id(layer): number for number, layer in enumerate(prefix.layers)}
    hooks = []
    for name, module in model.named_modules():

        def watch(one: nn.Module, _: Any, name: str = name) -> None:
            called.setdefault(name)
            if id(one) in numbers:
                order.append(numbers[id(one)])

        hooks.append(module.register_forward_pre_hook(watch))
    try:
        hidden = run_prefix(prefix, forward)
    finally:
        for hook in hooks:
            hook.remove()
    return Reached(hidden, tuple(order), tuple(called))


@contextmanager
def passing_over(prefix: Prefix, hidden: torch.Tensor) -> Iterator[None]:
    """Within, the next forward pass gets the output of the prefix instead of computing it; a second one computes.

    A pass over a batch of another shape computes too.

    Args:
        prefix: The prefix.
        hidden: Its output, `(batch, tokens, width)`, zeros where a row is padded.
    """
    given = _Given(hidden)
    last = prefix.count - 1
    stand_ins = {
        number: _PassedOver(prefix.layers[number], given, first=number == 0, last=number == last)
        for number in range(prefix.count)
    }
    with _replaced(prefix.layers, stand_ins):
        yield


@contextmanager
def last_output(prefix: Prefix) -> Iterator[list[Any]]:
    """Within, what the last of all layers returns is added to a list."""
    found: list[Any] = []

    def add(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)

    hook = prefix.layers[-1].register_forward_hook(add)
    try:
        yield found
    finally:
        hook.remove()


@dataclass
class _Given:
    """What a forward pass is given.

    Attributes:
        hidden: The output of the prefix.
        seen: Whether a pass has begun.
        taken: Whether the pass that runs takes it.
    """

    hidden: torch.Tensor
    seen: bool = False
    taken: bool = False


class _StandIn(nn.Module):
    """Stands in for a layer, whose attributes transformers reads while it walks through the layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__["_modules"]
        return own["layer"] if name == "layer" else getattr(own["layer"], name)


class _Last(_StandIn):
    """The last layer of a prefix, after which a forward pass ends."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The layer's answer, raised."""
        raise PrefixDone(self.layer(*arguments, **named))


class _PassedOver(_StandIn):
    """A layer of a prefix, which computes nothing where the prefix's output is given."""

    def __init__(self, layer: nn.Module, given: _Given, *, first: bool, last: bool) -> None:
        super().__init__(layer)
        self.given, self.first, self.last = given, first, last

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What came in; the last one what was given."""
        hidden = arguments[0] if arguments else named["hidden_states"]
        if self.first:
            self.given.taken = not self.given.seen and hidden.shape[:2] == self.given.hidden.shape[:2]
            self.given.seen = True
        if not self.given.taken:
            return self.layer(*arguments, **named)
        return self.given.hidden if self.last else hidden


@contextmanager
def _replaced(layers: nn.ModuleList, stand_ins: Mapping[int, nn.Module]) -> Iterator[None]:
    """Within, some layers are others."""
    kept: Sequence[tuple[int, nn.Module]] = [(number, layers[number]) for number in stand_ins]
    for number, other in stand_ins.items():
        layers[number] = other
    try:
        yield
    finally:
        for number, layer in kept:
            layers[number] = layer
