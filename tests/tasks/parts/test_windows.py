"""Windows: offsets of every kind of tokenizer, nothing lost, and each word read where it has most context."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.errors import InputError
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.windows import cut_windows, pad_windows, place_words, window_settings
from lora_ft.tasks.parts.words import join_tokens, split_words
from tests.tasks.parts.tokenizer_kinds import KINDS, tokenizer_of

TEXT = "Zoë's naïve café sells 买了三本 📦 for 3½ €,\u00a0 ﬁne\u0301 \t résumé \u200b and more "
WORDS = st.lists(st.sampled_from(["Zoë", "naïve", "买", "📦", "order", "ordering", "'s", ",", "ﬁne", "x́", "A-1"]))


def problem(kind: str, *, max_length: int = 64, stride: int = 0, **more: object) -> Problem:
    given = {"max_length": max_length, "stride": stride, **more}
    return Problem("any", (), tokenizer_of(kind), given)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_begin_and_end_with_a_character_and_cover_every_letter(kind: str) -> None:
    (window,) = cut_windows([TEXT], problem(kind, max_length=200))
    covered = set()
    for start, end in zip(window.start, window.end, strict=True):
        assert -1 <= start <= end <= len(TEXT)
        piece = TEXT[max(start, 0) : end]
        assert piece == piece.strip()
        covered.update(range(max(start, 0), end))
    missing = {at for at, char in enumerate(TEXT) if char.isalnum()} - covered
    assert not missing, [TEXT[at] for at in missing]


@pytest.mark.parametrize("kind", KINDS)
def test_each_word_is_read_at_a_token_that_begins_where_the_word_begins(kind: str) -> None:
    words = [(at, at + 1) for at, char in enumerate(TEXT) if char in "Znc3résf" and TEXT[at - 1].isspace()]
    (window,) = cut_windows([TEXT], problem(kind, max_length=200))
    ((*placed,),) = place_words([window], words)
    assert [word for word, _ in placed] == list(range(len(words)))
    assert [window.start[position] for _, position in placed] == [start for start, _ in words]


@pytest.mark.parametrize("kind", KINDS)
@given(tokens=WORDS, max_length=st.integers(8, 40), stride=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_windows_read_each_word_once_at_the_token_that_one_long_window_reads(
    kind: str, tokens: list[str], max_length: int, stride: int
) -> None:
    text, words = join_tokens(tokens)
    (whole,) = cut_windows([text], problem(kind, max_length=512))
    (expected,) = place_words([whole], words)
    windows = cut_windows([text], problem(kind, max_length=max_length, stride=stride))
    assert all(len(window.inputs["input_ids"]) <= max_length for window in windows)
    placed = place_words(windows, words)
    found = {word: windows[at].start[position] for at, own in enumerate(placed) for word, position in own}
    assert sum(map(len, placed)) == len(found)
    assert found == {word: whole.start[position] for word, position in expected}
    ids = {word: windows[at].inputs["input_ids"][position] for at, own in enumerate(placed) for word, position in own}
    assert ids == {word: whole.inputs["input_ids"][position] for word, position in expected}


def test_a_word_in_two_windows_is_read_where_it_has_most_context() -> None:
    text, words = join_tokens(list("abcdefghij"))
    windows = cut_windows([text], problem("wordpiece", max_length=8, stride=4))  # 6 letters each, 4 of them shared
    assert [window.start[1] for window in windows] == [0, 4, 8]
    placed = place_words(windows, words)
    # e (4) is the last but one of the first window and the third of the second
    assert [[word for word, _ in own] for own in placed] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9]]


def test_several_texts_keep_their_numbers_and_know_their_first_and_last_window() -> None:
    texts = ["a b c d e f g h", "", "a"]
    windows = cut_windows(texts, problem("wordpiece", max_length=6))
    assert [(one.row, one.first, one.last) for one in windows] == [
        (0, True, False),
        (0, False, True),
        (1, True, True),
        (2, True, True),
    ]


def test_an_empty_text_has_a_token_where_the_tokenizer_makes_none() -> None:
    (window,) = cut_windows([""], problem("gpt2"))
    assert window.inputs == {"input_ids": [0], "attention_mask": [1]}
    assert window.special == [True]
    assert (window.start, window.end) == ([-1], [-1])


def test_windows_of_a_tokenizer_that_cuts_on_the_left_go_from_left_to_right() -> None:
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("wordpiece"))
    tokenizer.truncation_side = "left"
    windows = cut_windows(["a b c d e f"], Problem("any", (), tokenizer, {"max_length": 5, "stride": 0}))
    assert [window.start[1] for window in windows] == [0, 6]


def test_windows_are_padded_on_the_right_whatever_the_tokenizer_would_do() -> None:
    import copy

    tokenizer = copy.deepcopy(tokenizer_of("wordpiece"))
    tokenizer.padding_side = "left"
    one = Problem("any", (), tokenizer, {"max_length": 16, "stride": 0})
    batch = pad_windows([window.inputs for window in cut_windows(["a", "a b c"], one)], one)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_a_tokenizer_without_offsets_is_refused_with_a_way_out() -> None:
    from transformers import CanineTokenizer

    with pytest.raises(InputError, match=r"processor: .*CanineTokenizer.* where in a text its tokens are.* choose"):
        window_settings({}, base_config={}, processor=CanineTokenizer(), pair=False)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_stride_that_is_allowed_can_be_cut(kind: str, pair: bool) -> None:
    tokenizer = tokenizer_of(kind)
    for max_length in (3, 4, 5, 6, 9, 12, 16, 17, 25):
        given = {"max_length": max_length}
        try:
            filled = window_settings(given, base_config={}, processor=tokenizer, pair=pair)
        except InputError as error:
            assert max_length < 16, error
            continue
        with pytest.raises(InputError, match=r"processor\.stride = 25: .* can overlap by 0 to (\d+)") as refused:
            window_settings({**given, "stride": 25}, base_config={}, processor=tokenizer, pair=pair)
        largest = int(str(refused.value).split("by 0 to ")[1].split()[0])
        assert 0 <= filled["stride"] <= largest
        for stride in (0, largest):
            window_settings({**given, "stride": stride}, base_config={}, processor=tokenizer, pair=pair)
            one = Problem("any", (), tokenizer, {**given, "stride": stride})
            windows = cut_windows([TEXT], one, before=["?"] if pair else None)
            assert all(len(window.start) <= max_length for window in windows)
            assert windows[-1].last


def test_the_default_stride_is_a_quarter_of_a_window_and_at_most_128() -> None:
    tokenizer = tokenizer_of("wordpiece")
    found = [
        window_settings({"max_length": length}, base_config={}, processor=tokenizer, pair=False)["stride"]
        for length in (34, 512)
    ]
    assert found == [8, 127]


@pytest.mark.parametrize(
    ("text", "apart", "words"),
    [
        ("Order A-17 is late.", True, ["Order", "A", "-", "17", "is", "late", "."]),
        ("100ml for 5€", True, ["100", "ml", "for", "5", "€"]),
        ("100ml for 5€", False, ["100ml", "for", "5", "€"]),
        ("买了3本 book", True, ["买", "了", "3", "本", "book"]),
        ("e\u0301te\u0301 की किताब", True, ["e\u0301te\u0301", "की", "किताब"]),
        ("ก็ดี", True, ["ก็", "ดี"]),
        ("\u0301 a\u00a0b\n", True, ["\u0301", "a", "b"]),
        ("", True, []),
    ],
)
def test_words_are_runs_of_letters_and_single_signs(text: str, apart: bool, words: list[str]) -> None:
    assert [text[start:end] for start, end in split_words(text, numbers_apart=apart)] == words


@given(st.text(max_size=60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_words_cover_every_character_that_is_no_blank_once(text: str, apart: bool) -> None:
    words = split_words(text, numbers_apart=apart)
    assert all(start < end for start, end in words)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(words))
    covered = {at for start, end in words for at in range(start, end)}
    assert {at for at, char in enumerate(text) if not char.isspace()} == {
        at for at in covered if not text[at].isspace()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_blank_that_a_tokenizer_puts_before_a_text_is_not_the_first_token_of_its_first_word(kind: str) -> None:
    one = problem(kind)
    (window,) = cut_windows(["Zoë"], one)
    (((_, position),),) = place_words([window], [(0, 3)])
    token = one.processor.convert_ids_to_tokens(window.inputs["input_ids"][position])
    assert token.strip("▁Ġ")


def test_windows_too_short_for_any_text_are_refused_by_their_length() -> None:
    with pytest.raises(InputError, match=r"processor\.max_length = 2: 0 tokens of text would fit .* Set it to 16"):
        window_settings({"max_length": 2}, base_config={}, processor=tokenizer_of("wordpiece"), pair=False)
