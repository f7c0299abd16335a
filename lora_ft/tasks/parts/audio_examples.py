"""Example sounds of the audio tasks: each word is a rising tone of its own."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

SAMPLING_RATE = 16_000
WORDS = {"no": (300.0, 700.0, 0.3), "yes": (900.0, 2_000.0, 0.4)}
"""Of each word the pitch that it begins with and ends with in Hz, and its length in seconds."""


def tones(texts: Sequence[str]) -> list[dict[str, Any]]:
    """A sound for each text of the words `no` and `yes`, as the bytes of a WAV file; not all are equally long."""
    import numpy as np
    import soundfile

    sounds = []
    for text in texts:
        parts = []
        for word in text.split():
            first, last, seconds = WORDS[word]
            time_s = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
            pitch = first + (last - first) * time_s / seconds / 2  # its integral over time is the phase
            parts.append(0.5 * np.sin(math.pi * time_s / seconds) * np.sin(2 * math.pi * pitch * time_s))
        stream = io.BytesIO()
        soundfile.write(stream, np.concatenate(parts), SAMPLING_RATE, format="WAV", subtype="PCM_16")
        sounds.append({"bytes": stream.getvalue(), "path": None})
    return sounds
