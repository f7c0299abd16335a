"""Audio classification: one label for a sound.

One row: audio {"path": "calls/0001.wav", "bytes": None}, label "seven"
->  {"label": "seven", "score": 0.97, "scores": {"one": 0.01, "seven": 0.97, ...}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import audio, audio_batches, audio_ctc, audio_features, shown
from lora_ft.tasks.parts import classification as parts
from lora_ft.tasks.parts.audio_augmentation import AUGMENTATION_FIELDS, Augmentation
from lora_ft.tasks.parts.classification import decided
from lora_ft.tasks.parts.problem import Features, Parts, Problem, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

FAMILIES = (*audio_ctc.FAMILIES, "audio-spectrogram-transformer")
DEFAULT_MAX_LENGTH_S = 30.0


class AudioClassification(Task):
    """Sound classification with wav2vec2, HuBERT and their kin, and with AST, which reads a spectrogram."""

    name: ClassVar[str] = "audio-classification"
    summary: ClassVar[str] = "one label for a sound"
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"
    processor_classes: ClassVar[tuple[str, ...]] = ("AutoFeatureExtractor",)
    head: ClassVar[tuple[str, ...]] = ("classifier", "projector")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("audio", "audio", True, "a sound: a path, or its bytes"),
        Column("label", "label", True, "a class", target=True),
    )
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {
        parts.SINGLE: ("accuracy", "f1_macro", "precision_macro", "recall_macro", "matthews_corrcoef"),
    }
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = audio.AUDIO_FIELDS
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    argument: ClassVar[str] = "audio"
    lazy: ClassVar[bool] = True
    weighs_classes: ClassVar[bool] = True
    smooths_labels: ClassVar[bool] = True
    changes_model: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("facebook/wav2vec2-base", "data/train")

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; long sounds are cut unless `truncation` is false."""
        del problem_type
        family = base_config.get("model_type")
        if family not in FAMILIES:
            raise InputError(
                f"model.pretrained_model_name_or_path: a base of the family {family!r} is not known to this task. "
                f"Expected {', '.join(FAMILIES)}. Take one of these"
            )
        limits = audio.sound_settings(given, extractor=processor, max_length_s=DEFAULT_MAX_LENGTH_S, truncation=True)
        return {**limits, **audio_ctc.convolutions_of(base_config)}

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: a sound that cannot be read, or is empty."""
        del labels
        found = audio.sound_fault(row["audio"])
        return f"audio: {found}" if found else None

    def misfit(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """See `Task.misfit`: a sound that is too short, or too long where it is not to be cut."""
        found = audio.length_misfit(row["audio"], problem.settings)
        return f"audio: {found}" if found else None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`."""
        return {**parts.classification_config(problem), **Augmentation.of(problem.augmentation).config()}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`; in training each sound is varied as `augmentation` says."""
        features = audio_features.encode_sounds(rows, problem, training=training)
        if "label" in rows:
            features["labels"] = self.references(rows, problem)
        return features

    def lengths(self, rows: Rows, problem: Problem) -> list[int]:
        """See `Task.lengths`: samples, from the headers."""
        return audio_features.sound_costs(rows, problem)

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: class numbers."""
        return parts.encode_labels(rows["label"], problem)

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; waveforms are padded to the longest of the batch."""
        least = audio_ctc.least_samples(problem, masked=training)

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            batch = audio_batches.pad_sounds(features, problem, least_samples=least)
            if "labels" in features[0]:
                batch["labels"] = parts.label_tensor(features, problem)
            return batch

        return collate

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`."""
        return audio_batches.answers_of(model, batch, problem)

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
        """See `Task.loss`: cross-entropy."""
        return parts.classification_loss(
            outputs["logits"], batch["labels"], problem, items=items, class_weight=class_weight,
            label_smoothing=label_smoothing,
        )  # fmt: skip

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`."""
        del features
        return parts.decode_classes(answer["logits"], problem)

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: what the thresholds say of the scores, where there are any."""
        del row
        (only,) = parts
        return decided(only, problem)

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`."""
        return parts.classification_scorer(predictions, references, problem)

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: the majority class."""
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
        """See `Task.perceived`; without the masks of SpecAugment."""
        from lora_ft.tasks.parts.perceived import sound

        return sound(row, problem, training=training)

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: how much of the sound is heard, and its label."""
        extractor = audio.extractor_of(problem.processor)
        heard = shown.sound_of(feature, name=extractor.model_input_names[0], rate=extractor.sampling_rate)
        return f"{heard} -> {shown.target_shown(feature['labels'], problem)}"

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the number of classes."""
        return parts.uniform_loss(problem)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`: tones, low and high."""
        del problem_type
        from lora_ft.tasks.parts.audio_examples import tones

        words = ["yes", "no", "yes", "no"]
        return {"audio": tones(words), "label": words}
