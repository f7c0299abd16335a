"""The loss of DETR-like models: transformers' own on one process, and sums that add up where its means do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_ft.errors import InputError
from lora_ft.tasks.parts import detection_loss
from tests.tasks.painted import ATTENTION, Adapted

NOTHING: dict[str, list[Any]] = {"bbox": [], "category": []}


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("kind", ["yolos", "detr", "rt_detr"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_loss_of_one_batch_is_that_of_transformers(kind: str, auxiliary: bool, empty: bool, tmp_path: Path) -> None:
    if kind == "yolos" and auxiliary:
        pytest.skip("YOLOS hands out no layers before the last one")
    built = Adapted(tmp_path, kind, "object-detection", ATTENTION)
    built.model.eval()
    built.model.get_base_model().config.auxiliary_loss = auxiliary
    objects = [NOTHING] * 4 if empty else built.rows["objects"]
    batch = built.batch({"image": built.rows["image"], "objects": objects})
    targets = [
        {"class_labels": labels[labels != -100], "boxes": boxes[labels != -100]}
        for labels, boxes in zip(batch["labels"], batch["boxes"], strict=True)
    ]
    upstream = built.model(pixel_values=batch["pixel_values"], labels=targets)["loss"]
    assert float(built.loss(batch)) == pytest.approx(float(upstream), rel=1e-5)


def test_the_focal_loss_is_that_of_transformers() -> None:
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

    config = transformers.DeformableDetrConfig(num_labels=3, auxiliary_loss=True, decoder_layers=3)
    torch.manual_seed(0)
    layers, boxes = torch.randn(3, 2, 8, 3), torch.rand(3, 2, 8, 4) / 2 + 0.25
    labels = [
        {"class_labels": torch.tensor([2, 0]), "boxes": torch.rand(2, 4) / 2 + 0.25},
        {"class_labels": torch.tensor([], dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    given = (layers[-1], labels, torch.device("cpu"), boxes[-1], config, layers, boxes)
    loss, parts, _ = detection_loss._summed(DeformableDetrForObjectDetectionLoss)(*given)
    assert float(loss) == pytest.approx(float(DeformableDetrForObjectDetectionLoss(*given)[0]), rel=1e-6)
    whole = detection_loss.loss_of({"loss_dict": parts, "logits": layers[-1]}, (2, 2))
    assert float(whole) == pytest.approx(float(loss), rel=1e-6)


def test_a_model_keeps_its_own_loss_afterwards(tmp_path: Path) -> None:
    built = Adapted(tmp_path, "yolos", "object-detection", ATTENTION)
    own = built.model.get_base_model().loss_function
    built.loss(built.batch())
    assert built.model.get_base_model().loss_function is own


def test_a_family_whose_loss_waits_for_other_processes_is_refused_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss

    detection_loss._summed(LwDetrForObjectDetectionLoss)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match=r"^the loss of this base \(LwDetrForObjectDetectionLoss of transformers\)"):
        detection_loss._summed(LwDetrForObjectDetectionLoss)
