"""The loss of DETR-like models as sums over a batch, so that small batches and processes add up to one large batch.

transformers divides the boxes' part by the boxes of all processes with a collective call in the middle of the forward
pass (5.23): on n processes the result is n times too large, since the mean over processes is divided by n once more,
and processes with differently many batches wait for each other for ever. Here nothing is divided before the totals of
all accumulated batches on all processes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError

if TYPE_CHECKING:
    import torch

Loss = Callable[..., tuple[Any, dict[str, Any], Any]]
"""As transformers calls it: logits, labels, device, boxes, config, ... -> loss, its parts, auxiliary outputs."""

OF_ONE_PROCESS = ("RTDetrForObjectDetectionLoss", "DFineForObjectDetectionLoss", "Deimv2ForObjectDetectionLoss")
"""Losses of transformers that are divided by the boxes of their own batch, without asking other processes."""


@contextmanager
def summed_loss(model: Any) -> Iterator[None]:
    """Lets a model hand out the sums of its loss as `loss_dict`; see `loss_of`.

    Args:
        model: A detection model, adapted or not, possibly wrapped by DDP.

    Raises:
        InputError: The family's loss waits for other processes, and there are some.
    """
    import peft
    from accelerate.utils import extract_model_from_parallel

    inner = extract_model_from_parallel(model)
    inner = inner.get_base_model() if isinstance(inner, peft.PeftModel) else inner
    own = inner.loss_function
    inner.loss_function = _summed(own)
    try:
        yield
    finally:
        inner.loss_function = own


def loss_of(outputs: Any, totals: Sequence[Any] | torch.Tensor) -> torch.Tensor:
    """What the sums of a batch add to the mean over some batches, a scalar.

    Args:
        outputs: Of a model within `summed_loss`.
        totals: Images and boxes of all these batches.

    Source:
        Carion et al., DETR (2020), arXiv:2005.12872, equation 2 and appendix A.2: boxes are averaged over the objects
        of a batch, classes over all queries, those without an object weighing `eos_coefficient`.
    """
    import torch

    sums, queries = outputs["loss_dict"], outputs["logits"].shape[1]
    images, boxes = (torch.as_tensor(total, device=outputs["logits"].device) for total in totals)
    classes = boxes + sums["background"] * (images * queries - boxes)
    loss: torch.Tensor = sums["classes"] / classes.clamp(min=1e-6) + sums["boxes"] / boxes.clamp(min=1)
    return loss


def _summed(own: Loss) -> Loss:
    """The loss of a family with sums for its parts: over queries, `classes`, and over boxes, `boxes`."""
    if own.__name__ == "ForObjectDetectionLoss":
        return _softmax_loss
    if own.__name__ == "DeformableDetrForObjectDetectionLoss":
        return _focal_loss
    if own.__name__ not in OF_ONE_PROCESS:
        _refuse_processes(own)

    def over_boxes(logits: Any, labels: Sequence[Mapping[str, Any]], *given: Any, **named: Any) -> Any:
        loss, _, auxiliary = own(logits, labels, *given, **named)
        return loss, _parts(boxes=loss * max(1, sum(len(one["class_labels"]) for one in labels))), auxiliary

    return over_boxes


def _refuse_processes(own: Loss) -> None:
    import torch

    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise InputError(
            f"the loss of this base ({own.__name__} of transformers) waits for all processes at every batch, and they "
            "have not equally many. Train on one process, or take a YOLOS, DETR, Deformable DETR or RT-DETR base"
        )


def _softmax_loss(logits: Any, labels: Any, *given: Any, **_: Any) -> tuple[Any, dict[str, Any], Any]:
    """DETR, YOLOS: cross-entropy over classes and "nothing here", over the weights of all queries."""
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    device, pred_boxes, config, *layers = given
    matcher = HungarianMatcher(class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost)
    criterion = ImageLoss(matcher, config.num_labels, config.eos_coefficient, ["labels", "boxes"]).to(device)
    stages = [(logits, pred_boxes), *_layers_before(layers, config)]
    found = _stage_sums(criterion, labels, config, stages)
    matched = sum(min(len(one["class_labels"]), logits.shape[1]) for one in labels)
    weight = matched + config.eos_coefficient * (logits.shape[0] * logits.shape[1] - matched)
    boxes = max(1, sum(len(one["class_labels"]) for one in labels))
    parts = _parts(classes=found["classes"] * weight, boxes=found["boxes"], background=config.eos_coefficient)
    return found["classes"] + found["boxes"] / boxes, parts, None


def _focal_loss(logits: Any, labels: Any, *given: Any, **_: Any) -> tuple[Any, dict[str, Any], Any]:
    """Deformable, Conditional and DAB-DETR: a focal loss, over boxes as all the rest is."""
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    device, pred_boxes, config, *layers = given
    matcher = DeformableDetrHungarianMatcher(
        class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost
    )
    criterion = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"]).to(device)
    stages = [(logits, pred_boxes), *_layers_before(layers, config)]
    found = _stage_sums(criterion, labels, config, stages)
    total = found["classes"] + found["boxes"]
    return total / max(1, sum(len(one["class_labels"]) for one in labels)), _parts(boxes=total), None


def _layers_before(layers: Sequence[Any], config: Any) -> list[tuple[Any, Any]]:
    """What the layers before the last one answer, with auxiliary losses: classes and boxes."""
    if not config.auxiliary_loss:
        return []
    classes, boxes = layers
    return list(zip(classes[:-1], boxes[:-1], strict=True))


def _stage_sums(criterion: Any, labels: Any, config: Any, stages: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """The terms of all layers, those over boxes as sums; `ImageLoss.forward` without its collective call."""
    classes, boxes = 0.0, 0.0
    for logits, pred_boxes in stages:
        stage = {"logits": logits, "pred_boxes": pred_boxes}
        indices = criterion.matcher(stage, labels)
        found = {
            name: value
            for loss in criterion.losses
            for name, value in criterion.get_loss(loss, stage, labels, indices, 1.0).items()
        }
        classes = classes + found["loss_ce"]
        boxes = boxes + config.bbox_loss_coefficient * found["loss_bbox"]
        boxes = boxes + config.giou_loss_coefficient * found["loss_giou"]
    return {"classes": classes, "boxes": boxes}


def _parts(*, boxes: Any, classes: Any = None, background: float = 1.0) -> dict[str, Any]:
    """The sums, and what a query without an object weighs in the first of them."""
    return {"classes": boxes.new_zeros(()) if classes is None else classes, "boxes": boxes, "background": background}
