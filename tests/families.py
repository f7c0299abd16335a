"""Every family of bases that the tasks need, with its auto class, head, a batch and a loss: data for contract tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.bases import IMAGE_SIZE

ROWS = 4
LABELS = ("bad", "fair", "good")
NAMED = {
    "num_labels": 3,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: index for index, label in enumerate(LABELS)},
}
DETECTION_HEAD = (
    "class_labels_classifier", "bbox_predictor", "class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of base for one kind of task.

    Attributes:
        kind: Of `make_base`.
        auto_class: That loads it for the task.
        known: The module names of the head that the task knows.
        config: Config fields that the data decides.
        batch: Makes model inputs with labels.
        head: What `modules_to_save` must be; empty: the base's own head serves.
        new_head: Whether the head has fresh weights.
        stored: The auto class that the base was saved with.
        processors: Auto classes of its processor.
        task_type: peft's.
        linears: Linear layers that `all-linear` adapts.
        convolutions: Convolutions that `all-conv` adapts with r = 4.
    """

    kind: str
    auto_class: str
    known: tuple[str, ...]
    batch: Callable[[], dict[str, Any]]
    head: tuple[str, ...] = ()
    new_head: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    stored: str | None = None
    processors: tuple[str, ...] = ("AutoTokenizer",)
    task_type: str | None = None
    linears: int = 0
    convolutions: int = 0


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _ids(*shape: int, low: int = 5, high: int = 60, seed: int = 1) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def _text(**targets: torch.Tensor) -> Callable[[], dict[str, Any]]:
    def batch() -> dict[str, Any]:
        ids = _ids(ROWS, 12)
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        return {"input_ids": ids, "attention_mask": mask, **targets}

    return batch


def _own_text() -> dict[str, Any]:
    ids = _ids(ROWS, 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def _pairs() -> dict[str, Any]:
    return {**_text()(), "decoder_input_ids": _ids(ROWS, 6, seed=2), "labels": _ids(ROWS, 6, seed=3)}


def _images() -> dict[str, Any]:
    return {"pixel_values": _numbers(ROWS, 3, IMAGE_SIZE, IMAGE_SIZE), "labels": torch.tensor([0, 1, 2, 0])}


def _boxed_images() -> dict[str, Any]:
    boxes = [
        {"class_labels": torch.tensor([row % 3]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])} for row in range(4)
    ]
    return {"pixel_values": _numbers(ROWS, 3, IMAGE_SIZE, IMAGE_SIZE), "labels": boxes}


def _sounds(labels: Callable[[], torch.Tensor]) -> Callable[[], dict[str, Any]]:
    return lambda: {"input_values": _numbers(ROWS, 6_400), "labels": labels()}


def _spectrograms() -> dict[str, Any]:
    return {"input_values": _numbers(ROWS, 64, 32), "labels": torch.tensor([0, 1, 2, 0])}


def _transcribed() -> dict[str, Any]:
    ids = {
        "decoder_input_ids": _ids(ROWS, 6, low=0, high=200, seed=2),
        "labels": _ids(ROWS, 6, low=0, high=200, seed=3),
    }
    return {"input_features": _numbers(ROWS, 16, 200), **ids}


TAGS = _ids(ROWS, 12, low=0, high=3, seed=4)
SPAN = {"start_positions": torch.tensor([1, 2, 3, 4]), "end_positions": torch.tensor([2, 4, 5, 6])}
QUIET = {"apply_spec_augment": False}
IMAGE_READER = ("AutoImageProcessor",)
SOUND_READERS = ("AutoProcessor", "AutoFeatureExtractor")
TOKENS = {"known": ("classifier", "score"), "config": NAMED, "task_type": "TOKEN_CLS"}
ANSWERS: dict[str, Any] = {"known": ("qa_outputs",), "task_type": "QUESTION_ANS"}
PICTURES = {"known": ("classifier", "head", "fc"), "config": NAMED, "processors": IMAGE_READER}
BOXES = {"known": DETECTION_HEAD, "config": NAMED, "processors": IMAGE_READER}
HEARD = {"known": ("projector", "classifier"), "config": {**NAMED, **QUIET}, "processors": ("AutoFeatureExtractor",)}
CTC = {"known": ("lm_head",), "config": {"vocab_size": 32, "pad_token_id": 0, **QUIET}, "processors": SOUND_READERS}

