"""What a merge was asked for is checked from the manifests, with a message that says what to do."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_ft.adapters import merge_plan
from lora_ft.adapters.merge_plan import (
    MERGED,
    METHODS,
    Plan,
    Source,
    check_checkpoint_target,
    check_plan,
    check_together,
    parse_weights,
    read_sources,
    shared_settings,
)
from lora_ft.errors import AdapterError, AdapterRefused, InputError
from tests.adapters.build import resign


@pytest.fixture
def pair(written: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(written, tmp_path / name / "adapter")) for name in ("books", "toys")]


def changed(folder: Path, **changes: Any) -> Path:
    resign(folder, lambda content: content.update(changes))
    return folder


def reconfigured(source: Source, **changes: Any) -> Source:
    return replace(source, config={**source.config, **changes})


def test_sources_are_named_after_their_runs_and_recorded_with_checksums(pair: list[Path]) -> None:
    sources = read_sources([pair[0].parent, pair[1]])
    assert [one.name for one in sources] == ["books", "toys"]
    assert set(sources[0].ranks.values()) == {4}
    assert set(sources[0].to_mapping()["sha256"]) == {"adapter_model.safetensors", "adapter_config.json"}
    check_together(sources)


def test_runs_of_one_name_are_told_apart_by_the_folder_above(written: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(written, tmp_path / name / "run" / "adapter")) for name in "ab"]
    assert [one.name for one in read_sources(folders)] == ["a", "b"]


def test_adapters_that_prepare_texts_in_two_ways_are_refused(pair: list[Path]) -> None:
    changed(pair[1], preparation={"lowercase": True, "replace_urls": "http"})
    expected = 'merge: books prepares texts by nothing, toys by lowercase: true, replace_urls: "http": one adapter can'
    with pytest.raises(AdapterRefused, match=expected):
        check_together(read_sources(pair))


def test_the_same_adapter_twice_is_refused(pair: list[Path]) -> None:
    with pytest.raises(AdapterError, match=r"given twice.*--weights"):
        read_sources([pair[0], pair[1], pair[0].parent])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "token-classification"}, r"books is of task text-classification, toys of token-classification"),
        ({"problem_type": "regression"}, r"problem type single_label_classification, toys of regression"),
    ],
)
def test_another_task_or_problem_type_is_refused(pair: list[Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterRefused, match=message):
        check_together(read_sources([pair[0], changed(pair[1], **changes)]))


def test_another_base_is_refused_by_its_fingerprint(pair: list[Path]) -> None:
    def other(content: dict[str, Any]) -> None:
        content["base"]["fingerprint"] = {"weights": "1" * 8}

    resign(pair[1], other)
    with pytest.raises(AdapterRefused, match=r"toys on another base.*fingerprints differ"):
        check_together(read_sources(pair))


def test_heads_with_different_labels_are_refused_with_both_lists(pair: list[Path]) -> None:
    first, second = read_sources(pair)
    other = replace(second, manifest=replace(second.manifest, labels=("bad", "fair", "great")))
    with pytest.raises(AdapterRefused, match=r"\['bad', 'fair', 'good'\], toys has \['bad', 'fair', 'great'\]"):
        check_together([first, other])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"use_dora = True: DoRA scales the whole weight"),
        ({"bias": "all"}, r"bias = 'all': the biases"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices = \[1\]: peft combines A and B alone"),
    ],
)
def test_what_is_more_than_a_and_b_is_refused(pair: list[Path], changes: dict[str, Any], message: str) -> None:
    first, second = read_sources(pair)
    with pytest.raises(AdapterRefused, match=message):
        check_together([first, reconfigured(second, **changes)])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan("tise", (0.5, 0.5), 0.5), r"no such method\. Did you mean 'ties'\?"),
        (Plan("cat", (0.5, 0.3, 0.2)), r"3 given for 2 adapters"),
        (Plan("cat", (float("nan"), 1.0)), r"finite numbers"),
        (Plan("cat", (0.0, 0.0)), r"not all 0"),
        (Plan("cat", (1.0, -2.0)), r"heads are averaged.*above 0"),
        (Plan("ties", (0.5, 0.5)), r"needs --density"),
        (Plan("cat", (0.5, 0.5), 0.5), r"prunes nothing\. Leave --density out"),
        (Plan("ties", (0.5, 0.5), 1.5), r"--density = 1.5"),
        (Plan("ties", (0.5, 0.5), 0.0), r"--density = 0"),
        (Plan("cat", (0.5, 0.5), rank=4), r"--rank = 4.*ends in svd"),
    ],
)
def test_a_wrong_plan_is_refused(pair: list[Path], plan: Plan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_plan(plan, read_sources(pair))


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_add_up_factors_want_one_rank(pair: list[Path], method: str) -> None:
    first, second = read_sources(pair)
    other = replace(second, ranks=dict.fromkeys(second.ranks, 8))
    plan = Plan(method, (0.5, 0.5), 0.5 if merge_plan.prunes(method) else None)
    check_plan(plan, [first, second])
    if merge_plan.wants_one_rank(method):
        with pytest.raises(AdapterRefused, match=r"books: 4; toys: 8.*--method \w*(svd|cat)"):
            check_plan(plan, [first, other])
    else:
        check_plan(plan, [first, other])


def test_weights_are_read_or_refused() -> None:
    assert parse_weights("0.5, 0.25,1") == (0.5, 0.25, 1.0)
    with pytest.raises(InputError, match=r"0\.5;0\.5"):
        parse_weights("0.5;0.5")


def test_the_longest_length_is_kept_and_other_settings_must_agree(pair: list[Path]) -> None:
    changed(pair[1], settings={"max_length": 128})
    assert shared_settings(read_sources(pair)) == {"max_length": 128}
    changed(pair[1], settings={"max_length": 64, "stride": 8})
    with pytest.raises(AdapterRefused, match=r"processor\.stride is None in books and 8 in toys"):
        shared_settings(read_sources(pair))


def test_a_merged_base_goes_nowhere_else_than_to_a_new_folder_or_over_another_one(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    check_checkpoint_target(target, overwrite=False, needed_bytes=1)
    target.mkdir()
    check_checkpoint_target(target, overwrite=False, needed_bytes=1)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(AdapterError, match="never deleted"):
        check_checkpoint_target(target, overwrite=True, needed_bytes=1)
    (target / MERGED).write_text("{}")
    with pytest.raises(AdapterError, match="--overwrite"):
        check_checkpoint_target(target, overwrite=False, needed_bytes=1)
    check_checkpoint_target(target, overwrite=True, needed_bytes=1)


def test_a_full_disk_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(merge_plan.shutil, "disk_usage", lambda path: usage(10, 5, 5_000_000))
    check_checkpoint_target(tmp_path / "merged", overwrite=False, needed_bytes=4_000_000)
    with pytest.raises(AdapterError, match=r"takes 6\.0 MB and 5\.0 MB are free"):
        check_checkpoint_target(tmp_path / "merged", overwrite=False, needed_bytes=6_000_000)
