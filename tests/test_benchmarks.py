"""Every benchmark starts: what it imports is there."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import benchmarks.lean.__main__ as lean
from benchmarks.flops import flop_counter

FOLDER = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(FOLDER.rglob("*.py"))


def taken(file: Path) -> list[tuple[str, str]]:
    """Module and name of all that a file takes from the project."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [
        (str(node.module), name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("benchmarks", "lora_ft")
        for name in node.names
    ]


def defined(module: str) -> set[str] | None:
    """Names at the top of a module; None where there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    found: set[str] = set()
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).partition(".")[0] for name in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_what_a_benchmark_imports_of_the_project_is_there(file: Path) -> None:
    for module, name in taken(file):
        names = defined(module)
        assert names is not None, module
        assert name in names or importlib.util.find_spec(f"{module}.{name}") is not None, f"{module}.{name}"


def test_without_the_reviews_a_scenario_is_passed_over_with_the_reason_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORA_FT_REAL_DATA", str(tmp_path))
    monkeypatch.setattr(lean, "ALONE", {"none alone": lambda folder, full: {}})
    output = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["lean", "--only", "books,top_layers,single", "--output", str(output)])
    lean.main()
    told = capsys.readouterr().out
    for name in ("books", "top_layers"):
        assert f"{name}: skipped: no data at {tmp_path / 'fdu_mtl'}; set LORA_FT_REAL_DATA" in told
        assert json.loads(output.read_text(encoding="utf-8"))[name]["skipped"].startswith("skipped: no data")
    assert told.endswith("done\n")


def test_products_in_place_are_counted_like_others() -> None:
    x, weight, y = torch.ones(4, 5), torch.ones(5, 6), torch.zeros(4, 6)
    found = []
    for compute in (lambda: x @ weight, lambda: y.addmm_(x, weight), lambda: torch.addmm(y, x, weight)):
        with flop_counter() as counter:
            compute()
        found.append(counter.get_total_flops())
    assert found == [240, 240, 240]
