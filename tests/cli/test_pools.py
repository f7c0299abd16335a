"""Predict, evaluate and verify with a folder of adapters, from outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_ft.cli.pools import bytes_of
from lora_ft.errors import InputError
from tests.bases import make_base
from tests.cli.calls import Run, refused
from tests.pools import TinyPool, mixed_rows


@pytest.fixture
def run(run: Run) -> Run:
    return lambda *arguments, **stdin: run(*arguments, "--offline", **stdin)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A CSV with the rows of all domains by turns."""
    file = tmp_path / "mixed.csv"
    lines = [f'"{text}",{name}' for name, text in mixed_rows()]
    file.write_text("text,domain\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def damage(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def test_each_row_of_a_file_is_answered_by_the_adapter_it_names(
    run: Run, tiny_pool: TinyPool, mixed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    options = ("--adapter-column", "domain", "--batch-size", 3, "--max-adapters", 2, "--max-bytes", "1MB")
    assert run("predict", tiny_pool.root, "--input", mixed, "--output", output, *options)[0] == 0
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(one["adapter"], one["text"]) for one in answers] == mixed_rows()
    _, out, _ = run("predict", tiny_pool.adapter("phones"), *[text for name, text in mixed_rows() if name == "phones"])
    alone = [json.loads(line) for line in out.splitlines()]
    own = [one for one in answers if one["adapter"] == "phones"]
    assert [one["label"] for one in own] == [one["label"] for one in alone]
    assert [one["score"] for one in own] == pytest.approx([one["score"] for one in alone], abs=1e-5)


def test_a_stream_words_and_the_router_answer_too(run: Run, tiny_pool: TinyPool) -> None:
    lines = [{"text": "good book", "d": "books", "id": 7}, {"text": "bad phone"}]
    stdin = "".join(json.dumps(line) + "\n" for line in lines)
    code, out, error = run(
        "predict", tiny_pool.root, "--input", "-", "--adapter-column", "d", "--adapter", "auto", stdin=stdin
    )
    assert code == 0, error
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["adapter"], first["id"]) == ("books", 7)
    assert "adapter_score" not in first
    assert second["adapter"] in ("books", "phones")
    assert 0 <= second["adapter_score"] <= 1
    assert error.count("without a centroid, never chosen: pans") == 1
    code, out, error = run("predict", tiny_pool.root, "a sturdy pan", "awful pan", "--adapter", "pans")
    assert code == 0, error
    assert [json.loads(line)["adapter"] for line in out.splitlines()] == ["pans", "pans"]
    code, out, _ = run("predict", tiny_pool.root, "--input", "-", "--adapter", "books", stdin="good book\n")
    assert (code, json.loads(out)["text"]) == (0, "good book")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--input", "FILE"), "nothing says whose the rows are"),
        (("--input", "FILE", "--adapter-column", "doman"), "Did you mean 'domain'?"),
        (("--input", "FILE", "--adapter", "boks"), "Did you mean 'books'?"),
        (("a text", "--adapter-column", "domain"), "words have no columns"),
        (("a text", "--adapter", "books", "--stream"), "several adapters"),
        (("a text", "--adapter", "books", "--max-bytes", "many"), "--max-bytes many: no size"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    run: Run, tiny_pool: TinyPool, mixed: Path, options: tuple[str, ...], message: str
) -> None:
    code, out, error = run("predict", tiny_pool.root, *(str(mixed) if one == "FILE" else one for one in options))
    assert (code, out) == (2, "")
    assert message in error
    assert "Traceback" not in error


def test_one_adapter_wants_no_options_of_a_pool(run: Run, tiny_pool: TinyPool, mixed: Path) -> None:
    adapter = tiny_pool.adapter("books")
    code, _, error = run("predict", adapter, "--input", mixed, "--adapter-column", "domain")
    assert (code, "--adapter-column" in error, "one adapter" in error) == (2, True, True)
    assert run("evaluate", adapter, "--max-adapters", 3)[0] == 2
    code, _, error = run("evaluate", tiny_pool.root, "--data", mixed)
    assert (code, "--adapter-column" in error) == (2, True)


