"""Texts come out the same in training and at predict time, step by step in one order, and masks are never touched."""

from __future__ import annotations

from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.preparation.html_text import text_of_html
from lora_ft.data.preparation.texts import prepared_row, prepared_rows, prepared_text, text_settings, text_steps
from lora_ft.recipe.schema import TEXT_STEPS, PreparationSection

EVERYTHING = PreparationSection(
    fix_encoding=True, strip_html=True, normalization="NFKC", replace_urls="http", replace_emails="MAIL",
    replace_mentions="@user", replace=((r"(\d+) ?EUR", r"EUR \1"),), lowercase=True, stop_words="english",
    collapse_whitespace=True,
)  # fmt: skip


def one(text: str, **words: object) -> str:
    return prepared_text(text, text_steps(text_settings(PreparationSection(**words))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("das ist schÃ¶n, “so” ﬁn", {"fix_encoding": True}, "das ist schön, “so” ﬁn"),
        ("&lt;b&gt;", {"fix_encoding": True}, "&lt;b&gt;"),
        ("ﬁne Ａ", {"normalization": "NFKC"}, "fine A"),
        ("e\u0301", {"normalization": "NFC"}, "é"),
        ("see http://a.example/x?y=1. (www.b.example)", {"replace_urls": "http"}, "see http. (http)"),
        ("see https://a.example now", {"replace_urls": ""}, "see  now"),
        ("to a.b+c@d-e.example!", {"replace_emails": r"\1"}, r"to \1!"),
        ("@Bob and (@ann_1), not a@b", {"replace_mentions": "@user"}, "@user and (@user), not a@b"),
        ("12 EUR", {"replace": ((r"(\d+) EUR", r"€\1"), ("€", "EUR "))}, "EUR 12"),
        ("THE Book", {"lowercase": True}, "the book"),
        ("It is The theme, isn't it?", {"stop_words": ("the", "it", "is")}, "theme, isn't ?"),
        ("not a book", {"stop_words": "english"}, "book"),
        (" a \n\t b\u00a0c ", {"collapse_whitespace": True}, "a b c"),
        (" a\n", {}, " a\n"),
    ],
)
def test_each_step_does_what_it_says_and_no_more(text: str, words: dict[str, object], expected: str) -> None:
    assert one(text, **words) == expected


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("Don&#39;t <b>b</b>uy &amp; <a href='x'>it</a>", "Don't buy & it"),
        ("one<br>two<p>three</p>", "one\ntwo\nthree\n"),
        ("<script>var a = '<b>';</script>a<style>p {}</style>b<!-- c -->", "ab"),
        ("a < b and c > d, I <3 it, x <y", "a < b and c > d, I <3 it, x <y"),
        ("if x <y then <b>z</b>", "if x <y then z"),
        ("&amp;lt;b&amp;gt;", "&lt;b&gt;"),
        ("R&D &unknown; 5 <", "R&D &unknown; 5 <"),
        ("</b> <img src=x> <!DOCTYPE html>", "  "),
        ("the <Style> of 23 is good", "the <Style> of 23 is good"),
        ("<style>p {color: red}</STYLE>red", "red"),
    ],
)
def test_of_html_stays_what_a_person_reads(html: str, text: str) -> None:
    assert text_of_html(html) == text


@given(st.text(alphabet="ab <>&;/!-'\"=x3p", max_size=40))
def test_a_text_without_whole_tags_loses_no_letter(text: str) -> None:
    if ">" not in text and "&" not in text:
        assert text_of_html(text) == text


def test_the_steps_run_in_their_order_whatever_that_of_the_recipe() -> None:
    settings = text_settings(EVERYTHING)
    assert list(settings) == list(TEXT_STEPS)
    backwards = dict(reversed(settings.items()))
    assert [name for name, _ in text_steps(backwards)] == list(TEXT_STEPS)
    text = "<B>Das ist   SchÃ¶n</B> &amp; the 12EUR http://x.example a@b.example @me ﬁne"
    assert prepared_text(text, text_steps(settings)) == "das ist schön & eur 12 http mail @user fine"


def test_the_steps_are_plain_json_that_needs_no_list_of_words() -> None:
    settings = text_settings(EVERYTHING)
    assert "the" in settings["stop_words"]
    assert settings["replace"] == [[r"(\d+) ?EUR", r"EUR \1"]]
    assert text_settings(PreparationSection()) == {}
    assert text_settings(PreparationSection(replace_urls="")) == {"replace_urls": ""}


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_the_mask_of_a_text_to_fill_in_stays(mask: str) -> None:
    text = f"<b>The</b> capital is  {mask} OF the {mask}."
    assert prepared_text(text, text_steps(text_settings(EVERYTHING))) == f"capital {mask} {mask}."


@given(st.text(max_size=60))
def test_every_text_can_be_prepared(text: str) -> None:
    prepared = prepared_text(text, text_steps(text_settings(EVERYTHING)))
    assert prepared == prepared.strip()


def test_rows_are_counted_once_for_each_step_that_changed_one_of_their_texts() -> None:
    rows = datasets.Dataset.from_dict(
        {"text": ["A  b", "a b", "a"], "text_pair": ["C", "c", "c  d"], "label": ["X", "Y", "Z"]}
    )
    settings = text_settings(PreparationSection(lowercase=True, collapse_whitespace=True))
    counted = Counter[str]()
    prepared = prepared_rows(rows, ("text", "text_pair"), settings, counted=counted)
    assert prepared.to_dict() == {"text": ["a b", "a b", "a"], "text_pair": ["c", "c", "c d"], "label": ["X", "Y", "Z"]}
    assert counted == {"lowercase": 1, "collapse_whitespace": 2}
    assert prepared.cache_files == []
    assert rows["text"][0] == "A  b"


def test_without_steps_or_texts_rows_are_the_very_same() -> None:
    rows = datasets.Dataset.from_dict({"text": ["A"]})
    assert prepared_rows(rows, ("text",), {}) is rows
    assert prepared_rows(rows, (), {"lowercase": True}) is rows
    assert prepared_row({"text": "A", "id": "A"}, ("text",), {"lowercase": True}) == {"text": "a", "id": "A"}
