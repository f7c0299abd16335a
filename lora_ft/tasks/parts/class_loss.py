"""What a loss over classes weighs: class weights, focal loss, logit adjustment; one value a row, nothing averaged.

A batch's loss is the sum of its rows over the rows of all accumulated batches, so that n small batches are one large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def row_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    several: bool,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """The loss of each row, by all that the recipe's section `loss` says of classes.

    Args:
        logits: `(rows, labels)` in float32.
        labels: Class numbers `(rows,)` or shares of classes `(rows, labels)`; 0/1 `(rows, labels)` where `several`.
        several: Whether a row may have several labels.
        weight: Weight of each class, `(labels,)`; where `several`, of each positive.
        label_smoothing: Share of the label that is spread over all classes; not where `several`.
        settings: `focal_gamma`, and `logit_offsets` as `logit_offsets` makes them; neither when a loss is measured.

    Returns:
        `(rows,)`; where `several` `(rows, labels)`.
    """
    import torch.nn.functional as F  # noqa: N812

    settings = settings or {}
    if settings.get("logit_offsets") is not None:
        logits = logits + logits.new_tensor(settings["logit_offsets"])
    gamma = settings.get("focal_gamma") or 0.0
    if several:
        if gamma:
            return binary_focal_loss(logits, labels, gamma=gamma, weight=weight)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
    if gamma:
        return focal_loss(logits, labels, gamma=gamma, weight=weight, label_smoothing=label_smoothing)
    return F.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="none")


def focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy in which what the model is sure of counts less: `-(1 - p) ** gamma * log p` of the true class.

    Linear in the labels, so that mixed and smoothed labels are the mix of the losses against each class.

    Args:
        logits: `(rows, labels)`.
        labels: Class numbers `(rows,)`, or shares of classes `(rows, labels)`.
        gamma: How much less; 0 is cross-entropy.
        weight: Weight of each class, `(labels,)`.
        label_smoothing: Share of the label that is spread over all classes.

    Returns:
        `(rows,)`.

    Source:
        Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), equations 4 and 5.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    classes = logits.shape[-1]
    log_p = F.log_softmax(logits, dim=-1)  # (rows, labels)
    shares = F.one_hot(labels, classes).to(log_p) if labels.dim() == 1 else labels.to(log_p)
    shares = shares * (1 - label_smoothing) + label_smoothing / classes
    rest = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)  # 1 - p; a root has no gradient at 0
    parts = shares * rest**gamma * -log_p
    return (parts if weight is None else parts * weight).sum(dim=-1)


def binary_focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, gamma: float, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Focal loss of each label of rows that may have several.

    Args:
        logits: `(rows, labels)`.
        labels: 0/1, or shares between them, `(rows, labels)`.
        gamma: How much less what the model is sure of counts; 0 is binary cross-entropy.
        weight: Weight of each positive, `(labels,)`.

    Returns:
        `(rows, labels)`.

    Source:
        Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), equations 1 to 5.
    """
    import torch.nn.functional as F  # noqa: N812

    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)  # log p, log (1 - p)
    positive = labels * (no * gamma).exp() * -yes
    negative = (1 - labels) * (yes * gamma).exp() * -no
    return (positive if weight is None else positive * weight) + negative


def logit_offsets(references: Sequence[Any], *, labels: int, several: bool, tau: float) -> list[float]:
    """What is added to each logit while training, and left away afterwards, so that rare classes get a wider margin.

    Args:
        references: Encoded labels of the training rows, before any are drawn more often than others.
        labels: Number of labels.
        several: Whether a row may have several labels: then each label is a problem of two classes of its own.
        tau: How strongly; 1 makes up for the shares of the classes.

    Returns:
        `tau * log share` of each class; where `several` `tau * log (share / (1 - share))` of each label. A class
        without rows counts as one row.

    Source:
        Menon et al., Long-tail learning via logit adjustment (ICLR 2021), equation 10.
    """
    import numpy as np

    rows = len(references)
    if several:
        positives = np.clip(np.asarray(references, dtype=np.float64).sum(axis=0), 1, max(rows - 1, 1))
        odds = positives / np.maximum(rows - positives, 1)
        return [float(value) for value in tau * np.log(odds)]
    counts = np.maximum(np.bincount(np.asarray(references, dtype=np.int64), minlength=labels), 1)
    return [float(value) for value in tau * np.log(counts / counts.sum())]
