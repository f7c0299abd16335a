"""`lora-ft adopt` from outside: what it prints, what works afterwards, and that a refusal needs no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.adapters.build import snapshot
from tests.cli.calls import Run, refused
from tests.plain_peft import edit_config, save_plain
from tests.toy import write_reviews


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return save_plain(tmp_path_factory.mktemp("cli") / "plain", tiny_bert, "text-classification", labels=2)


def test_an_adopted_adapter_works_with_every_verb(run: Run, plain: Path, tiny_bert: Path, tmp_path: Path) -> None:
    rows = write_reviews(tmp_path / "dev.csv", 16, seed=2)
    labels = tmp_path / "labels.txt"
    labels.write_text("negative\npositive\n", encoding="utf-8")
    output = tmp_path / "ours"
    arguments = ("--base", tiny_bert, "--task", "text-classification", "--offline", "--output", output)
    more = ("--labels", labels, "--data", rows, "--set", "processor.max_length=32", "--device", "cpu")
    code, out, err = run("adopt", plain, *arguments, *more)
    assert code == 0, err
    assert "labels  negative, positive" in out
    assert f"16 rows of {rows}" in out
    code, out, err = run("verify", output, "--offline")
    assert (code, "when it was adopted" in out) == (0, True), err
    code, out, _ = run("show", output)
    assert (code, "unknown:" in out, "seed 0" in out) == (0, True, False)
    assert run("list", tmp_path)[0] == 0
    code, out, err = run("evaluate", output, "--data", rows, "--json", "--offline", "--device", "cpu")
    measured = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["adapter"]["data"]
    assert json.loads(out)["adapter"] == pytest.approx(measured), err
    code, out, _ = run("predict", output, "the book is great", "--offline")
    assert json.loads(out)["label"] in ("negative", "positive")
    code, _, err = run("evaluate", output, "--offline")
    assert (code, "give the rows with --data FILE" in err) == (2, True)
    code, _, err = run("check", output / "recipe.yaml")
    assert (code, "training_args" in err) == (2, True)
    code, _, err = run("adopt", plain, *arguments)
    assert (code, "--overwrite" in err) == (2, True)
    assert run("adopt", plain, *arguments, "--overwrite", "--labels", "no,yes")[0] == 0


def test_the_adapter_itself_is_never_the_output(run: Run, plain: Path, tiny_bert: Path) -> None:
    arguments = ("--base", tiny_bert, "--task", "text-classification", "--overwrite", "--offline")
    for output in (plain, plain / "ours"):
        code, _, err = run("adopt", plain, *arguments, "--output", output)
        assert (code, "never changed" in err) == (2, True)


def test_an_adapter_around_the_adapter_is_never_replaced(
    run: Run, plain: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    outer = Path(shutil.copytree(plain, tmp_path / "run"))
    inner = Path(shutil.copytree(plain, outer / "checkpoint-10"))
    before = snapshot(outer)
    arguments = ("--base", tiny_bert, "--task", "text-classification", "--offline", "--output", outer)
    code, _, err = run("adopt", inner, *arguments, "--overwrite")
    assert (code, "lie in one another" in err) == (2, True)
    code, _, err = run("adopt", plain, *arguments)
    assert (code, "Choose another --output, or give --overwrite" in err) == (2, True)
    assert snapshot(outer) == before


def test_a_refusal_imports_no_torch_and_writes_nothing(plain: Path, tiny_bert: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(plain, broken)
    edit_config(broken, {"bias": "all"}, drop=("r",))
    arguments = ("--base", tiny_bert, "--task", "text-classification", "--offline", "--output", tmp_path / "ours")
    (told,) = refused(["adopt", broken, *arguments, "--labels", "a,b,c"])
    assert "3 faults" in told
    assert not (tmp_path / "ours").exists()


def test_labels_without_a_name_are_refused(run: Run, plain: Path, tiny_bert: Path, tmp_path: Path) -> None:
    arguments = ("--base", tiny_bert, "--task", "text-classification", "--output", tmp_path / "x", "--offline")
    code, _, err = run("adopt", plain, *arguments, "--labels", ",")
    assert (code, "there is no label" in err) == (2, True)
    code, _, err = run("adopt", plain, *arguments, "--data", tmp_path / "absent.csv")
    assert (code, "there is no such file" in err) == (2, True)
