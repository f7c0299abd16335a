"""Sounds: a file or its bytes -> samples of one channel, and the limits of its length.

One value: {"path": "calls/0001.wav", "bytes": None}, or {"path": None, "bytes": b"RIFF..."}
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.errors import DataError, InputError
from lora_ft.recipe.schema import FieldTypes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AUDIO_FIELDS: Mapping[str, FieldTypes] = {
    "min_length_s": (float,),
    "max_length_s": (float,),
    "truncation": (bool,),
}
"""The keys of the `processor` section that every task on sounds understands; lengths in seconds."""

DEFAULT_MIN_LENGTH_S = 0.1
OGG_PAGE, LARGEST_OGG_PAGE = b"OggS", 65_307
UNKNOWN_SAMPLES = 1 << 62  # libsndfile's word for a FLAC header without a length
STREAMED_BYTES = 0x7FFF_0000  # from here on a WAV header says nothing: its writer did not know when it would end
FBANK_WINDOW, FBANK_HOP = 400, 160  # samples of a frame of AST's filter bank, and from one frame to the next


def extractor_of(processor: Any) -> Any:
    """The feature extractor that a processor is or has."""
    import transformers

    return processor.feature_extractor if isinstance(processor, transformers.ProcessorMixin) else processor


def hears_s(extractor: Any) -> float | None:
    """The most that a base hears at a time, in seconds; None: any length.

    Args:
        extractor: Its feature extractor: Whisper's and AST's make every sound as long as that.
    """
    import transformers

    if isinstance(extractor, transformers.WhisperFeatureExtractor):
        return float(extractor.chunk_length)
    if isinstance(extractor, transformers.ASTFeatureExtractor):
        return float(((extractor.max_length - 1) * FBANK_HOP + FBANK_WINDOW) / extractor.sampling_rate)
    return None


def sound_settings(
    given: Mapping[str, Any], *, extractor: Any, max_length_s: float, truncation: bool
) -> dict[str, Any]:
    """The `processor` section of a task on sounds with its gaps filled in.

    Args:
        given: The section as the recipe has it.
        extractor: The feature extractor of the base.
        max_length_s: The longest sound, where neither the recipe nor the base says it; seconds.
        truncation: Whether longer ones are cut, where the recipe does not say it.

    Returns:
        The section, with every key of `AUDIO_FIELDS`.

    Raises:
        InputError: The base cannot hear that much at a time, or the limits exclude each other.
    """
    base_limit = hears_s(extractor)
    asked = given.get("max_length_s")
    if asked is not None and base_limit is not None and asked > base_limit:
        raise InputError(
            f"processor.max_length_s = {asked}: the base hears {base_limit:g} s at a time. "
            f"Set it to {base_limit:g} or less"
        )
    longest = float(asked if asked is not None else base_limit or max_length_s)
    shortest = float(given.get("min_length_s", min(DEFAULT_MIN_LENGTH_S, longest)))
    if not 0 < shortest <= longest:
        raise InputError(
            f"processor.min_length_s = {shortest:g}: expected more than 0 s and at most max_length_s, {longest:g} s"
        )
    return {
        **given,
        "min_length_s": shortest,
        "max_length_s": longest,
        "truncation": bool(given.get("truncation", truncation)),
    }


def sound_length_s(value: Mapping[str, Any]) -> float:
    """How long a sound is in seconds, from its header; nothing is decoded.

    Args:
        value: `path` or `bytes`; the bytes win.

    Raises:
        DataError: There is no such file, or it is no sound.
    """
    with _opened(value) as sound:
        return float(sound.frames / sound.samplerate)


def sound_fault(value: Mapping[str, Any]) -> str | None:
    """Why a sound cannot be used; None if it can.

    Reads header and end alone, less than a millisecond a file: decoding a corpus takes hours.
    """
    try:
        with _opened(value) as sound:
            samples, broken = int(sound.frames), _breaks_off(value, sound)
    except DataError as error:
        return str(error)
    if samples >= UNKNOWN_SAMPLES:
        return f"{name_of(value)}: its header does not say how long it is. Write it anew, to a file and not to a pipe"
    if broken:
        return f"{name_of(value)}: it breaks off: {broken}. Fetch it anew"
    return None if samples else f"{name_of(value)}: it is empty, 0 samples"


def length_misfit(value: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Why a sound is too short or too long to learn from; None if it is not.

    Args:
        value: A sound.
        settings: As `sound_settings` made them.
    """
    seconds, shortest, longest = sound_length_s(value), settings["min_length_s"], settings["max_length_s"]
    if seconds < shortest:
        return f"{name_of(value)}: {seconds:.3f} s long, shorter than processor.min_length_s = {shortest:g}"
    if seconds > longest and not settings["truncation"]:
        return (
            f"{name_of(value)}: {seconds:.2f} s long, longer than processor.max_length_s = {longest:g} "
            "(processor.truncation: true cuts it)"
        )
    return None


