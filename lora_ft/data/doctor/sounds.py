"""Sounds of rows: unreadable, silent, clipped, far too short or long, of another sample rate than the rest.

One row: {"audio": {"bytes": None, "path": "/sounds/seven_12.wav"}}
"""

from __future__ import annotations

import io
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import soundfile

from lora_ft.data.doctor.findings import Finding, by_share
from lora_ft.data.doctor.stream import content_of

SILENT = 1e-3
"""A peak of -60 dB of full scale."""
CLIPPED_AT = 0.999
CLIPPED = 0.001
"""The share of samples at full scale from which on a sound was recorded too loud."""
SHORTEST_S = 0.1
LONG = 10
BLOCK_SAMPLES = 1 << 18


class SoundCheck:
    """Keeps eight bytes for each sound: its seconds and its sample rate.

    Args:
        longest_s: What the task cuts or refuses, in seconds; None: nothing.
    """

    def __init__(self, *, longest_s: float | None = None) -> None:
        self.longest_s = longest_s
        self.faults: dict[tuple[str, str], array[int]] = {}
        self.position: dict[str, array[int]] = {}
        self.seconds: dict[str, array[float]] = {}
        self.rates: dict[str, array[int]] = {}
        self.looked: dict[str, int] = {}

    def add(self, split: str, row: int, value: Mapping[str, Any]) -> float | None:
        """Looks at the sound of one row, a quarter of a million samples at a time.

        Returns:
            How long it is, in seconds; None where it cannot be read.
        """
        self.looked[split] = self.looked.get(split, 0) + 1
        peak, loud, samples, width = 0.0, 0, 0, 1
        try:
            with soundfile.SoundFile(io.BytesIO(content_of(value))) as sound:
                rate, width = sound.samplerate, sound.channels
                for block in sound.blocks(BLOCK_SAMPLES, dtype="float32"):
                    levels = np.abs(block)
                    peak = max(peak, float(levels.max(initial=0.0)))
                    loud += int((levels >= CLIPPED_AT).sum())
                    samples += len(block)
        except (OSError, soundfile.LibsndfileError):
            self._mark("unreadable-sounds", split, row)
            return None
        if peak < SILENT:
            self._mark("silent-sounds", split, row)
        if samples and loud > CLIPPED * samples * width:
            self._mark("clipped-sounds", split, row)
        self.position.setdefault(split, array("q")).append(row)
        self.seconds.setdefault(split, array("f")).append(samples / rate)
        self.rates.setdefault(split, array("i")).append(rate)
        return float(samples / rate)

    def _mark(self, name: str, split: str, row: int) -> None:
        self.faults.setdefault((name, split), array("q")).append(row)

    def findings(self) -> list[Finding]:
        """What is wrong with all sounds that were looked at."""
        told = {
            "unreadable-sounds": ("cannot be read as a sound", "Fetch them again, or take them out"),
            "silent-sounds": ("are silent (peak under -60 dB)", "Take them out: there is nothing to hear"),
            "clipped-sounds": (
                f"were recorded too loud: over {CLIPPED:.1%} of the samples are at full scale",
                "Record or export them again at a lower level; the tops of the waves are lost",
            ),
        }
        found = []
        for (name, split), marked in self.faults.items():
            rows, of = np.array(marked, dtype=np.int64), self.looked[split]
            severity = "error" if name == "unreadable-sounds" else by_share(len(rows), of)
            found.append(Finding(name, severity, split, len(rows), of, *told[name], rows=rows))
        for split in self.seconds:
            found += self._lengths(split) + self._rates(split)
        return found

    def _lengths(self, split: str) -> list[Finding]:
        """Sounds that are too short to say anything, or far longer than the rest or than the base hears."""
        seconds, position = np.array(self.seconds[split]), np.array(self.position[split], dtype=np.int64)
        of = self.looked[split]
        usual = LONG * float(np.quantile(seconds, 0.5))
        limit = usual if self.longest_s is None else min(usual, self.longest_s)
        kinds = (
            ("short-sounds", position[seconds < SHORTEST_S], f"are under {SHORTEST_S} s", "Take them out"),
            ("long-sounds", position[seconds > limit], f"are over {limit:.1f} s (half have at most {usual / LONG:.1f})",
             "Cut them up: what is beyond `processor.max_length_s` is not heard, and one of them fills a batch"),
        )  # fmt: skip
        return [
            Finding(name, by_share(len(rows), of), split, len(rows), of, told, remedy, rows=rows)
            for name, rows, told, remedy in kinds
            if len(rows)
        ]

    def _rates(self, split: str) -> list[Finding]:
        """Sounds of another sample rate than most of all splits."""
        counts = Counter(rate for rates in self.rates.values() for rate in rates)
        usual = counts.most_common(1)[0][0]
        rates, of = np.array(self.rates[split]), self.looked[split]
        rows = np.array(self.position[split], dtype=np.int64)[rates != usual]
        if not len(rows):
            return []
        others = ", ".join(f"{rate} Hz {n}" for rate, n in Counter(rates[rates != usual].tolist()).most_common(5))
        told = f"have another sample rate than the rest ({others}; the rest {usual} Hz)"
        remedy = "They are resampled when read; what was recorded at a low rate has no high tones, and may sound alike"
        return [Finding("mixed-sample-rates", by_share(len(rows), of), split, len(rows), of, told, remedy, rows=rows)]
