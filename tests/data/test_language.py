"""Which language texts are in."""

from __future__ import annotations

import pytest

from lora_ft.data.language import SURE, UNKNOWN, languages_of

SENTENCES = {
    "en": "Not what I expected from the pictures, the colour is much darker.",
    "de": "Nicht das, was ich nach den Bildern erwartet hatte, die Farbe ist viel dunkler.",
    "fr": "Pas ce que j'attendais d'après les photos, la couleur est bien plus foncée.",
    "es": "No es lo que esperaba por las fotos, el color es mucho más oscuro.",
    "it": "Non è quello che mi aspettavo dalle foto, il colore è molto più scuro.",
    "pt": "Não é o que eu esperava pelas fotos, a cor é muito mais escura.",
    "nl": "Niet wat ik verwachtte van de foto's, de kleur is veel donkerder.",
    "pl": "Nie tego oczekiwałem po zdjęciach, kolor jest o wiele ciemniejszy.",
    "tr": "Resimlerden beklediğim gibi değil, rengi çok daha koyu.",
    "vi": "Không giống như tôi mong đợi từ hình ảnh, màu sắc tối hơn nhiều.",
    "uk": "Не те, чого я чекав за фотографіями, колір набагато темніший.",
    "zh": "和图片上看到的不一样，颜色深很多。",
    "ja": "写真から期待したものとは違い、色がずっと濃いです。",
}


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_a_sentence_is_in_its_language_and_surely_so(language: str) -> None:
    ((found, probability),) = languages_of([SENTENCES[language]])
    assert found == language
    assert SURE <= probability <= 1


def test_short_texts_are_never_sure() -> None:
    assert all(probability < SURE for _, probability in languages_of(["Too small.", "ok", "I like it", "meh", "super"]))


def test_texts_without_letters_have_no_language() -> None:
    assert languages_of(["", "  ", "12 + 3 = 15", "👍👍"]) == [(UNKNOWN, 0.0)] * 4


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    english = (SENTENCES["en"] + " ") * 5
    assert languages_of([english + SENTENCES["fr"] * 50]) == languages_of([english[:300]])


def test_no_texts_have_no_languages() -> None:
    assert languages_of([]) == []