FAMILIES = {
    "bert-tokens": Family(
        "bert", "AutoModelForTokenClassification", batch=_text(labels=TAGS), head=("classifier",), linears=12, **TOKENS
    ),
    "gpt2-tokens": Family(
        "gpt2", "AutoModelForTokenClassification", batch=_text(labels=TAGS), head=("classifier",), linears=8, **TOKENS
    ),
    "distilbert-answers": Family(
        "distilbert", "AutoModelForQuestionAnswering", batch=_text(**SPAN), head=("qa_outputs",), linears=12, **ANSWERS
    ),
    "roberta-masked": Family(
        "roberta", "AutoModelForMaskedLM", (), _own_text, new_head=False, stored="AutoModelForMaskedLM", linears=13
    ),
    "distilbert-masked": Family(
        "distilbert", "AutoModelForMaskedLM", (), _own_text, new_head=False, stored="AutoModelForMaskedLM", linears=13
    ),
    "bert-masked-headless": Family("bert", "AutoModelForMaskedLM", (), _own_text, ("transform",), linears=12),
    "gpt2-causal": Family(
        "gpt2", "AutoModelForCausalLM", (), _own_text, new_head=False, task_type="CAUSAL_LM", linears=8
    ),
    "llama-causal": Family(
        "llama", "AutoModelForCausalLM", (), _own_text, new_head=False, stored="AutoModelForCausalLM",
        task_type="CAUSAL_LM", linears=14,
    ),
    "t5-text2text": Family(
        "t5", "AutoModelForSeq2SeqLM", (), _pairs, new_head=False, task_type="SEQ_2_SEQ_LM", linears=32
    ),
    "bart-text2text": Family(
        "bart", "AutoModelForSeq2SeqLM", (), _pairs, new_head=False, task_type="SEQ_2_SEQ_LM", linears=32
    ),
    "vit-images": Family(
        "vit", "AutoModelForImageClassification", batch=_images, head=("classifier",), linears=12, convolutions=1,
        **PICTURES,
    ),
    "resnet-images": Family(
        "resnet", "AutoModelForImageClassification", batch=_images, head=("classifier",), convolutions=9, **PICTURES
    ),
    "mobilenet-images": Family(
        "mobilenet_v2", "AutoModelForImageClassification", batch=_images, head=("classifier",), convolutions=35,
        **PICTURES,
    ),
    "timm-images": Family(
        "timm", "AutoModelForImageClassification", batch=_images, head=("fc",), convolutions=15, **PICTURES
    ),
    "yolos-boxes": Family(
        "yolos", "AutoModelForObjectDetection", batch=_boxed_images, head=("bbox_predictor", "class_labels_classifier"),
        linears=12, convolutions=1, **BOXES,
    ),
    "detr-boxes": Family(
        "detr", "AutoModelForObjectDetection", batch=_boxed_images, head=("bbox_predictor", "class_labels_classifier"),
        linears=28, convolutions=8, **BOXES,
    ),
    "rt_detr-boxes": Family(
        "rt_detr", "AutoModelForObjectDetection", batch=_boxed_images, linears=29, convolutions=61,
        head=(
            "denoising_class_embed", "enc_bbox_head", "enc_score_head",
            *(f"model.decoder.{name}_embed.{layer}" for name in ("bbox", "class") for layer in (0, 1)),
        ),
        **BOXES,
    ),
    "whisper-speech": Family(
        "whisper", "AutoModelForSpeechSeq2Seq", (), _transcribed, new_head=False, config=QUIET,
        processors=SOUND_READERS, linears=32, convolutions=2,
    ),
    "whisper-sounds": Family(
        "whisper", "AutoModelForAudioClassification", batch=lambda: {**_transcribed_inputs(), **_classes()},
        head=("classifier", "projector"), linears=12, convolutions=2, **HEARD,
    ),
    "wav2vec2-ctc": Family(
        "wav2vec2", "AutoModelForCTC", batch=_sounds(lambda: _ids(ROWS, 5, high=30)), head=("lm_head",), linears=13,
        convolutions=3, **CTC,
    ),
    "hubert-ctc": Family(
        "hubert", "AutoModelForCTC", batch=_sounds(lambda: _ids(ROWS, 5, high=30)), head=("lm_head",), linears=13,
        convolutions=3, **CTC,
    ),
    "wav2vec2-sounds": Family(
        "wav2vec2", "AutoModelForAudioClassification", batch=_sounds(lambda: torch.tensor([0, 1, 2, 0])),
        head=("classifier", "projector"), linears=13, convolutions=3, **HEARD,
    ),
    "ast-sounds": Family(
        "ast", "AutoModelForAudioClassification", batch=_spectrograms, head=("classifier",), linears=12, convolutions=1,
        **HEARD,
    ),
}  # fmt: skip


def _transcribed_inputs() -> dict[str, Any]:
    return {"input_features": _numbers(ROWS, 16, 200)}


def _classes() -> dict[str, Any]:
    return {"labels": torch.tensor([0, 1, 2, 0])}


def values(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the probe compares, `(rows, values)`: logits, and boxes or ends of answers where there are any."""
    outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", *SPAN)})
    found = [outputs[name] for name in ("logits", "start_logits", "end_logits", "pred_boxes") if name in outputs]
    return torch.cat([value.flatten(1) for value in found], dim=1)[:, :400]


def loss(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The loss that transformers computes for a batch."""
    return model(**inputs).loss