def read_sound(value: Mapping[str, Any], *, most_s: float | None = None) -> tuple[npt.NDArray[np.float32], int]:
    """Decodes a sound.

    Args:
        value: `path` or `bytes`; the bytes win.
        most_s: Seconds to read from its beginning; None: all of it.

    Returns:
        The mean of its channels, `(samples,)`, usually between -1 and 1, and its sampling rate in Hz.

    Raises:
        DataError: It cannot be decoded, is empty, or holds numbers that are not finite.
    """
    import numpy as np

    with _opened(value) as sound:
        rate = int(sound.samplerate)
        most = -1 if most_s is None else round(most_s * rate)
        channels: npt.NDArray[np.float32] = sound.read(most, dtype="float32", always_2d=True)  # (samples, channels)
    if not len(channels):
        raise DataError(f"{name_of(value)}: it is empty, 0 samples")
    if not np.isfinite(channels).all():
        raise DataError(f"{name_of(value)}: it holds samples that are not finite numbers")
    return channels.mean(axis=1), rate


def resampled(samples: npt.NDArray[np.float32], rate: float, *, to: float) -> npt.NDArray[np.float32]:
    """A sound at another sampling rate.

    Args:
        samples: `(samples,)`.
        rate: Its rate in Hz.
        to: The rate wanted.
    """
    if rate == to:
        return samples
    made: npt.NDArray[np.float32] = _library("soxr").resample(samples, rate, to)
    return made


@contextmanager
def _opened(value: Mapping[str, Any]) -> Iterator[Any]:
    """The sound as soundfile opens it; whatever goes wrong with its content is one kind of error."""
    soundfile = _library("soundfile")
    data, path = value.get("bytes"), value.get("path")
    if data is None and path is None:
        raise DataError("the sound has neither a path nor bytes. Expected one of the two")
    try:
        with soundfile.SoundFile(str(path) if data is None else io.BytesIO(data)) as sound:
            yield sound
    except (OSError, TypeError, soundfile.SoundFileError) as error:  # TypeError: raw samples, which have no header
        if data is None and not Path(str(path)).is_file():
            raise DataError(f"{path}: there is no such file") from error
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise DataError(f"{name_of(value)}: no sound that libsndfile can read (wav, flac, ogg): {reason}") from error


def _breaks_off(value: Mapping[str, Any], sound: Any) -> str | None:
    """What the end of a sound lacks; None if it is whole.

    A copy that was cut off has a perfect header; of WAV and OGG, libsndfile then just makes a shorter sound.
    """
    soundfile = _library("soundfile")
    head, end, size = _edges(value)
    if sound.format == "FLAC" and sound.frames:
        try:
            sound.seek(sound.frames - 1)
            whole = len(sound.read(1)) == 1
        except soundfile.SoundFileError:
            whole = False
        return None if whole else f"its header says {sound.frames:,} samples, the last cannot be read"
    if head[:4] == b"RIFF":
        said = int.from_bytes(head[4:8], "little") + 8
        return f"its header says {said:,} bytes, it has {size:,}" if size < said < STREAMED_BYTES else None
    if head[:4] == OGG_PAGE:
        # RFC 3533, section 6: capture pattern, version 0, type (4: the last page), ... at 26 how many lengths follow
        page = end[end.rfind(OGG_PAGE + b"\0") :]
        long = sum([27, *page[26 : 27 + page[26]]]) if len(page) > 26 else len(page) + 1
        return None if page[5] & 4 and long <= len(page) else "it has no last page (an end of the stream)"
    return None


def _edges(value: Mapping[str, Any]) -> tuple[bytes, bytes, int]:
    """The first bytes of a sound, enough of the last ones for a page of OGG, and how many bytes it has."""
    data = value.get("bytes")
    with io.BytesIO(data) if data is not None else Path(str(value["path"])).open("rb") as stream:
        head = stream.read(8)
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - LARGEST_OGG_PAGE))
        return head, stream.read(), size


def name_of(value: Mapping[str, Any]) -> str:
    """How a message calls a sound: its path, or how many bytes it has."""
    return str(value.get("path") or f"a sound of {len(value.get('bytes') or b''):,} bytes")


def _library(module: str) -> Any:
    """The library soundfile or soxr, which the extra `audio` brings."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"sounds are read by soundfile and soxr, and {module} is not installed. Expected it beside lora-ft. "
            "Install it: pip install 'lora-ft[audio]'"
        ) from error
