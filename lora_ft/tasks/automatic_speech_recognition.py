"""Automatic speech recognition: a sound -> its transcript, by wav2vec2 and its kin (CTC) or by Whisper (seq2seq).

One row: audio {"path": "calls/0001.wav", "bytes": None}, text "Seven, please."  ->  {"text": "seven please"}
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import (
    audio,
    audio_batches,
    audio_ctc,
    audio_features,
    audio_transcripts,
    audio_whisper,
    labelled,
)
from lora_ft.tasks.parts.audio_augmentation import AUGMENTATION_FIELDS, Augmentation
from lora_ft.tasks.parts.problem import Features, Generation, Problem, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

CTC = "ctc"
SEQ2SEQ = "seq2seq"
METRICS = ("wer", "cer")
DEFAULT_MAX_LENGTH_S = 30.0


class AutomaticSpeechRecognition(Task):
    """Speech recognition; the family of the base decides how: frame by frame (CTC), or token by token (seq2seq)."""

    name: ClassVar[str] = "automatic-speech-recognition"
    summary: ClassVar[str] = "the transcript of a sound"
    auto_class: ClassVar[str] = "AutoModelForCTC"
    processor_classes: ClassVar[tuple[str, ...]] = ("AutoProcessor", "AutoFeatureExtractor")
    head: ClassVar[tuple[str, ...]] = ("lm_head",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("audio", "audio", True, "a sound: a path, or its bytes"),
        Column("text", "text", True, "its transcript", target=True),
    )
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {CTC: METRICS, SEQ2SEQ: METRICS}
    lower_is_better: ClassVar[frozenset[str]] = frozenset(METRICS)
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        **audio.AUDIO_FIELDS,
        **audio_transcripts.TRANSCRIPT_FIELDS,
        **audio_ctc.CTC_FIELDS,
        **audio_whisper.WHISPER_FIELDS,
    }
    generation_fields: ClassVar[Mapping[str, FieldTypes]] = audio_whisper.GENERATION_FIELDS
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    argument: ClassVar[str] = "audio"
    token_labels: ClassVar[tuple[str, ...]] = ("labels",)
    lazy: ClassVar[bool] = True
    changes_model: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("openai/whisper-small", "data/train.csv")

    def model_class(self, problem_type: str) -> str:
        """See `Task.model_class`."""
        return "AutoModelForSpeechSeq2Seq" if problem_type == SEQ2SEQ else self.auto_class

    def problem_type_of(self, columns: Collection[str], *, base_config: Mapping[str, Any]) -> str:
        """See `Task.problem_type_of`: by the family of the base."""
        del columns
        family = base_config.get("model_type")
        if family in audio_whisper.FAMILIES:
            return SEQ2SEQ
        if family in audio_ctc.FAMILIES:
            return CTC
        raise InputError(
            f"model.pretrained_model_name_or_path: a base of the family {family!r} is not known to this task. Expected "
            f"{', '.join((*audio_whisper.FAMILIES, *audio_ctc.FAMILIES))}. Take one of these"
        )

    def fit_processor(self, processor: Any, rows: Iterable[Mapping[str, Any]], *, given: Mapping[str, Any]) -> Any:
        """See `Task.fit_processor`: for CTC a vocabulary of the transcripts, where the base has none."""
        import transformers

        if isinstance(audio.extractor_of(processor), transformers.WhisperFeatureExtractor):
            return processor
        return audio_ctc.fit_vocabulary(processor, (row["text"] for row in rows), given=given)

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; a sound that is too long is a bad row unless `truncation` is true."""
        others = audio_ctc.CTC_FIELDS if problem_type == SEQ2SEQ else audio_whisper.WHISPER_FIELDS
        idle = [f"processor.{name}" for name in others if name in given]
        if idle:
            raise InputError(f"{', '.join(idle)}: it has no effect on this kind of base ({problem_type}). Leave it out")
        of_kind = audio_whisper.whisper_settings if problem_type == SEQ2SEQ else audio_ctc.ctc_settings
        return {
            **audio.sound_settings(
                given,
                extractor=audio.extractor_of(processor),
                max_length_s=DEFAULT_MAX_LENGTH_S,
                truncation=False,
            ),
            **of_kind(given, base_config=base_config, tokenizer=processor.tokenizer),
        }

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: a sound that cannot be read or is empty, an empty transcript."""
        del labels
        found = audio.sound_fault(row["audio"])
        return f"audio: {found}" if found else audio_transcripts.transcript_fault(row)

    def misfit(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """See `Task.misfit`: a sound that is too short or too long, a transcript that is too long for it."""
        found = audio.length_misfit(row["audio"], problem.settings)
        if found or "text" not in row:
            return f"audio: {found}" if found else None
        ids = self._target(row["text"], problem)
        if problem.problem_type == SEQ2SEQ:
            room = audio_whisper.room_for_tokens(problem)
            return f"text: {len(ids)} tokens, and the base writes at most {room}" if len(ids) > room else None
        if not ids:
            return f"text: {row['text'][:60]!r} has no character of the vocabulary"
        samples = audio_features.sound_samples(row["audio"], problem)
        have, need = audio_ctc.frames_of(samples, problem.settings), audio_ctc.frames_needed(ids)
        return f"text: {need} frames at least for {len(ids)} characters, the sound has {have}" if have < need else None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`: the size of the vocabulary and its blank, and SpecAugment's masks."""
        masks = Augmentation.of(problem.augmentation).config()
        if problem.problem_type == SEQ2SEQ:
            audio_whisper.check_generation(problem)
            return masks
        tokenizer = problem.processor.tokenizer
        return {"vocab_size": len(tokenizer), "pad_token_id": int(tokenizer.pad_token_id), **masks}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`; in training each sound is varied as `augmentation` says, never too fast for its text."""
        if "text" not in rows:
            return audio_features.encode_sounds(rows, problem, training=training)
        targets = [self._target(text, problem) for text in rows["text"]]
        shortest_s = tuple(self._shortest_s(ids, problem) for ids in targets)
        features = audio_features.encode_sounds(rows, problem, training=training, shortest_s=shortest_s)
        features["labels"] = targets
        return features

    def _shortest_s(self, target: Sequence[int], problem: Problem) -> float:
        """How long a sound must stay for its transcript, in seconds."""
        if problem.problem_type != CTC:
            return 0.0
        samples = audio_ctc.samples_for(audio_ctc.frames_needed(target), problem.settings)
        return float((samples + 1) / audio.extractor_of(problem.processor).sampling_rate)

    def perceived(self, row: Mapping[str, Any], problem: Problem, *, training: bool = False) -> Any:
        """See `Task.perceived`; without the masks of SpecAugment."""
        from lora_ft.tasks.parts.perceived import sound

        least = self._shortest_s(self._target(row["text"], problem), problem) if "text" in row else 0.0
        return sound(row, problem, training=training, shortest_s=least)

    def lengths(self, rows: Rows, problem: Problem) -> list[int]:
        """See `Task.lengths`: samples, from the headers."""
        return audio_features.sound_costs(rows, problem)

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: transcripts as the base is taught to write them."""
        return [audio_transcripts.written(text, problem.settings) for text in rows["text"]]

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; waveforms are padded to the longest of the batch, for Whisper with decoder inputs."""
        least = audio_ctc.least_samples(problem, masked=training)

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            batch = audio_batches.pad_sounds(features, problem, least_samples=least)
            if "labels" not in features[0]:
                return batch
            targets = [row["labels"] for row in features]
            if problem.problem_type == SEQ2SEQ:
                return {**batch, **audio_whisper.decoder_batch(targets, problem)}
            return {**batch, "labels": audio_ctc.pad_targets(targets)}

        return collate

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`."""
        if problem.problem_type == CTC:
            return audio_batches.answers_of(model, batch, problem)
        inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
        return labelled.outputs_at_labels(
            model, {**inputs, "use_cache": False}, batch.get("labels"), problem.label_loss
        )

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
        """See `Task.loss`: CTC's, or the cross-entropy of the transcript's tokens."""
        del class_weight, label_smoothing
        if problem.problem_type == SEQ2SEQ:
            return labelled.token_loss(outputs, batch["labels"], items=items, label_smoothing=0.0)
        return audio_ctc.ctc_loss(
            outputs["logits"],
            batch["labels"],
            frames=audio_ctc.frames_of(batch["samples"], problem.settings),
            blank=int(problem.processor.tokenizer.pad_token_id),
            items=items,
        )

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`: the likeliest token of each frame, or generated tokens."""
        if problem.problem_type == SEQ2SEQ:
            return {"ids": audio_whisper.transcribe(model, batch["input_features"], problem)}
        logits = (self.forward(model, batch, problem) if outputs is None else outputs)["logits"]
        return {"ids": logits.argmax(dim=-1), "frames": audio_ctc.frames_of(batch["samples"], problem.settings)}

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`."""
        del features
        tokenizer = problem.processor.tokenizer
        if problem.problem_type == CTC:
            texts = audio_ctc.read_frames(answer["ids"], answer["frames"].tolist(), tokenizer)
        else:
            texts = tokenizer.batch_decode(answer["ids"].tolist(), skip_special_tokens=True)
        return [{"text": text.strip()} for text in texts]

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`: word and character error rate, of all words of the rows together."""
        return audio_transcripts.transcript_scorer(predictions, references, problem.settings)

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: nothing at all for CTC; what Whisper wrote before training must be measured."""
        del references
        return {"text": ""} if problem.problem_type == CTC else None

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`."""
        del batch
        return audio_batches.probe_sample(outputs["logits"])

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: how much of the sound is heard, and its transcript."""
        from lora_ft.tasks.parts.shown import marked, sound_of

        extractor, tokenizer = audio.extractor_of(problem.processor), problem.processor.tokenizer
        heard = sound_of(feature, name=extractor.model_input_names[0], rate=extractor.sampling_rate)
        written = {} if problem.problem_type == SEQ2SEQ else {"group_tokens": False}
        return f"{heard} -> {marked(tokenizer.decode(list(feature['labels']), **written))}"

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`: words of one tone each."""
        del problem_type
        from lora_ft.tasks.parts.audio_examples import tones

        texts = ["yes", "no", "yes no", "no yes"]
        return {"audio": tones(texts), "text": texts}

    def generation(self, model: Any, problem: Problem) -> Generation | None:
        """See `Task.generation`: CTC generates nothing."""
        return audio_whisper.whisper_generation(model, problem) if problem.problem_type == SEQ2SEQ else None

    def _target(self, text: str, problem: Problem) -> list[int]:
        """The tokens of a transcript."""
        tokenizer, settings = problem.processor.tokenizer, problem.settings
        if problem.problem_type == CTC:
            return audio_ctc.target_ids(text, tokenizer, settings)
        return audio_whisper.whisper_tokens(audio_transcripts.written(text, settings), tokenizer)
