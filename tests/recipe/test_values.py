"""Values against types: numbers are numbers, text is text, and the message says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.recipe.accepts import (
    ANYTHING,
    BOOL,
    FLOAT,
    INT,
    NULL,
    STR,
    Accepts,
    Choice,
    DictOf,
    Field,
    ListOf,
    Struct,
    TupleOf,
    any_of,
    describe,
)
from lora_ft.recipe.values import problems

STRUCT = Struct("thing", {"rho": Field(FLOAT), "names": Field(ListOf(STR))})


@pytest.mark.parametrize(
    ("value", "accepts"),
    [
        (1, FLOAT),
        (1.0, FLOAT),
        (1, INT),
        (True, BOOL),
        (None, NULL),
        ("a", STR),
        ("nf4", Choice(("nf4", "fp4"))),
        (False, Choice((False,))),
        ("pissa_niter_16", Choice(("pissa_niter_[number of iters]",))),
        ([], ListOf(INT)),
        ([1, 2], TupleOf((INT, INT))),
        ({"a": 1}, DictOf(INT)),
        ({"rho": 1}, STRUCT),
        ({"anything": [1]}, ANYTHING),
        ("a", any_of([ListOf(STR), STR])),
        (["a"], any_of([ListOf(STR), STR])),
    ],
)
def test_right_values_pass(value: Any, accepts: Accepts) -> None:
    assert problems(value, accepts) == []


@pytest.mark.parametrize(
    ("value", "accepts", "path", "message"),
    [
        (True, INT, (), "expected a whole number."),
        (True, FLOAT, (), "expected a number."),
        (1, BOOL, (), "expected true or false."),
        (1.5, INT, (), "expected a whole number."),
        ("1e-4", FLOAT, (), "expected a number. YAML read this as text: remove the quotes"),
        ("1_000", INT, (), "expected a whole number. YAML read this as text: write 1000"),
        ("many", INT, (), "expected a whole number. YAML read this as text"),
        ("no", BOOL, (), "expected true or false. YAML 1.2 reads no as text: write false"),
        ("true", BOOL, (), "expected true or false. YAML read this as text: remove the quotes"),
        (3, STR, (), "expected text. Put it in quotes: '3'"),
        (None, STR, (), "expected text. Leave the key out, or give it a value"),
        (float("nan"), FLOAT, (), "expected a finite number"),
        (10**400, FLOAT, (), "expected a finite number"),
        ("nf", Choice(("nf4", "fp4")), (), "expected one of 'nf4', 'fp4'. Did you mean 'nf4'?"),
        (1, Choice((True,)), (), "expected true."),
        ("pissa_niter_", Choice(("pissa_niter_[n]",)), (), "expected 'pissa_niter_[n]'. Did you mean"),
        ("a", ListOf(STR), (), "expected a list (text each). Write [a]"),
        ([1, "x"], ListOf(INT), (1,), "expected a whole number. YAML read this as text"),
        ([1], TupleOf((INT, INT)), (), "expected a list of 2 (a whole number, a whole number)."),
        ([1, "x"], TupleOf((INT, INT)), (1,), "expected a whole number. YAML read this as text"),
        ({"a": "x"}, DictOf(INT), ("a",), "expected a whole number. YAML read this as text"),
        ([], DictOf(INT), (), "expected a mapping."),
        ({"roh": 1}, STRUCT, ("roh",), "thing has no key 'roh'. Did you mean 'rho'?"),
        ({"names": ["a", 1]}, STRUCT, ("names", 1), "expected text. Put it in quotes: '1'"),
        (3, STRUCT, (), "expected a mapping with the keys of thing."),
        ("kep", any_of([FLOAT, Choice(("keep",))]), (), "expected 'keep' or a number. Did you mean 'keep'?"),
        ({"rho": "x"}, any_of([STRUCT, NULL]), ("rho",), "expected a number. YAML read this as text"),
        (["a", 1], any_of([ListOf(STR), STR]), (1,), "expected text. Put it in quotes: '1'"),
    ],
)
def test_wrong_values_say_what_was_expected_and_what_to_do(
    value: Any, accepts: Accepts, path: tuple[Any, ...], message: str
) -> None:
    ((found, text),) = problems(value, accepts)
    assert found == path
    assert text.startswith(message)


def test_an_enum_beside_text_means_the_enum_and_a_class_beside_dict_means_its_fields() -> None:
    assert any_of([Choice(("a", "b"), "Letters"), STR]) == Choice(("a", "b"), "Letters")
    assert any_of([STRUCT, DictOf(ANYTHING)]) == STRUCT
    assert any_of([INT, FLOAT]) == FLOAT


def test_a_long_choice_is_not_written_out() -> None:
    assert describe(Choice(tuple(f"v{i}" for i in range(40)), "OptimizerNames")) == (
        "one of the 40 values of OptimizerNames"
    )


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN, st.sampled_from([BOOL, INT, FLOAT, STR, NULL, STRUCT, any_of([FLOAT, Choice(("keep",)), STRUCT])]))
def test_any_value_is_right_or_has_a_message(value: Any, accepts: Accepts) -> None:
    for path, message in problems(value, accepts):
        assert isinstance(path, tuple)
        assert message
