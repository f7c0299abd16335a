"""Losses of language models from what the head reads at labelled positions, instead of from the logits of all.

The model is run as always, whatever wraps it, but its head is handed no position at all: what it was to read is kept,
and the logits of labelled positions are made from that, a few at a time (`lora_ft.ops.label_loss`). What a family does
with logits after the head (a scale, a softcap, a bias) is looked up in its config, and proved on the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from lora_ft.tasks.parts.generation import unwrapped
from lora_ft.tasks.parts.language import IGNORED, label_sums, language_loss

if TYPE_CHECKING:
    import torch

    from lora_ft.ops.label_loss import FrozenHead

MULTIPLIES = ("logit_scale", "lm_head_multiplier", "output_multiplier", "logits_scaling")
"""Config fields that logits are multiplied by: Cohere, Falcon-H1, Muse, HyperCLOVA X."""

DIVIDES = ("logits_scaling",)
"""Config fields that logits are divided by: Granite."""

CAPS = ("final_logit_softcapping", "output_logit_soft_cap")
"""Config fields that bound logits by a tanh: Gemma, nanochat; xLSTM."""

ADDED_BIAS = "final_logits_bias"
"""A buffer that BART and its kin add to logits."""

LIFTED = 100.0
"""How large the largest logit is made in the proof, so that a softcap shows even in a base that is sure of nothing."""

TOLERANCE = {4: 1e-4, 2: 2e-2}
"""Largest difference in the proof, in units of the largest logit, for types of 4 and of 2 bytes."""


@dataclass(frozen=True)
class AfterHead:
    """What a family does with the logits of its head.

    Attributes:
        scale: What they are multiplied by.
        softcap: What bounds them, or None.
        biased: Whether `ADDED_BIAS` is added to them.
    """

    scale: float
    softcap: float | None
    biased: bool


@dataclass(frozen=True)
class Read:
    """What a head was given in a forward pass.

    Attributes:
        hidden: `(rows, positions, width)`, part of the graph.
        dtype: What autocast had the head compute in; None without autocast.
    """

    hidden: torch.Tensor
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Labelled:
    """What a forward pass left of the labelled positions, in place of its logits.

    Attributes:
        hidden: What the head reads there, `(n, width)`.
        labels: `(n,)`.
        rows: The row of each in the batch, `(n,)`.
        batch: Rows of the batch.
        head: What makes logits.
        down: What its LoRA adds through `head.up`, `(n, rank)`, or None.
    """

    hidden: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    batch: int
    head: FrozenHead
    down: torch.Tensor | None

    def losses(self, *, label_smoothing: float = 0.0) -> torch.Tensor:
        """The loss of each labelled position, `(n,)`."""
        from lora_ft.ops.label_loss import label_cross_entropy

        return label_cross_entropy(
            self.hidden, self.labels, head=self.head, down=self.down, label_smoothing=label_smoothing
        )

    @cached_property
    def measured(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses without a gradient, and whether each label is the likeliest token, `(n,)` each."""
        from lora_ft.ops.label_loss import label_measures

        return label_measures(self.hidden, self.labels, head=self.head, down=self.down)


def outputs_at_labels(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor | None, label_loss: LabelLoss | None
) -> Any:
    """The outputs of a model with its logits, or `Labelled` where only labelled positions matter and that can be.

    Args:
        model: The model, possibly wrapped by peft and DDP.
        inputs: Its arguments.
        labels: `(rows, positions)`, for each position what is to be said there; None where all logits are needed.
        label_loss: What makes `Labelled`; None: nothing does.
    """
    found = None if labels is None or label_loss is None else label_loss.run(model, inputs, labels)
    return model(**inputs) if found is None else found


