"""The rules of the house: sizes, names, docstrings, and what must not be in a file."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lora_ft").rglob("*.py"))
BAD_NAMES = {"utils", "util", "misc", "common", "helpers", "helper", "tools"}


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_file_says_its_job_in_its_first_line_and_stays_readable(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{file}: no docstring"
    assert text.startswith(('"""', 'r"""')), f"{file}: the docstring is not the first line"
    assert file.stem not in BAD_NAMES, f"{file}: the name does not say what it is"
    assert len(text.splitlines()) <= 500, f"{file}: over 500 lines: split it by job"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_functions_are_at_most_sixty_lines_without_their_docstring(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node):
                first = node.body[0]
                lines -= (first.end_lineno or 0) - first.lineno + 1
            assert lines <= 60, f"{file}:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_only_the_command_line_prints_exits_and_reads_the_environment(file: Path) -> None:
    if file.parent.name == "cli":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{file}:{node.lineno}: print"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            spelled = f"{node.value.id}.{node.attr}"
            assert spelled not in ("os.environ", "os.getenv", "sys.argv", "sys.exit"), (
                f"{file}:{node.lineno}: {spelled}"
            )


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_nothing_is_left_for_later_or_caught_broadly(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), f"{file}: left for later"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not broad, f"{file}:{node.lineno}: caught broadly"


def test_every_room_has_tests() -> None:
    for folder in (ROOT / "lora_ft").iterdir():
        if (folder / "__init__.py").exists():
            assert list((ROOT / "tests" / folder.name).glob("test_*.py")), f"tests/{folder.name} has no test"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_no_committed_file_names_a_path_of_one_machine_or_the_host_of_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    registries = "|".join(("py" + r"pi\.org", r"pythonhosted" + r"\.org", "npm" + r"js\.(org|com)"))
    pattern = re.compile(r"/(home|root|work)/[A-Za-z.]|/(tmp|var)/[a-z_]*jobs|" + registries)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file():  # whatever its ending: a Dockerfile has none
            match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            assert match is None, f"{name}: {match}"


@pytest.mark.parametrize("file", sorted((ROOT / "docs").glob("*.md")), ids=lambda file: file.name)
def test_no_page_waits_to_be_filled_in(file: Path) -> None:
    assert "@@" not in file.read_text(encoding="utf-8")
