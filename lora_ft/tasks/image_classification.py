"""Image classification: one label or several labels for a picture.

One row: image {"path": "photos/apple_01.jpg", "bytes": None}, label "apple"
->  {"label": "apple", "score": 0.97, "scores": {"apple": 0.97, "pear": 0.02, ...}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import classification as parts
from lora_ft.tasks.parts import image_augmentation as augmentation
from lora_ft.tasks.parts import images, shown
from lora_ft.tasks.parts.classification import decided
from lora_ft.tasks.parts.problem import Features, Parts, Problem, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

NAMED = 5
"""A prediction names the scores of the five likeliest labels, and top-5 accuracy looks at as many."""


class ImageClassification(Task):
    """Image classification with transformers' and timm's bases; the labels decide the problem type."""

    name: ClassVar[str] = "image-classification"
    summary: ClassVar[str] = "one label or several labels for a picture"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    processor_classes: ClassVar[tuple[str, ...]] = ("AutoImageProcessor",)
    head: ClassVar[tuple[str, ...]] = ("classifier", "cls_classifier", "distillation_classifier", "head", "fc")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("image", "image", True, "a picture: a path, or its bytes"),
        Column("label", "label", True, "a class, or a list of classes", target=True),
    )
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {
        parts.SINGLE: (
            "accuracy", "f1_macro", "top5_accuracy", "precision_macro", "recall_macro", "matthews_corrcoef",
        ),
        parts.MULTI: parts.METRICS[parts.MULTI],
    }  # fmt: skip
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = images.PROCESSOR_FIELDS
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = augmentation.CLASSIFICATION_FIELDS
    argument: ClassVar[str] = "image"
    lazy: ClassVar[bool] = True
    weighs_classes: ClassVar[bool] = True
    smooths_labels: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("google/vit-base-patch16-224-in21k", "data/train")

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`."""
        del processor, problem_type
        return images.image_settings(given, base_config=base_config)

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: an image that cannot be read whole."""
        del labels
        found = images.image_fault(row["image"])
        return f"image: {found}" if found else None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`."""
        return parts.classification_config(problem)

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`; in training each picture is varied as `augmentation` says."""
        import numpy as np

        vary = augmentation.Augmentation.of(problem.augmentation if training else {})
        rng = np.random.default_rng(problem.seed)
        features: Features = {"pixel_values": []}
        for value in rows["image"]:
            picture = augmentation.augment_image(images.open_image(value), vary, rng)
            found = images.processed(picture, problem.processor, problem.settings)
            features["pixel_values"].append(found["pixel_values"])
        features["length"] = self.lengths(rows, problem)
        features["truncated"] = [False] * len(rows["image"])
        if "label" in rows:
            features["labels"] = self.references(rows, problem)
        return features

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: class numbers, or 0/1 vectors."""
        return parts.encode_labels(rows["label"], problem)

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; in training images of a batch are mixed where `augmentation` says so."""
        vary = augmentation.Augmentation.of(problem.augmentation if training else {})

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            from lora_ft.tasks.parts.image_batches import mix, stack_images

            batch = {"pixel_values": stack_images([row["pixel_values"] for row in features])}
            if "labels" in features[0]:
                batch["labels"] = parts.label_tensor(features, problem)
                if vary.mixes:
                    batch = mix(batch, vary, classes=len(problem.labels))
            return batch

        return collate

    def collates_by_chance(self, problem: Problem) -> bool:
        """See `Task.collates_by_chance`: mixup and cutmix."""
        return augmentation.Augmentation.of(problem.augmentation).mixes

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`."""
        del problem
        return model(pixel_values=batch["pixel_values"])

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
        """See `Task.loss`: cross-entropy, also against mixed labels, or binary cross-entropy a label."""
        return parts.classification_loss(
            outputs["logits"], batch.get("mixed_labels", batch["labels"]), problem, items=items,
            class_weight=class_weight, label_smoothing=label_smoothing,
        )  # fmt: skip

    def items(self, batch: Mapping[str, Any]) -> int:
        """See `Task.items`: images; for several labels a row, labels."""
        return int(batch["labels"].numel())

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`; of many classes only the five likeliest are named."""
        del features
        predictions = parts.decode_classes(answer["logits"], problem)
        if problem.problem_type == parts.SINGLE:
            for one in predictions:
                ranked = sorted(one["scores"].items(), key=lambda pair: -pair[1])
                one["scores"] = dict(ranked[:NAMED])
        return predictions

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: what the thresholds say of the scores, where there are any."""
        del row
        (only,) = parts
        return decided(only, problem)

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`; with five classes or fewer, top-5 accuracy looks at all but one."""
        score = parts.classification_scorer(predictions, references, problem)
        if problem.problem_type != parts.SINGLE:
            return score
        from lora_ft.metrics.single_label import label_ranks, top_k_accuracy

        ranked = [sorted(one["scores"], key=lambda label: -one["scores"][label]) for one in predictions]
        ranks = label_ranks(ranked, [problem.labels[index] for index in references])
        k = max(1, min(NAMED, len(problem.labels) - 1))
        return lambda rows: {**score(rows), "top5_accuracy": top_k_accuracy(ranks[rows], k)}

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: the majority class, or the frequent labels."""
        return parts.majority_answer(references, problem)

    def learned(
        self, ours: Mapping[str, float], baseline: Mapping[str, float], *, rows: int, problem_type: str
    ) -> bool:
        """See `Task.learned`: by more than chance."""
        return parts.beats_majority(ours, baseline, rows=rows, problem_type=problem_type)

    def tune(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> dict[str, Any]:
        """See `Task.tune`: the thresholds of labels, where the recipe wants them tuned."""
        return parts.tune_thresholds(predictions, references, problem)

    def perceived(self, row: Mapping[str, Any], problem: Problem, *, training: bool = False) -> Any:
        """See `Task.perceived`; before it is mixed with others of its batch."""
        from lora_ft.tasks.parts.perceived import picture

        return picture(self.encode({"image": [row["image"]]}, problem, training=training)["pixel_values"][0], problem)

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: the size of the picture, and its label."""
        return shown.picture_shown(feature, problem)

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the number of classes, ln 2 for each of several labels."""
        return parts.uniform_loss(problem)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`: red and green fruit, some of it large."""
        from lora_ft.tasks.parts.image_examples import fruit

        targets: dict[str, list[Any]] = {
            parts.SINGLE: ["apple", "pear", "apple", "pear"],
            parts.MULTI: [["apple"], ["pear"], ["apple", "large"], ["large", "pear"]],
        }
        return {"image": fruit(), "label": targets[problem_type]}
