"""Operations on the words of a text: what they change, what they leave, and where synonyms come from."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.errors import InputError
from lora_ft.tasks.parts.text_augmentation import TextAugmentation, text_variations
from lora_ft.tasks.parts.text_pieces import (
    JOINERS,
    Edit,
    Piece,
    delete_words,
    joined,
    mistype,
    pieces_of,
    replace_synonyms,
    swap_words,
)
from lora_ft.tasks.parts.thesaurus import synonyms_of

TEXTS = st.text(alphabet=st.sampled_from("abcZé'’-.,!() \n买了 กา7̈"), max_size=40) | st.text(max_size=40)
SHARES = st.floats(0.01, 1.0)
EDITS = pytest.mark.parametrize("edit", [delete_words, swap_words, mistype], ids=lambda edit: edit.__name__)


def nothing(word: str) -> bool:
    return False


def is_sign(char: str) -> bool:
    """Whether a character is never part of a word."""
    signs = unicodedata.category(char)[0] in "PSC" and not char.isalpha() and not char.isspace()
    return signs and char not in JOINERS and char != "\u200d"


def vary(text: str, edit: Edit, *, share: float = 0.1, seed: int = 0, keep: Callable[[str], bool] = nothing) -> str:
    pieces, tail = pieces_of(text, keep=keep)
    done = edit(pieces, share, np.random.default_rng(seed))
    return text if done is None else joined(done, tail)


@settings(deadline=None)
@given(TEXTS)
def test_a_text_is_its_pieces(text: str) -> None:
    pieces, tail = pieces_of(text, keep=nothing)
    assert joined(pieces, tail) == text
    assert all(piece.text.strip() and not piece.before.strip() for piece in pieces)
    assert not tail.strip()


@EDITS
@settings(deadline=None)
@given(text=TEXTS, share=SHARES, seed=st.integers(0, 99))
def test_no_operation_empties_a_text_or_touches_what_is_no_word(edit: Edit, text: str, share: float, seed: int) -> None:
    done = vary(text, edit, share=share, seed=seed)
    assert bool(done.strip()) == bool(text.strip())
    signs, left = (Counter(char for char in one if is_sign(char)) for one in (text, done))
    assert left == signs


@EDITS
def test_the_same_seed_gives_the_same_text(edit: Edit) -> None:
    text = "it broke after one week and nobody would help me with it"
    assert vary(text, edit, share=0.3, seed=7) == vary(text, edit, share=0.3, seed=7)
    assert len({vary(text, edit, share=0.3, seed=seed) for seed in range(9)}) > 4


def test_words_are_what_a_person_calls_words() -> None:
    pieces, _ = pieces_of("I don't, he's well-made (a-b) 100ml 买书!", keep=nothing)
    assert [p.text for p in pieces if p.varies] == ["I", "don't", "he's", "well-made", "a-b", "100ml", "买", "书"]


@pytest.mark.parametrize(
    ("text", "gone", "left"),
    [
        ("My phone, it broke.", "phone", "My, it broke."),
        ("My phone, it broke.", "My", "phone, it broke."),
        ("It is (quite new) here", "quite", "It is (new) here"),
        ("  one two ", "one", " two "),
        ("one\n\ntwo three", "two", "one three"),
    ],
)
def test_a_word_leaves_with_the_white_space_before_it(text: str, gone: str, left: str) -> None:
    assert left in {vary(text, delete_words, share=0.01, seed=seed) for seed in range(60)}, gone


@settings(deadline=None)
@given(st.integers(2, 30), SHARES, st.integers(0, 9))
def test_deletion_takes_the_share_and_never_all(words: int, share: float, seed: int) -> None:
    text = " ".join(f"word{'abcdefghijklmnopqrstuvwxyzABCD'[at]}" for at in range(words))
    left = vary(text, delete_words, share=share, seed=seed).split()
    assert len(left) == max(1, words - max(1, round(share * words)))
    assert [word for word in text.split() if word in left] == left


def test_swapped_words_are_the_same_words_with_tags_that_move_along() -> None:
    pieces = [Piece(" ", word, True, tag=word.upper()) for word in ["one", "two", "three", "four", "five"]]
    moved = swap_words(pieces, 0.2, np.random.default_rng(0))
    assert moved is not None
    assert sorted(piece.text for piece in moved) == sorted(piece.text for piece in pieces)
    assert all(piece.tag == piece.text.upper() for piece in moved)
    assert [piece.text for piece in moved] != [piece.text for piece in pieces]


def test_synonyms_are_in_the_case_of_the_word_and_no_more_than_the_share() -> None:
    def edit(pieces: list[Piece], share: float, rng: np.random.Generator) -> list[Piece] | None:
        return replace_synonyms(pieces, share, rng, synonyms=lambda word: ("dear",) if word == "beloved" else ())

    assert vary("My Beloved BELOVED beloved cat", edit, share=1.0) == "My Dear DEAR dear cat"  # type: ignore[arg-type]
    assert vary("beloved beloved beloved beloved", edit, share=0.5).count("dear") == 2  # type: ignore[arg-type]
    assert vary("my cat", edit, share=1.0) == "my cat"  # type: ignore[arg-type]


def test_typing_errors_stay_within_their_words_and_are_as_many_as_asked_for() -> None:
    text = "battery " * 20
    for seed in range(20):
        done = vary(text, mistype, share=0.02, seed=seed)
        assert len(done.split()) == 20
        assert 1 <= sum(word != "battery" for word in done.split()) <= 3  # of 140 letters
    assert vary("it is me", mistype, share=1.0) == "it is me"  # words of two letters become other words


def test_negations_and_kept_words_stay_as_they_are() -> None:
    text = "I do not want it, it doesn't work and never did"
    wild = {"random_deletion": 0.9, "character_noise": 0.9, "random_swap": 0.9}
    for name, variation in text_variations(wild, columns=("text",)).items():
        for seed in range(20):
            words = variation({"text": text}, np.random.default_rng(seed))["text"].replace(",", "").split()
            assert {"not", "doesn't", "never"} <= set(words), name
    free = TextAugmentation.of({"keep_words": ["work"]})
    assert (free.keeps("work"), free.keeps("Work"), free.keeps("not"), free.keeps("don't")) == (
        True,
        True,
        False,
        False,
    )
    written = TextAugmentation.of({"keep_words": ["NOT", "Won\u2019t"]})
    assert (written.keeps("not"), written.keeps("won't"), written.keeps("never")) == (True, True, False)


def test_only_the_given_columns_change_and_those_that_are_absent_do_not_matter() -> None:
    row = {"text": "one two three", "text_pair": "four five six", "label": "one two three", "id": None}
    (variation,) = text_variations({"random_deletion": 0.3}, columns=("text", "text_pair", "context")).values()
    done = variation(row, np.random.default_rng(0))
    assert len(done["text"].split()) == len(done["text_pair"].split()) == 2
    assert (done["label"], done["id"], set(done)) == (row["label"], None, set(row))


MYTHES = """UTF-8
it|1
(noun)|information technology|IT
phone|2
(noun)|telephone|telephone set|electronic equipment (generic term)|Phone|ph
(verb)|call|ring
bad|1
(adj)|awful (similar term)
schön|1
(adj)|hübsch|reizend
"""


def test_a_thesaurus_gives_the_single_words_of_the_first_meaning(tmp_path: Path) -> None:
    for encoding in ("UTF-8", "ISO8859-1"):
        file = tmp_path / f"th_{encoding}.dat"
        file.write_text(MYTHES.replace("UTF-8", encoding), encoding=encoding)
        known = synonyms_of(file)
        assert [tuple(known(word)) for word in ("phone", "bad", "it", "schön", "absent")] == [
            ("telephone",), (), (), ("hübsch", "reizend"), (),
        ]  # fmt: skip


def test_a_table_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "words.tsv", tmp_path / "words.jsonl"
    table.write_text("Phone\ttelephone\tmobile phone\n\nbig\tlarge\tbig\n", encoding="utf-8")
    lines.write_text(
        '{"word": "Phone", "synonyms": ["telephone", "mobile phone"]}\n{"word": "big", "synonyms": ["large"]}\n',
        encoding="utf-8",
    )
    for file in (table, lines):
        known = synonyms_of(file)
        assert (tuple(known("phone")), tuple(known("big"))) == (("telephone", "mobile phone"), ("large",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"big\tlarge\nalone\n", "line 2 ('alone') has no synonym. Expected UTF-8 lines of a word"),
        ("a.tsv", b"gro\xdf\tbig\n", "it cannot be read: 'utf-8' codec"),
        ("a.tsv", b"\n", "there is no synonym in it"),
        ("a.jsonl", b'{"word": "big"}\n', 'line 1 (\'{"word": "big"}\') has no word or no synonyms'),
        ("a.jsonl", b'{"word": "big", "synonyms": "large"}\n', "synonyms is no list of texts"),
        ("a.jsonl", b"big: large\n", "line 1 ('big: large') has no word"),
        ("a.dat", b"UTF-8\nphone telephone\n", "'phone telephone' is no entry. Expected a thesaurus of LibreOffice"),
        ("a.dat", b"no-such-encoding\nphone|1\n", "it cannot be read: unknown encoding"),
        ("a.dat", b"\xff\xfe\n", "it cannot be read"),
    ],
)
def test_a_file_that_is_no_list_of_synonyms_is_an_error_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        synonyms_of(file)
    assert str(caught.value).startswith(f"augmentation.synonyms = {file}: ")
    assert message in str(caught.value)
