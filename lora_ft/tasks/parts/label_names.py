"""Labels as a model's config names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """The config fields `num_labels`, `id2label` and `label2id`.

    Args:
        labels: All labels in order.
    """
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
