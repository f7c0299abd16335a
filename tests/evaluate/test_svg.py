"""Plots are well-formed SVG that shows every number it is given."""

from __future__ import annotations

from xml.etree import ElementTree

from lora_ft.evaluate.svg import HEIGHT, WIDTH, bars, histogram

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_their_numbers_and_names_are_escaped() -> None:
    root = ElementTree.fromstring(bars([("<good> & fine", 40), ("bad", 10), ("none", 0)]))
    widths = [float(one.attrib["width"]) for one in root.iter(f"{SVG}rect")]
    assert widths[0] == 4 * widths[1]
    assert widths[2] == 0
    assert "<good> & fine" in [text for one in root.iter(f"{SVG}text") for text in one.itertext()]


def test_a_histogram_has_a_bar_for_each_bin_and_its_line_inside() -> None:
    root = ElementTree.fromstring(histogram([0, 10, 20, 30], [5, 0, 10], line=512, line_name="max_length 512"))
    heights = [float(one.attrib["height"]) for one in root.iter(f"{SVG}rect")]
    assert heights[2] == 2 * heights[0] > heights[1] == 0
    assert all(float(one.attrib["y"]) + float(one.attrib["height"]) <= HEIGHT for one in root.iter(f"{SVG}rect"))
    assert all(float(one.attrib["y"]) >= 0 for one in root.iter(f"{SVG}rect"))
    (line,) = root.iter(f"{SVG}line")
    assert 0 <= float(line.attrib["x1"]) <= WIDTH