def following(labels: torch.Tensor) -> torch.Tensor:
    """For each position the label of the next one, `(rows, positions)`: what a causal model is to say there."""
    import torch.nn.functional as F  # noqa: N812

    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def token_loss(
    outputs: Any, labels: torch.Tensor, *, items: torch.Tensor | int | float, label_smoothing: float
) -> torch.Tensor:
    """Cross-entropy at the labelled positions, a sum divided by `items`.

    Args:
        outputs: What `outputs_at_labels` returned.
        labels: As they were given to it.
        items: What the sum is divided by.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
    """
    import torch

    if not isinstance(outputs, Labelled):
        return language_loss(outputs["logits"], labels, items=items, label_smoothing=label_smoothing)
    if torch.is_grad_enabled() or label_smoothing:
        return outputs.losses(label_smoothing=label_smoothing).sum() / items
    return outputs.measured[0].sum() / items


def token_sums(outputs: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """`loss_sum`, `tokens` and `correct` of each row of a measured batch; see `label_sums`."""
    if not isinstance(outputs, Labelled):
        return label_sums(outputs["logits"], labels)
    losses, right = outputs.measured
    zeros = losses.new_zeros(outputs.batch)
    return {
        "loss_sum": zeros.index_add(0, outputs.rows, losses),
        "tokens": labels.ne(IGNORED).sum(1),
        "correct": zeros.long().index_add(0, outputs.rows, right.long()),
    }


class LabelLoss:
    """Runs models without the logits of positions that have no label, where that is the same.

    Attributes:
        told: What came of it so far: True, or why not; None before the first use.
    """

    def __init__(self) -> None:
        self.told: bool | str | None = None
        self._after: AfterHead | None = None

    def run(self, model: Any, inputs: Mapping[str, Any], labels: torch.Tensor) -> Labelled | None:
        """One forward pass; None if the head is not one that this can replace.

        Args:
            model: The model, possibly wrapped by peft and DDP.
            inputs: What it reads.
            labels: `(rows, positions)`, for each position what is to be said there.
        """
        from accelerate.utils import extract_model_from_parallel

        if self._after is None and self.told is not None:  # it was tried
            return None
        inner = extract_model_from_parallel(model)
        base = unwrapped(inner)
        head = base.get_output_embeddings()
        why = _unfit(head)
        if why is None and self._after is None:
            self._after = _proved(inner, inputs, labels)
            why = None if self._after is not None else "what this family does after its head is not known"
        self.told = why is None or f"off: {why}"
        if why is not None or self._after is None:
            return None
        with _handed(head, _nothing_of) as read:
            model(**inputs)
        return _labelled(read[0], labels, base, self._after)


def _nothing_of(hidden: torch.Tensor) -> torch.Tensor:
    """No position; still a part of the graph, so that DDP finds every parameter behind the outputs."""
    return hidden[:, :0]


@contextmanager
def _handed(head: Any, instead: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[list[Read]]:
    """Hands a head something else than what it was to read; what that was is kept in the list, one a call."""
    import torch

    read: list[Read] = []

    def keep(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, device = arguments[0], arguments[0].device.type
        read.append(Read(hidden, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None))
        return (instead(hidden), *arguments[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        handle.remove()


def _unfit(head: Any) -> str | None:
    """Why a head's logits cannot be made here; None if they can."""
    from peft.tuners import lora
    from peft.utils.other import AuxiliaryTrainingWrapper
    from torch import nn

    if head is None:
        return "the base names no head"
    linear = head.get_base_layer() if isinstance(head, lora.Linear) else head
    if isinstance(linear, AuxiliaryTrainingWrapper) or any(one.requires_grad for one in linear.parameters()):
        return "the head is trained"
    if type(linear) is not nn.Linear:  # quantised, or of another peft method
        return f"the head is a {type(linear).__module__}.{type(linear).__qualname__}"
    if linear.weight.is_meta:
        return "the head is not in memory"
    if linear is not head and (head.lora_variant or any(head.lora_bias.values()) or head.merged):
        return "the head's LoRA is not a plain one"
    return None if linear is head or len(head.active_adapters) == 1 else "the head has several adapters"


def _labelled(read: Read, labels: torch.Tensor, base: Any, after: AfterHead) -> Labelled:
    """What a pass left, at the labelled positions."""
    rows, positions = labels.ne(IGNORED).nonzero(as_tuple=True)
    hidden = read.hidden[rows, positions]
    head, down = _frozen_head(hidden, read.dtype, base, after)
    return Labelled(hidden, labels[rows, positions], rows, len(labels), head, down)


def _frozen_head(
    hidden: torch.Tensor, autocast: torch.dtype | None, base: Any, after: AfterHead
) -> tuple[FrozenHead, torch.Tensor | None]:
    """A model's head as the op reads it, and what its LoRA makes of hidden states `(..., width)`, if it has one."""
    import torch.nn.functional as F  # noqa: N812
    from peft.tuners import lora

    from lora_ft.ops.label_loss import FrozenHead

    layer = base.get_output_embeddings()
    linear = layer.get_base_layer() if isinstance(layer, lora.Linear) else layer
    bias = linear.bias
    if after.biased:
        added = base.get_buffer(ADDED_BIAS).flatten()
        bias = added if bias is None else bias + added
    up = down = None
    if layer is not linear and not layer.disable_adapters:
        (name,) = layer.active_adapters
        first = layer.lora_A[name].weight
        first = first if autocast is None else first.to(autocast)
        down = F.linear(layer.lora_dropout[name](hidden.to(first.dtype)), first) * layer.scaling[name]
        up = layer.lora_B[name].weight
    dtype = linear.weight.dtype if autocast is None else autocast
    return FrozenHead(linear.weight, dtype, bias=bias, up=up, scale=after.scale, softcap=after.softcap), down


def _proved(model: Any, inputs: Mapping[str, Any], labels: torch.Tensor) -> AfterHead | None:
    """What a family does after its head: the first reading of its config that gives its very logits; None if none does.

    The head is handed one position of each row, as it is and so large that a softcap shows; nothing else changes.
    """
    import torch

    from lora_ft.ops.label_loss import head_logits

    base, training = unwrapped(model), model.training
    weight = next(iter(base.get_output_embeddings().parameters()))

    def as_it_is_and_lifted(hidden: torch.Tensor) -> torch.Tensor:
        one = hidden[:, :1]
        logits = one.to(weight.dtype) @ weight.T
        return torch.cat([one, one * (LIFTED / logits.abs().amax().clamp(min=1e-3)).to(one.dtype)], 1)

    model.eval()
    try:
        with torch.no_grad(), _handed(base.get_output_embeddings(), as_it_is_and_lifted) as read:
            wanted = model(**inputs)["logits"].float()  # (rows, 2, vocabulary)
    finally:
        model.train(training)
    with torch.no_grad():
        if len(read) != 1 or read[0].hidden.shape[:2] != labels.shape:
            return None
        hidden = as_it_is_and_lifted(read[0].hidden).flatten(0, 1)
        for after in _readings(base):
            head, down = _frozen_head(hidden, read[0].dtype, base, after)
            found = head_logits(hidden, head=head, down=down)
            if found.shape != wanted.flatten(0, 1).shape:
                return None
            allowed = TOLERANCE[2 if head.dtype.itemsize == 2 else 4]
            most = wanted.flatten(0, 1).abs().amax(-1, keepdim=True)
            if bool((found - wanted.flatten(0, 1)).abs().le(allowed * most).all()):
                return after
    return None


def _readings(base: Any) -> Iterator[AfterHead]:
    """What a config may mean by its fields, the fullest reading first."""
    config = base.config.get_text_config().to_dict()
    given = {name: value for name, value in config.items() if isinstance(value, int | float) and value}
    factors = [given[name] for name in MULTIPLIES if name in given] + [
        1 / given[name] for name in DIVIDES if name in given
    ]
    caps = [float(given[name]) for name in CAPS if name in given]
    biased = any(name == ADDED_BIAS for name, _ in base.named_buffers())
    for scale, cap in product([*factors, 1.0], [*caps, None]):
        yield AfterHead(float(scale), cap, biased)
