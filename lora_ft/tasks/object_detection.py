"""Object detection: boxes with names in a picture.

One row: image {"path": "cells/0001.jpg", "bytes": None}, objects {"bbox": [[68, 315, 286, 165]], "category": ["WBC"]}
->  {"objects": [{"label": "WBC", "score": 0.98, "box": [67.2, 314.8, 287.1, 165.2]}]}
A box is left, top, width and height in pixels of the upright image, there as here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import boxes as geometry
from lora_ft.tasks.parts import detection, detection_loss, images, shown
from lora_ft.tasks.parts import image_augmentation as augmentation
from lora_ft.tasks.parts.label_names import label_fields
from lora_ft.tasks.parts.problem import Features, Problem, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

CHANCE = 0.01
"""Boxes drawn at random reach a mAP50 well below this."""

CLASSIFICATION_ONLY = ("crop_size", "do_center_crop")


class ObjectDetection(Task):
    """Object detection with DETR-like bases: YOLOS, DETR, RT-DETR and their relatives in transformers."""

    name: ClassVar[str] = "object-detection"
    summary: ClassVar[str] = "boxes with names in a picture"
    auto_class: ClassVar[str] = "AutoModelForObjectDetection"
    processor_classes: ClassVar[tuple[str, ...]] = ("AutoImageProcessor",)
    head: ClassVar[tuple[str, ...]] = (
        "class_labels_classifier", "bbox_predictor", "class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head",
        "denoising_class_embed",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column("image", "image", True, "a picture: a path, or its bytes"),
        Column("objects", "objects", True, "its boxes in pixels, and what is in them", target=True),
    )
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {"object_detection": ("map", "map_50", "map_75", "mar_100")}
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        **{name: types for name, types in images.PROCESSOR_FIELDS.items() if name not in CLASSIFICATION_ONLY},
        "threshold": (float,),
    }
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = augmentation.DETECTION_FIELDS
    argument: ClassVar[str] = "image"
    lazy: ClassVar[bool] = True
    changes_model: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("hustvl/yolos-tiny", "data/train.json")

    def vocabulary(self, rows: Iterable[Mapping[str, Any]], *, given: Sequence[str] | None) -> tuple[str, ...]:
        """See `Task.vocabulary`: the categories of the source in its order, else those of the rows by alphabet."""
        if given:
            return tuple(given)
        return tuple(sorted({str(name) for row in rows for name in row["objects"]["category"]}))

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; fills in `size`, so that all images get one size whatever batch they are in."""
        del problem_type
        return detection.detection_settings(
            images.image_settings(given, base_config=base_config), processor_size=dict(processor.size)
        )

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: an image that cannot be read whole, a box outside of it or without area."""
        found = images.image_fault(row["image"])
        if found:
            return f"image: {found}"
        if row.get("objects") is None:
            return None
        try:
            size = images.image_size(row["image"])
        except DataError as error:
            return f"image: {error}"
        found = geometry.boxes_fault(row["objects"], size=size, labels=labels)
        return f"objects: {found}" if found else None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`."""
        return label_fields(problem.labels)

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`; in training each picture is varied with its boxes as `augmentation` says.

        `canvas` is what the model sees of an image (the image and its padding) and `image_size` the image itself, both
        width and height in pixels of the image.
        """
        import numpy as np

        vary = augmentation.Augmentation.of(problem.augmentation if training else {})
        rng = np.random.default_rng(problem.seed)
        references = self.references(rows, problem) if "objects" in rows else [None] * len(rows["image"])
        features: Features = {name: [] for name in ("pixel_values", "canvas", "image_size", "labels", "boxes")}
        for value, objects in zip(rows["image"], references, strict=True):
            picture = images.open_image(value)
            table = geometry.clip_boxes(geometry.box_table(objects["boxes"] if objects else []), picture.size)
            picture, table, kept = augmentation.augment_boxes(picture, table, vary, rng)
            found, canvas = detection.on_canvas(picture, problem.processor, problem.settings)
            features["pixel_values"].append(found)
            features["canvas"].append(canvas)
            features["image_size"].append(picture.size)
            features["labels"].append([problem.labels.index(objects["labels"][one]) for one in kept] if objects else [])
            features["boxes"].append(geometry.to_model(table, canvas).tolist())
        if "objects" not in rows:
            del features["labels"], features["boxes"]
        features["length"] = self.lengths(rows, problem)
        features["truncated"] = [False] * len(rows["image"])
        return features

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: boxes in pixels with their labels."""
        del problem
        return [{"boxes": row["bbox"], "labels": row["category"]} for row in rows["objects"]]

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; images without objects have no labels but -100."""
        augmentation.Augmentation.of(problem.augmentation if training else {})  # a wrong value shows before training

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            from lora_ft.tasks.parts.image_batches import pad_boxes, stack_images

            batch = {"pixel_values": stack_images([row["pixel_values"] for row in features])}
            return {**batch, **pad_boxes(features)} if "labels" in features[0] else batch

        return collate

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`; with labels the model computes its own loss, by its own matching of boxes and objects.

        The mask of the padding is not handed on: the canvas as a whole is the image, for the model as for its boxes.
        """
        del problem
        if "labels" not in batch:
            return model(pixel_values=batch["pixel_values"])
        with detection_loss.summed_loss(model):
            return model(pixel_values=batch["pixel_values"], labels=detection.targets(batch))

    def loss(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        problem: Problem,
        *,
        items: torch.Tensor | int | float,
        class_weight: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """See `Task.loss`: the model's own, over the boxes and queries of all batches where `totals` says how many.

        With images alone as `items` it is the mean of this batch, times its images.
        """
        del problem, class_weight, label_smoothing
        import torch

        if isinstance(items, torch.Tensor) and items.ndim:
            return detection_loss.loss_of(outputs, items)
        return detection_loss.loss_of(outputs, self.totals(batch)) * self.items(batch) / items

    def items(self, batch: Mapping[str, Any]) -> int:
        """See `Task.items`: images."""
        return int(batch["labels"].shape[0])

    def totals(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.totals`: images and boxes."""
        import torch

        labels = batch["labels"]
        return torch.stack([torch.tensor(len(labels), device=labels.device), labels.ne(-100).sum()])

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`; with labels, metrics are wanted, and those look at boxes of any score."""
        if outputs is None:
            outputs = self.forward(model, {"pixel_values": batch["pixel_values"]}, problem)
        found = {"logits": outputs["logits"], "pred_boxes": outputs["pred_boxes"]}
        return {**found, "any_score": batch["labels"].new_ones(self.items(batch))} if "labels" in batch else found

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`: at most 100 boxes from `threshold` on, the surest first; for metrics from 0 on."""
        threshold = 0.0 if "any_score" in answer else detection.threshold_of(problem.settings)
        return [
            {
                "objects": detection.decoded(
                    logits, found, labels=problem.labels, threshold=threshold, canvas=one["canvas"],
                    size=tuple(one["image_size"]),
                )
            }
            for logits, found, one in zip(answer["logits"], answer["pred_boxes"], features, strict=True)
        ]  # fmt: skip

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`: COCO's mean average precision."""
        from lora_ft.metrics.detection import detection_counts, detection_scores

        columns = [detection.columns_of(one) for one in predictions]
        counts = detection_counts(columns, references, label_names=problem.labels)
        return lambda rows: detection_scores(counts, rows)

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: nothing is there."""
        del references, problem
        return {"objects": []}

    def learned(
        self, ours: Mapping[str, float], baseline: Mapping[str, float], *, rows: int, problem_type: str
    ) -> bool:
        """See `Task.learned`: more than boxes at random would hit."""
        del rows, problem_type
        return ours["map_50"] > max(CHANCE, baseline["map_50"])

    def tune(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> dict[str, Any]:
        """See `Task.tune`: the `threshold` with the best F1, unless the recipe gives one."""
        if "threshold" in problem.settings:
            return {}
        best = geometry.best_threshold([detection.columns_of(one) for one in predictions], references)
        return {} if best is None else {"threshold": best}

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: means over the queries, as RT-DETR's order of queries hangs on the last bit."""
        import torch

        del batch
        return torch.cat([outputs["logits"].float().mean(1), outputs["pred_boxes"].float().mean(1)], dim=1)

    def perceived(self, row: Mapping[str, Any], problem: Problem, *, training: bool = False) -> Any:
        """See `Task.perceived`."""
        from lora_ft.tasks.parts.perceived import picture, with_boxes

        made = self.encode({name: [value] for name, value in row.items()}, problem, training=training)
        seen = picture(made["pixel_values"][0], problem)
        if "boxes" not in made:
            return seen
        wide, high = seen.size
        boxes = [((x - w / 2) * wide, (y - h / 2) * high, w * wide, h * high) for x, y, w, h in made["boxes"][0]]
        return with_boxes(seen, boxes, [problem.labels[label] for label in made["labels"][0]])

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: the size of the picture, and its boxes in pixels: left, top, width, height."""
        width, height = feature["canvas"]
        boxes = [((x - w / 2) * width, (y - h / 2) * height, w * width, h * height) for x, y, w, h in feature["boxes"]]
        return shown.boxes_shown(feature, boxes, problem)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`: red and green fruit on white."""
        from lora_ft.tasks.parts.image_examples import scenes

        del problem_type
        pictures, objects = scenes()
        return {"image": pictures, "objects": objects}

    def draw(self, row: Mapping[str, Any], prediction: Mapping[str, Any]) -> Any:
        """See `Task.draw`: the picture with boxes, names and scores."""
        return detection.drawn(images.open_image(row["image"]), prediction["objects"])
