"""The reader: YAML 1.2 to the letter, a line for everything, and one kind of error for any text."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.errors import RecipeError
from lora_ft.recipe.reader import RecipeYamlError, parse_document, parse_value, read_document


def error(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_document(text, name="x.yaml")
    (only,) = caught.value.faults
    return only


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.5e+3", -500.0),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("+3", 3),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("12:30:00", "12:30:00"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("nan", "nan"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("'~'", "~"),
        ("１２", "１２"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_every_key_and_list_item_has_its_line() -> None:
    document = parse_document("a: 1\nb:\n  c: [x,\n   y]\n  d:\n    - {e: 1}\n", name="x.yaml")
    lines = {path: place.text for path, place in document.places.items()}
    assert lines == {
        ("a",): "x.yaml:1",
        ("b",): "x.yaml:2",
        ("b", "c"): "x.yaml:3",
        ("b", "c", 0): "x.yaml:3",
        ("b", "c", 1): "x.yaml:4",
        ("b", "d"): "x.yaml:5",
        ("b", "d", 0): "x.yaml:6",
        ("b", "d", 0, "e"): "x.yaml:6",
    }


def test_a_key_written_twice_is_a_fault_with_both_lines_and_the_first_counts() -> None:
    document = parse_document("a:\n  b: 1\n  c: {x: 1}\n  b: 2\n", name="x.yaml")
    assert document.value == {"a": {"b": 1, "c": {"x": 1}}}
    assert [document.render(fault) for fault in document.faults] == [
        "x.yaml:4: a.b: the key is written twice (first in line 2). Remove one of them"
    ]


def test_the_second_of_two_sections_does_not_move_the_lines_of_the_first() -> None:
    document = parse_document("a:\n  b: 1\na:\n  b: 2\n", name="x.yaml")
    assert document.places[("a", "b")].text == "x.yaml:2"


def test_scalar_keys_are_text_as_written() -> None:
    assert parse_value("{0: a, true: b, 1.50: c, no: d}") == {"0": "a", "true": "b", "1.50": "c", "no": "d"}


def test_anchors_and_aliases_work() -> None:
    assert parse_value("{a: &x [1, 2], b: *x}") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n\tb: 1",
            "x.yaml:2: this is not YAML: a tab stands where YAML wants spaces. Indent with spaces",
        ),
        ("a: [1,\nb: 2", "x.yaml:1: this is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n b: 2", "x.yaml:2: this is not YAML: mapping values are not allowed here"),
        ("", "x.yaml:1: a recipe is a mapping of sections, and it is empty. `lora-ft init TASK`"),
        ("# only a comment", "x.yaml:1: a recipe is a mapping of sections, and it is empty."),
        ("- 1", "x.yaml:1: a recipe is a mapping of sections, and it is a list."),
        ("text", "x.yaml:1: a recipe is a mapping of sections, and it is a single value."),
        ("a: 1\n---\nb: 2", "x.yaml:2: a second document starts here. Expected one: remove the '---'"),
        (
            "a: 1\nb: !!python/name:os.system x",
            "x.yaml:2: the tag 'tag:yaml.org,2002:python/name:os.system' is not",
        ),
        ("a: 1\n? [b]\n: 2", "x.yaml:2: a key must be text"),
        ("a: 1\n~: 2", "x.yaml:2: a key must be text, and this one is null. Put it in quotes if it is meant"),
        ("a: &x 1\n<<: *x", "x.yaml:2: merge keys ('<<') are not part of YAML 1.2. Write the keys out"),
        ("a: *x", "x.yaml:1: '*x' refers to an anchor that is not defined above. If '*' belongs to text"),
        ("a: &x [*x]", "x.yaml:1: '*x' refers to an anchor that is not defined above."),
        ("a: 1\nb: \x00", "x.yaml:2: this is not YAML: the character '\\x00' is not allowed"),
        ('a: "\\ud83d"', "x.yaml:1: half a surrogate pair is no character."),
        ("a: " + "[" * 50, "x.yaml:1: the text is nested too deeply"),
    ],
)
def test_text_that_is_no_recipe_names_its_line_and_the_remedy(text: str, message: str) -> None:
    assert error(text).startswith(message)


def test_aliases_of_aliases_cannot_grow_without_limit() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "the aliases make the text too long" in error("\n".join(lines))


def test_a_file_that_is_not_utf_8_names_the_line_of_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"task: a\nmodel: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"x\.yaml:2: byte 0xe9 is not UTF-8\. Save the file in UTF-8"):
        read_document(file)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot read the recipe: No such file or directory"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot read the recipe: Is a directory"):
        read_document(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbftask: a\r\nmodel: b\r\n")
    assert read_document(file).value == {"task": "a", "model": "b"}


YAMLISH = st.text(alphabet=st.sampled_from(list("ab1: -[]{},&*!|>'\"#%@`~?\n\t<.=\\0")), max_size=40)


@given(st.one_of(st.text(max_size=60), YAMLISH))
def test_no_text_raises_anything_but_our_errors(text: str) -> None:
    with contextlib.suppress(RecipeError):
        parse_document(text, name="x.yaml")
    with contextlib.suppress(RecipeYamlError):
        parse_value(text)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_our_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "arbitrary.yaml"
    file.write_bytes(data)
    with contextlib.suppress(RecipeError):
        read_document(file)
