"""The page of `data preview`: whole in itself, escaped, with what is learned and what was cut to be seen."""

from __future__ import annotations

import base64
import io
import re
import wave
from html.parser import HTMLParser
from typing import Any

import numpy as np
from PIL import Image

from lora_ft.assemble.previewed import Given, Preview, PreviewedRow, Sound, Stage
from lora_ft.evaluate.preview_page import preview_page


class Elements(HTMLParser):
    """The elements of a page, what each would load, and the texts within some of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside.setdefault(self.open[-1], []).append(data)


def page_of(*stages: Stage, lazy: bool = False) -> str:
    row = PreviewedRow("shop <1>.csv, row 3", stages)
    return preview_page(Preview("r.yaml", "a-task", "train", 9, (row,), ("a note & more",), lazy))


def loaded(page: str, kind: str) -> list[bytes]:
    start = f"data:{kind};base64,"
    found = Elements(page).loads
    assert all(one.startswith("data:") for one in found), "the page would load something"
    return [base64.b64decode(one[len(start) :]) for one in found if one.startswith(start)]


def test_texts_are_escaped_and_changes_learned_and_cut_parts_are_marked() -> None:
    page = page_of(
        Stage("in the file", {"text": "a <b>bad</b> day", "label": "x"}),
        Stage(
            "variant 1: swap", {"text": "a <i>bad</i> day", "label": "x"}, (Given("seen -> [[<x>]]", 7, "rest", True),)
        ),
    )
    found = Elements(page)
    assert {"script", "i"}.isdisjoint(found.tags)
    assert "".join(found.inside["ins"]) == "ii"
    assert "".join(found.inside["del"]) == "bb"
    assert found.inside["mark"][1:] == ["<x>"]  # the first is of the explanation
    assert '<span class="cut">rest</span>' in page
    assert "7 tokens, cut" in page
    assert "shop &lt;1&gt;.csv" in page
    assert "a note &amp; more" in page
    assert page.count("<b>label</b>") == 1  # unchanged, so not told again


def test_pictures_are_within_the_page_and_no_larger_than_they_need_to_be() -> None:
    large, small = Image.new("RGB", (1600, 800), "red"), Image.new("RGB", (32, 32), "blue")
    page = page_of(Stage("in the file", {}, media=large), Stage("epoch 1", {}, media=small), lazy=True)
    sizes = [Image.open(io.BytesIO(data)).size for data in loaded(page, "image/png")]
    assert sizes == [(320, 160), (32, 32)]
    assert "1600 x 800 pixels" in page
    assert large.size == (1600, 800)


def test_sounds_can_be_heard_as_they_are_and_seen() -> None:
    samples: Any = np.sin(np.arange(4000) / 5).astype(np.float32) * 0.5
    page = page_of(Stage("in the file", {}, media=Sound(samples, 8000)), lazy=True)
    (data,) = loaded(page, "audio/wav")
    with wave.open(io.BytesIO(data)) as file:
        heard = np.frombuffer(file.readframes(-1), dtype="<i2") / 32767
        assert (file.getframerate(), file.getnchannels()) == (8000, 1)
    assert np.abs(heard - samples).max() < 1e-4
    assert len(loaded(page, "image/png")) == 1
    assert len(re.findall("<svg", page)) == 1
    assert "0.50 s at 8000 Hz, peak 0.50" in page


def test_a_sound_beyond_full_scale_is_made_softer_and_not_clipped() -> None:
    samples = np.linspace(-3, 3, 500)
    (data,) = loaded(page_of(Stage("epoch 1", {}, media=Sound(samples, 8000)), lazy=True), "audio/wav")
    with wave.open(io.BytesIO(data)) as file:
        heard = np.frombuffer(file.readframes(-1), dtype="<i2") / 32767
    assert np.abs(heard - samples / 3).max() < 1e-4


def test_silence_and_a_single_sample_are_drawn_too() -> None:
    for samples in (np.zeros(4000), np.zeros(1), np.zeros(9)):
        assert loaded(page_of(Stage("in the file", {}, media=Sound(samples, 8000))), "image/png")
