"""CTC (wav2vec2, HuBERT and their kin): vocabulary, targets, the loss, and the greedy reading of frames."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.errors import DataError, InputError
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.audio import extractor_of
from lora_ft.tasks.parts.audio_augmentation import Augmentation
from lora_ft.tasks.parts.audio_transcripts import written
from lora_ft.tasks.parts.problem import Problem

if TYPE_CHECKING:
    import numpy as np
    import torch

FAMILIES = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""The `model_type` of the bases that read a waveform through convolutions and answer frame by frame, each row as if it
were alone; in data2vec-audio and wav2vec2-conformer what pads a row leaks into its last frames, mask or not."""

CTC_FIELDS: Mapping[str, FieldTypes] = {
    "vocabulary": ("base", "data"),
    "unknown_characters": ("error", "remove"),
}

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
"""The convolutions of all these families, where config.json does not say otherwise."""

PAD, UNKNOWN, DELIMITER = "[PAD]", "[UNK]", "|"
SHOWN_CHARACTERS = 20


def fit_vocabulary(processor: Any, texts: Iterable[str], *, given: Mapping[str, Any]) -> Any:
    """A processor that can write these transcripts: the base's own, or one with a vocabulary made of them.

    Args:
        processor: The processor of the base, or its feature extractor alone.
        texts: The training transcripts.
        given: The recipe's `processor` section.

    Returns:
        The processor with a tokenizer.

    Raises:
        InputError: The base has no vocabulary, and it is asked for.
        DataError: The base's vocabulary lacks characters of the transcripts.
    """
    import transformers

    own = processor.tokenizer if isinstance(processor, transformers.ProcessorMixin) else None
    wish = given.get("vocabulary", "data" if own is None else "base")
    if wish == "base":
        if own is None:
            raise InputError(
                "processor.vocabulary = base: the base has no tokenizer. Set it to data, or leave it out: then it is "
                "made of the characters of the training transcripts"
            )
        if given.get("unknown_characters", "error") == "error":
            _refuse_unknown(texts, own, given)
        return processor
    settings = {"text_case": "lower", "text_punctuation": "remove", **given}
    characters = {char for text in texts for char in written(text, settings)} - {" ", DELIMITER}
    tokenizer = _tokenizer([*sorted(characters), DELIMITER])
    return transformers.Wav2Vec2Processor(feature_extractor=extractor_of(processor), tokenizer=tokenizer)


