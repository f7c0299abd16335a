"""The README is true: its commands exist, its recipe is right, its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from lora_ft.cli.main import cli
from tests.toy import read, write_reviews

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_verb_and_option_in_the_readme_exists() -> None:
    commands = re.findall(r"lora-ft (\w+)([^`\n]*)", README)
    assert {verb for verb, _ in commands} >= {"train", "check", "evaluate", "predict", "verify", "show", "list", "init"}
    for verb, rest in commands:
        command = cli.commands[verb]
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in known, f"lora-ft {verb} has no {option}"


def test_every_make_target_in_the_readme_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for target in re.findall(r"make ([a-z-]+)", " ".join(blocks("bash"))):
        assert target in targets


def test_the_recipe_of_the_readme_has_no_fault(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    for name in ("train", "dev"):
        file = write_reviews(tmp_path / "data" / f"{name}.csv", 8, seed=1)
        content = file.read_text(encoding="utf-8")
        file.write_text(content.replace("text,label", "review,sentiment"), encoding="utf-8")
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    recipe = read(tmp_path / "my.yaml")
    assert recipe.training_args["output_dir"] == str(tmp_path / "runs" / "shop")


def test_the_python_of_the_readme_imports_what_exists() -> None:
    (code,) = blocks("python")
    imports = "\n".join(line for line in code.splitlines() if line.startswith("from "))
    exec(compile(imports, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_error_class_has_an_entry_in_troubleshooting() -> None:
    from lora_ft import errors

    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.LoraFtError) and name != "LoraFtError":
            assert f"## {name}" in text, name


def test_help_of_every_verb_says_what_it_does() -> None:
    for command in cli.commands.values():
        assert command.help
        with click.Context(command) as context:
            assert command.get_help(context)