def test_an_unknown_adapter_in_row_17_is_named_before_torch_is_imported(tiny_pool: TinyPool, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,domain\n" + "good book,books\n" * 15 + "bad book,boks\n", encoding="utf-8")
    words = ["predict", tiny_pool.root, "--input", file, "--adapter-column", "domain"]
    (told,) = refused(words, allowed=["datasets"])
    assert "row 17: there is no adapter 'boks'. Did you mean 'books'?" in told


def test_damaged_adapters_are_all_named_and_nothing_is_answered(
    run: Run, tiny_pool: TinyPool, mixed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "pool"
    shutil.copytree(tiny_pool.root, root)
    for name in ("books", "pans"):
        damage(root / name / "run" / "adapter")
    code, out, error = run("predict", root, "--input", mixed, "--adapter-column", "domain")
    assert (code, out) == (2, "")
    assert "2 of 3 adapters are damaged" in error
    assert all(str(root / name) in error for name in ("books", "pans"))
    code, out, error = run("verify", root)
    assert code == 2
    assert "phones: verified" in out
    assert "books: refused: " in out
    assert "1 of 3 adapters verified in " in out
    assert "refused: books, pans" in error


def test_adapters_of_two_bases_are_no_pool(run: Run, tiny_pool: TinyPool, tmp_path: Path) -> None:
    from lora_ft.train.run import RunOptions, train
    from tests.toy import read, write_recipe

    other = make_base(tmp_path / "base", seed=1)
    recipe = write_recipe(tmp_path / "pool" / "other", other, training_args={"max_steps": 2})
    train(read(recipe), RunOptions())
    shutil.copytree(tiny_pool.adapter("books"), tmp_path / "pool" / "books")
    code, _, error = run("predict", tmp_path / "pool", "a text", "--adapter", "books")
    assert code == 2
    assert "One pool has one task and one base" in error


def test_evaluate_says_how_each_adapter_does_and_how_the_router(run: Run, tiny_pool: TinyPool, tmp_path: Path) -> None:
    lines = tmp_path / "predictions.jsonl"
    code, out, error = run("evaluate", tiny_pool.root, "--json", "--predictions", lines)
    assert code == 0, error
    report = json.loads(out)
    assert report["rows"] == 72
    assert set(report["adapters"]) == {"books", "phones", "pans"}
    assert report["router"]["without_centroid"] == ["pans"]
    assert 0 <= report["router"]["accuracy"] <= 2 / 3
    written = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert len(written) == 72
    assert {"text", "reference", "adapter", "nearest", "nearest_score", "label"} <= set(written[0])
    right = sum(one["nearest"] == one["adapter"] for one in written) / 72
    assert report["router"]["accuracy"] == pytest.approx(right)

    data = tmp_path / "rows.csv"
    data.write_text("text,label,domain\ngood book,positive,books\nbad book,negative,books\n", encoding="utf-8")
    code, out, error = run("evaluate", tiny_pool.root, "--data", data, "--adapter-column", "domain")
    assert code == 0, error
    assert "2 rows of 1 adapters" in out
    assert "phones" not in out


def test_verify_proves_all_on_one_base(run: Run, tiny_pool: TinyPool) -> None:
    code, out, error = run("verify", tiny_pool.root)
    assert code == 0, error
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == ["books", "pans", "phones"]
    assert "3 of 3 adapters verified" in out


def test_sizes_are_read_as_people_write_them() -> None:
    assert [bytes_of(word) for word in ("2GB", "500 MB", "1.5GiB", "10", "3kb")] == [
        2_000_000_000, 500_000_000, 1_610_612_736, 10, 3_000,
    ]  # fmt: skip
    with pytest.raises(InputError, match="--max-bytes 0"):
        bytes_of("0")
