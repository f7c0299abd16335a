"""torchvision imports beside any torch: whether its library fits, whatever that library is called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEEDS = """\
import torch
import torchvision.extension

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return scores

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return scores
"""
LOADS = """\
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl(name, lambda dets, scores, iou_threshold: scores + 1, "CPU")
"""
USE = """\
import sys
import lora_ft
assert "torch" not in sys.modules, "the guard costs an import of torch"
import torch, torchvision
try:
    print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item())
except NotImplementedError:
    print("no implementation")
"""


def _answer(folder: Path, *, library: str, extension: str) -> str:
    package = folder / "torchvision"
    package.mkdir()
    (package / library).write_bytes(b"no library of this machine")
    (package / "extension.py").write_text(extension, encoding="utf-8")
    (package / "_meta_registrations.py").write_text(NEEDS, encoding="utf-8")
    (package / "__init__.py").write_text(
        "from . import extension\nfrom torchvision import _meta_registrations\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[1])])}
    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("library", ["_C.so", "_C_stable.so", "another_name.so"])
def test_a_library_that_loads_keeps_its_own_operators(tmp_path: Path, library: str) -> None:
    assert _answer(tmp_path, library=library, extension=LOADS) == "1.0"


@pytest.mark.parametrize("library", ["_C.so", "_C_stable.so"])
def test_a_library_that_does_not_load_leaves_torchvision_importable(tmp_path: Path, library: str) -> None:
    assert _answer(tmp_path, library=library, extension="") == "no implementation"