def ctc_settings(given: Mapping[str, Any], *, base_config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What the `processor` section leaves out: how transcripts are written, and the base's convolutions.

    Args:
        given: The section as the recipe has it.
        base_config: The base's config.json.
        tokenizer: Of what `fit_vocabulary` returned.
    """
    return {**_writing(given, tokenizer), **convolutions_of(base_config)}


def convolutions_of(base_config: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels and strides of the convolutions that a waveform goes through.

    Args:
        base_config: The base's config.json.

    Returns:
        `conv_kernel` and `conv_stride`, from the first to the last.
    """
    kernels = list(base_config.get("conv_kernel") or KERNELS)
    strides = list(base_config.get("conv_stride") or STRIDES)
    if base_config.get("add_adapter"):  # as transformers counts them: the padded kernel of 3 changes no length
        layers = int(base_config.get("num_adapter_layers", 3))
        kernels, strides = kernels + [1] * layers, strides + [int(base_config.get("adapter_stride", 2))] * layers
    return {"conv_kernel": kernels, "conv_stride": strides}


def target_ids(text: str, tokenizer: Any, settings: Mapping[str, Any]) -> list[int]:
    """The tokens of a transcript, one a character; characters outside of the vocabulary are unknown, or left out.

    Args:
        text: As the data has it.
        tokenizer: The CTC tokenizer.
        settings: As `ctc_settings` made them.
    """
    text = written(text, settings).replace(DELIMITER, " ")
    if settings["unknown_characters"] == "remove":
        known = tokenizer.get_vocab()
        text = "".join(char for char in text if char == " " or char in known)
    return [int(token) for token in tokenizer(" ".join(text.split())).input_ids]


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames that can spell a target: one a token, and a blank between two alike.

    Source: Graves et al., Connectionist Temporal Classification (2006), section 3.1.
    """
    return len(ids) + sum(one == other for one, other in itertools.pairwise(ids))


def frames_of(samples: Any, settings: Mapping[str, Any]) -> Any:
    """The frames that a base makes of some samples: of a number, or of each number of a tensor."""
    for kernel, stride in zip(settings["conv_kernel"], settings["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def samples_for(frames: int, settings: Mapping[str, Any]) -> int:
    """The fewest samples that a base makes some frames of."""
    for kernel, stride in reversed(list(zip(settings["conv_kernel"], settings["conv_stride"], strict=True))):
        frames = (frames - 1) * stride + kernel
    return frames


def least_samples(problem: Problem, *, masked: bool) -> int:
    """How long a batch of waveforms must be at least: one frame, or more than a span of SpecAugment's masks.

    Args:
        problem: Its settings and augmentation.
        masked: Whether the batch is trained on, so that spans are masked.
    """
    if "conv_kernel" not in problem.settings:
        return 0
    vary = Augmentation.of(problem.augmentation if masked else {})
    return samples_for(vary.mask_time_length + 1 if vary.masks else 1, problem.settings)


def pad_targets(targets: Sequence[Sequence[int]]) -> torch.Tensor:
    """Targets of different lengths as one tensor `(rows, tokens)`, filled with -100."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.tensor(ids) for ids in targets], batch_first=True, padding_value=-100)


def ctc_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, frames: torch.Tensor, blank: int, items: torch.Tensor | int | float
) -> torch.Tensor:
    """The negative log-likelihood of some targets, summed over rows and divided by `items`.

    Args:
        logits: `(rows, frames, vocabulary)`.
        labels: `(rows, tokens)`, -100 where there is none.
        frames: How many frames each row has, `(rows,)`.
        blank: The token of the blank.
        items: What the sum is divided by.

    Returns:
        A scalar; a target that its frames cannot spell adds 0 instead of infinity.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    kept = labels.ne(-100)
    log_probabilities = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)  # (frames, rows, vocabulary)
    with torch.backends.cudnn.flags(enabled=False):  # its own CTC wants other types, and differs between runs
        total: torch.Tensor = F.ctc_loss(
            log_probabilities, labels[kept], frames, kept.sum(dim=1), blank=blank, reduction="sum", zero_infinity=True
        )
    return total / items


def read_frames(ids: np.ndarray, frames: Sequence[int], tokenizer: Any) -> list[str]:
    """The likeliest token of each frame -> texts: equal neighbours are one token, then blanks go.

    Not left to the tokenizer: its `skip_special_tokens` takes the blanks out first, and "hello" becomes "helo".

    Args:
        ids: `(rows, frames)`.
        frames: How many frames each row has.
        tokenizer: The CTC tokenizer.
    """
    texts = []
    for row, count in zip(ids.tolist(), map(int, frames), strict=True):
        spelled = [token for token, _ in itertools.groupby(row[:count])]
        text = tokenizer.decode(spelled, group_tokens=False, skip_special_tokens=True)
        texts.append(" ".join(str(text).split()))
    return texts


def _tokenizer(characters: Sequence[str]) -> Any:
    """A tokenizer of single characters; its blank, which also pads, comes first."""
    import transformers

    vocabulary = {token: index for index, token in enumerate([PAD, UNKNOWN, *characters])}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return transformers.Wav2Vec2CTCTokenizer(
            str(file), unk_token=UNKNOWN, pad_token=PAD, word_delimiter_token=DELIMITER, bos_token=None, eos_token=None
        )


def _writing(given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """How transcripts are written: in the case of the vocabulary's letters, without punctuation, unless it is said."""
    letters = "".join(token for token in tokenizer.get_vocab() if len(token) == 1)
    case = "keep"
    if letters != letters.swapcase():
        case = "lower" if letters == letters.lower() else "upper" if letters == letters.upper() else "keep"
    return {
        "text_case": given.get("text_case", case),
        "text_punctuation": given.get("text_punctuation", "remove"),
        "scored_text": given.get("scored_text", "words"),
        "unknown_characters": given.get("unknown_characters", "error"),
    }


def _refuse_unknown(texts: Iterable[str], tokenizer: Any, given: Mapping[str, Any]) -> None:
    """Refuses transcripts with characters that the base cannot write."""
    known = set(tokenizer.get_vocab()) | {" ", DELIMITER}
    writing = _writing(given, tokenizer)
    counts = Counter(char for text in texts for char in written(text, writing) if char not in known)
    if counts:
        shown = ", ".join(f"{char!r} ({count} times)" for char, count in counts.most_common(SHOWN_CHARACTERS))
        raise DataError(
            f"text: the training transcripts have characters that the base's vocabulary has not: {shown}. Set "
            "processor.vocabulary: data for a vocabulary of these transcripts, or processor.unknown_characters: remove "
            "to leave such characters out"
        )
