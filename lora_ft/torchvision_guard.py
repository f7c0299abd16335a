"""Makes torchvision importable beside a torch it was not built for (the PyPI wheel beside a CPU torch).

Without it not even `import peft` works on such a machine: peft imports transformers' models, these their image
processors, these torchvision, and that fails with "operator torchvision::nms does not exist" (torchvision 0.28).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""What `torchvision/_meta_registrations.py` (0.28) asks for even where its compiled library did not load."""


class TorchvisionGuard(MetaPathFinder):
    """Looks at the first import of torchvision, and declares the operators that it will miss.

    Nothing computes boxes with these operators: whoever does gets torch's error that they have no implementation.
    """

    def __init__(self) -> None:
        self.looked = False
        self.library: object | None = None  # the names are gone when it is

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Never finds anything itself; see `importlib.abc.MetaPathFinder`."""
        del path, target
        if fullname == "torchvision" and not self.looked:
            self.looked = True
            self.library = _declare_missing()
        return None


def install() -> None:
    """Has the first import of torchvision guarded; costs nothing where torchvision is never imported."""
    if not any(isinstance(finder, TorchvisionGuard) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionGuard())


def _declare_missing() -> object | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        return None
    import torch

    if any(_loads(file) for place in spec.submodule_search_locations for file in _compiled(Path(place))):
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in OPERATORS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _compiled(place: Path) -> list[Path]:
    """The compiled operators of torchvision."""
    return [
        place / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES if (place / f"_C{suffix}").is_file()
    ]


def _loads(file: Path) -> bool:
    """Whether a compiled library fits this torch."""
    import torch

    try:
        torch.ops.load_library(file)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True
