"""Rows on their way to the model as one HTML page: texts, pictures and sounds are in it, nothing is loaded by it."""

from __future__ import annotations

import base64
import io
import re
import wave
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from lora_ft.assemble.previewed import Given, Preview, PreviewedRow, Sound, Stage, changes
from lora_ft.evaluate.data_page import STYLE
from lora_ft.evaluate.svg import waveform

WIDEST = 320
"""Pixels: larger pictures are shown smaller."""

SPECTROGRAM = (320, 100)
WINDOW_S = 0.025
LOWEST_DB = -80.0
OWN_STYLE = """
.row{border-top:2px solid #d9dfe6;margin-top:1.5rem}.stages{display:flex;flex-wrap:wrap;gap:1rem}
.stage{flex:1 1 260px;min-width:0}.stage.wide{flex-basis:100%}h4{margin:.6rem 0 .2rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:#f3f5f8;padding:.4rem .7rem;margin:.2rem 0;
border-radius:4px}
.text b{color:#5a6675;font-weight:600}ins{background:#cdeed3;text-decoration:none}del{background:#f8d2d0}
mark{background:#ffe9a8;padding:0 .1rem}.cut{color:#8a929c;text-decoration:line-through}
.line{color:#5a6675;font-size:13px}
img{max-width:100%;min-width:160px;border:1px solid #d9dfe6}audio{width:100%;max-width:420px}
@media(prefers-color-scheme:dark){.text{background:#222931}ins{background:#1f5130}del{background:#6a2622}
mark{background:#6b5710;color:inherit}.row,img{border-color:#36404b}}
"""


def preview_page(preview: Preview) -> str:
    """The page as one text."""
    title = f"{preview.recipe}: {preview.split}"
    notes = "".join(f"<p>{escape(note)}</p>" for note in preview.notes)
    rows = "".join(_row(row, side_by_side=preview.lazy) for row in preview.shown)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{OWN_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><p>{escape(preview.task)}; {len(preview.shown)} of {preview.rows} rows. What is "
        f"learned is <mark>marked</mark>, what was cut off <span class=cut>struck out</span>.</p>{notes}{rows}"
        "</body></html>\n"
    )


def _row(row: PreviewedRow, *, side_by_side: bool) -> str:
    before: Mapping[str, str] = {}
    drawn = []
    for stage in row.stages:
        drawn.append(_stage(stage, before, wide=not side_by_side))
        before = before if stage.name.startswith("variant") else stage.columns or before
    return f'<div class="row"><h3>{escape(row.where)}</h3><div class="stages">{"".join(drawn)}</div></div>'


def _stage(stage: Stage, before: Mapping[str, str], *, wide: bool) -> str:
    columns = "".join(
        f'<div class="text"><b>{escape(name)}</b> {_changed(before.get(name, value), value)}</div>'
        for name, value in stage.columns.items()
        if not before or before.get(name) != value
    )
    line = f'<p class="line">{escape(stage.media_line())}</p>' if stage.media is not None else ""
    given = "".join(map(_given, stage.given))
    return (
        f'<div class="stage{" wide" if wide else ""}"><h4>{escape(stage.name)}</h4>{_media(stage.media)}{line}{columns}'
        f"{given}</div>"
    )


def _changed(before: str, after: str) -> str:
    """A text with what came and what went since the stage before."""
    tags = {"same": "", "new": "ins", "gone": "del"}
    return "".join(
        f"<{tags[kind]}>{escape(text)}</{tags[kind]}>" if tags[kind] else escape(text)
        for kind, text in changes(before, after)
    )


def _given(given: Given) -> str:
    """One feature: what is learned marked, what was cut off struck out."""
    shown = re.sub(r"\[\[(.*?)\]\]", r"<mark>\1</mark>", escape(given.shown), flags=re.DOTALL)
    cut = f' <span class="cut">{escape(given.cut)}</span>' if given.cut else ""
    notes = [f"{given.tokens} tokens"] if given.tokens is not None else []
    notes += ["cut"] if given.truncated else []
    line = f'<p class="line">{", ".join(notes)}</p>' if notes else ""
    return f'<div class="text"><b>the model gets</b> {shown}{cut}</div>{line}'


def _media(media: Any) -> str:
    if media is None:
        return ""
    if isinstance(media, Sound):
        return (
            f'<audio controls src="data:audio/wav;base64,{_wav(media)}"></audio>'
            f"{waveform(media.samples)}<div>{_png(_spectrogram(media))}</div>"
        )
    return _png(media)


def _png(picture: Any) -> str:
    """A PIL image within the page."""
    small = picture.copy()
    small.thumbnail((WIDEST, WIDEST))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def _wav(sound: Sound) -> str:
    """A sound as a WAV file of 16 bits; louder than full scale, it is made softer as a whole."""
    samples = np.asarray(sound.samples, dtype=np.float64)
    samples = samples / max(1.0, float(np.abs(samples).max(initial=0.0)))
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return base64.b64encode(stream.getvalue()).decode()


def _spectrogram(sound: Sound) -> Any:
    """Time from left to right, pitch from below, loudness as brightness, 80 dB of it."""
    from PIL import Image
    from scipy.signal import spectrogram

    window = max(8, min(round(WINDOW_S * sound.rate), len(sound.samples)))
    _, _, power = spectrogram(np.asarray(sound.samples, dtype=np.float64), fs=sound.rate, nperseg=window)
    decibels = 10 * np.log10(np.maximum(power, 1e-12))
    scaled = np.clip((decibels - decibels.max()) / -LOWEST_DB + 1, 0, 1)[::-1]
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).resize(SPECTROGRAM)
