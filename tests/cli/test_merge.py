"""lora-ft merge from outside: what it refuses before torch, what it prints, what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_ft.train.run import RunOptions, train
from tests.adapters.build import resign, snapshot
from tests.cli.calls import Run, refused
from tests.toy import read, write_recipe


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("cli-merge")
    found = []
    for index, name in enumerate(("books", "toys")):
        recipe = write_recipe(root / name, tiny_bert, training_args={"num_train_epochs": 1, "seed": index})
        train(read(recipe), RunOptions())
        found.append(root / name / "run")
    return found


def refusal(*arguments: object) -> str:
    """What `lora-ft merge` says, in a fresh process."""
    return refused(["merge", *arguments])[0]


def test_wrong_input_is_refused_before_torch_is_imported(pair: list[Path], tmp_path: Path) -> None:
    new = tmp_path / "new"
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for arguments, words in (
        ((*pair, "--output", new, "--method", "tise"), "Did you mean 'ties'?"),
        ((*pair, "--output", new, "--weights", "1,2,3"), "3 given for 2 adapters"),
        ((*pair, "--output", new, "--method", "cat", "--method", "svd"), "--search to try them all"),
        ((*pair, "--output", new, "--search", "--weights", "1,1"), "--search finds the weights"),
        ((*pair, "--output", pair[0] / "adapter"), "lie in one another"),
        ((*pair, "--output", full), "never deleted"),
        ((pair[0], "--output", full), "never deleted"),
        ((pair[0], "--output", new, "--weights", "1"), "--weights says how several adapters become one"),
        ((pair[0], "--output", new, "--quantization", "nf4"), "never quantised"),
        ((pair[0], pair[0], "--output", new), "given twice"),
        ((tmp_path / "absent", "--output", new), "no such folder"),
    ):
        message = refusal(*arguments)
        assert words in message, message
    assert not new.exists()


def test_an_output_in_or_around_an_adapter_is_refused_and_nothing_is_lost(pair: list[Path], tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    inner = Path(shutil.copytree(pair[0] / "adapter", outer / "checkpoint-10"))
    for name in ("merged.json", "adapter_config.json"):  # as if earlier outputs lay there
        (outer / name).write_text("{}")
    before = snapshot(outer)
    for adapters in ([inner], [inner, pair[1]], [pair[1], inner]):
        for output in (outer, inner, inner / "merged"):
            assert "lie in one another" in refusal(*adapters, "--output", output, "--overwrite")
    assert snapshot(outer) == before
    message = refusal(*pair, "--output", outer)
    assert "Choose another --output, or give --overwrite" in message
    assert "output_dir" not in message


def test_a_base_is_never_the_output(pair: list[Path], tmp_path: Path) -> None:
    base = tmp_path / "bases" / "mine"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    for output in (base, base.parent, base / "merged"):
        message = refusal(pair[0], "--base", base, "--output", output, "--overwrite")
        assert "lie in one another" in message
    assert [path.name for path in tmp_path.rglob("*.json")] == ["config.json"]


def test_adapters_that_do_not_belong_together_are_refused_before_torch(pair: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair[1] / "adapter", tmp_path / "other" / "adapter"))
    resign(copy, lambda content: content.update(task="token-classification"))
    assert "Expected adapters of one task" in refusal(pair[0], copy, "--output", tmp_path / "new")
    (copy / "README.md").write_text("edited")
    assert "README.md" in refusal(pair[0], copy, "--output", tmp_path / "new")


def test_one_adapter_is_merged_and_the_json_is_what_was_written(run: Run, pair: list[Path], tmp_path: Path) -> None:
    code, out, _ = run("merge", pair[0], "--output", tmp_path / "merged", "--offline", "--json")
    assert code == 0
    told = json.loads(out)
    stored = json.loads((tmp_path / "merged" / "merged.json").read_text())
    assert {key: value for key, value in told.items() if key != "output"} == stored
    assert told["metrics"]["after"] == pytest.approx(told["metrics"]["before"])
    assert stored["command"].startswith("lora-ft merge")


def test_several_are_searched_shown_and_opened_by_the_other_verbs(run: Run, pair: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "merged"
    code, out, error = run("merge", *pair, "--output", target, "--search", "--method", "cat", "--offline")
    assert code == 0, error
    for words in ("books", "toys", "mean", "tried: 6 combinations", "uniform"):
        assert words in out
    assert run("verify", target, "--offline")[0] == 0
    assert run("show", target)[0] == 0
    code, out, _ = run("evaluate", target, "--offline", "--json")
    assert code == 0
    told = json.loads((target / "manifest.json").read_text())["run"]["merge"]
    assert [one["name"] for one in told["sources"]] == ["books", "toys"]
    assert len(told["tried"]) == 6
    assert json.loads(out)["adapter"]["accuracy"] == pytest.approx(told["domains"]["books"]["after"]["accuracy"])
    code, _, error = run("merge", *pair, "--output", target, "--offline")
    assert code == 2
    assert "--overwrite" in error
    assert run("merge", *pair, "--output", target, "--offline", "--overwrite", "--method", "ties")[0] == 0
    assert json.loads((target / "manifest.json").read_text())["run"]["merge"]["density"] == 0.5


def test_an_error_names_the_way_out(run: Run, pair: list[Path], tmp_path: Path) -> None:
    code, _, error = run("merge", *pair, "--output", tmp_path / "new", "--method", "cat", "--density", "0.3")
    assert code == 2
    assert "Leave --density out" in error
