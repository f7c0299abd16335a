"""The floors of docs/architecture.md as data: a file imports only from lower floors, nothing in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lora_ft"
FLOORS = {
    "errors": 1,
    "torchvision_guard": 1,
    "ops": 1,
    "recipe": 2,
    "metrics": 2,
    "data": 3,
    "tasks": 3,
    "models": 3,
    "adapters": 3,
    "assemble": 4,
    "train": 5,
    "launch": 5,
    "evaluate": 5,
    "serve": 5,
    "screen": 6,
    "cli": 7,
    "__main__": 8,
}
LIGHT = ("recipe", "errors", "launch", "cli", "__init__", "screen")
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "sklearn",
    "scipy",
    "numpy",
    "bitsandbytes",
    "PIL",
    "soundfile",
    "soxr",
    "torchvision",
    "timm",
    "trl",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """`lora_ft/data/files.py` -> `data`, `lora_ft/screen.py` -> `screen`."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> list[tuple[int, str]]:
    """Every imported module with its line, also inside functions and for types."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_floors(file: Path) -> None:
    own = room(file)
    if own == "__init__":
        return
    assert own in FLOORS, f"{file}: no floor is named for {own!r}; see docs/architecture.md"
    for line, module in imports(file):
        if not module.startswith("lora_ft."):
            continue
        other = module.split(".")[1]
        if other == own and own not in ("tasks",):
            continue
        if own == "tasks" and other == "tasks":
            part = module.startswith("lora_ft.tasks.parts")
            assert part or module == "lora_ft.tasks.base", f"{file}:{line}: a task imports a task: {module}"
            assert part or file != PACKAGE / "tasks" / "base.py", f"{file}:{line}: tasks/base.py names a task"
            continue
        assert FLOORS[other] < FLOORS[own], f"{file}:{line}: {own} (floor {FLOORS[own]}) imports {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_imports_a_package_by_its_init(file: Path) -> None:
    rooms = {f"lora_ft.{folder.name}" for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            assert not rooms & set(names), f"{file}:{node.lineno}: import the module, not its package"
        elif isinstance(node, ast.ImportFrom) and node.module in rooms:
            folder = PACKAGE / node.module.split(".")[1]
            for name in names:  # `from lora_ft.recipe import upstream` names a module
                assert (folder / f"{name}.py").exists(), f"{file}:{node.lineno}: import {name} from its module"


def top_imports(file: Path) -> list[tuple[int, str]]:
    """What a file imports when it is imported itself; `from package import module` names both."""
    found = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def what_check_reads() -> list[Path]:
    """The light rooms, the tasks, and all that these import at their top."""
    own = (PACKAGE / "tasks").glob("*.py")
    queue = [*(file for file in FILES if room(file) in LIGHT), *own]
    seen: dict[Path, None] = {}
    while queue:
        file = queue.pop()
        if file not in seen:
            seen[file] = None
            modules = (name for _, name in top_imports(file) if name.startswith("lora_ft."))
            files = (ROOT / f"{name.replace('.', '/')}.py" for name in modules)
            queue += [one for one in files if one.exists()]
    return sorted(seen)


@pytest.mark.parametrize("file", what_check_reads(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_check_reads_imports_nothing_heavy_at_its_top(file: Path) -> None:
    for line, name in top_imports(file):
        assert name.split(".")[0] not in HEAVY, f"{file}:{line}: {name} is heavy"


def test_no_imports_in_a_circle() -> None:
    graph = {
        "lora_ft." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts): {
            module for _, module in imports(file) if module.startswith("lora_ft.")
        }
        for file in FILES
        if file.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " -> ".join((*path, module))
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_table_of_the_docs_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in FILES:
        if room(file) != "__init__":
            assert f"`{room(file)}" in text, f"docs/architecture.md does not name {room(file)}"
