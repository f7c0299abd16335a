"""A manifest comes back as it was written, and any edit is noticed."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.adapters.manifest import (
    FORMAT_VERSION,
    BaseIdentity,
    FileInfo,
    Manifest,
    Probe,
    TensorInfo,
    checksum,
    installed_versions,
)
from lora_ft.errors import AdapterRefused

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MANIFEST = Manifest(
    task="text-classification",
    problem_type="single_label_classification",
    labels=("schlecht", "gut", "好"),
    base=BaseIdentity("org/base", "abc", {"weights": "12"}, 10, 40),
    head=("classifier",),
    new_head=True,
    peft_type="LORA",
    versions={"peft": "0.21.2"},
    seed=3,
    metrics={"test": {"f1": 0.1 + 0.2}},
    learned=None,
    settings={"max_length": 64},
    precision="bfloat16",
    quantization="nf4",
    probe=Probe({"input_ids": [[1, 2]]}, [[0.5, 1e-7, -3.25]], [[0.0, 0.0, 0.0]], "bfloat16", "nf4"),
    created="2026-11-22T08:00:00+00:00",
    run={"steps": 3},
    tensors={"base_model.model.classifier.weight": TensorInfo((3, 4), "F32")},
    files={"recipe.yaml": FileInfo("ab", 3)},
)


def signed(**changes: object) -> str:
    """The manifest's JSON with changed keys and a right checksum."""
    content = json.loads(MANIFEST.to_json())
    del content["checksum"]
    content.update(changes)
    content = {key: value for key, value in content.items() if value is not ...}
    return json.dumps({**content, "checksum": checksum(content)})


def test_manifest_comes_back_equal():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@given(run=st.dictionaries(st.text(), JSON, max_size=3), labels=st.lists(st.text(), max_size=4))
def test_any_content_comes_back_equal(run, labels):
    manifest = dataclasses.replace(MANIFEST, run=run, labels=tuple(labels))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_every_top_level_key_has_a_line_of_its_own():
    lines = MANIFEST.to_json().splitlines()
    assert len(lines) == len(dataclasses.fields(Manifest)) + 3
    assert lines[-2].startswith(' "checksum"')


@pytest.mark.parametrize("key", [one.name for one in dataclasses.fields(Manifest) if one.name != "format_version"])
def test_an_edit_of_any_key_is_noticed(key):
    content = json.loads(MANIFEST.to_json())
    content[key] = "edited"
    with pytest.raises(AdapterRefused, match="checksum does not match: the file was edited"):
        Manifest.from_json(json.dumps(content))
    with pytest.raises(AdapterRefused, match=f"{key} is missing"):
        Manifest.from_json(signed(**{key: ...}))


def test_reordered_keys_and_spaces_are_no_edit():
    content = json.loads(MANIFEST.to_json())
    assert Manifest.from_json(json.dumps(dict(reversed(content.items())), indent=4)) == MANIFEST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"format_version = {FORMAT_VERSION + 1}: written by a newer lora_ft"),
        ({"format_version": "1"}, f"format_version = '1': expected {FORMAT_VERSION}"),
        ({"format_version": True}, f"format_version = True: expected {FORMAT_VERSION}"),
        ({"lables": []}, "unknown key 'lables'. Did you mean 'labels'"),
        ({"seed": True}, "seed = True: expected int"),
        ({"seed": 1.0}, "seed = 1.0: expected int"),
        ({"labels": "ab"}, "labels = 'ab': expected tuple"),
        ({"labels": [1]}, "labels = 1: expected str"),
        ({"learned": "yes"}, "learned = 'yes': expected bool"),
        ({"base": {"name": "x"}}, "base: revision is missing"),
        ({"files": {"a": {"sha256": "x", "bytes": "3"}}}, "files: a: bytes = '3': expected int"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(AdapterRefused) as error:
        Manifest.from_json(signed(**changes), where="shop/manifest.json")
    assert str(error.value).startswith("shop/manifest.json")
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", "nul"])
def test_no_manifest_at_all_is_refused(text):
    with pytest.raises(AdapterRefused, match=r"not readable as JSON|empty"):
        Manifest.from_json(text)


def test_numbers_that_are_not_finite_are_never_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(MANIFEST, metrics={"f1": float("nan")}).to_json()


def test_installed_versions_name_what_computes():
    versions = installed_versions()
    assert {"torch", "transformers", "peft", "lora-ft"} <= set(versions)


def test_a_folder_of_the_second_format_has_no_centroid_and_one_of_the_third_must_have_the_key():
    content = json.loads(MANIFEST.to_json())
    del content["centroid"]
    with pytest.raises(AdapterRefused, match="centroid is missing"):
        Manifest.from_json(json.dumps(_signed_as_it_is(content)))
    content["format_version"] = 2
    assert Manifest.from_json(json.dumps(_signed_as_it_is(content))).centroid is None


def _signed_as_it_is(content):
    content.pop("checksum", None)
    return {**content, "checksum": checksum(content)}
