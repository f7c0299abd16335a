"""Makes torchvision importable beside a torch it was not built for (the PyPI wheel beside a CPU torch).

Without it not even `import peft` works on such a machine: peft imports transformers' models, these their image
processors, these torchvision, and that fails with "operator torchvision::nms does not exist" (torchvision 0.28).
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

LOADER, NEEDS_OPERATORS = "torchvision.extension", "torchvision._meta_registrations"
OPERATORS = {
    "torchvision::nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""What `torchvision/_meta_registrations.py` (0.28) asks for even where its compiled library did not load."""


class TorchvisionGuard(MetaPathFinder):
    """Declares the operators that torchvision misses once its own loader has run and left them missing.

    Never before that: a compiled library that registers an operator which is there already ends the process, and
    only torchvision knows what its library is called (`_C.so` in 0.28, `_C_stable.so` in 0.29). Nothing computes boxes
    with these operators: whoever does gets torch's error that they have no implementation.
    """

    def __init__(self) -> None:
        self.library: object | None = None  # the names are gone when it is

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Never finds anything itself; see `importlib.abc.MetaPathFinder`."""
        del path, target
        if fullname == NEEDS_OPERATORS and LOADER in sys.modules and self.library is None:
            self.library = _declare_missing()
        return None


def install() -> None:
    """Has the first import of torchvision guarded; costs nothing where torchvision is never imported."""
    if not any(isinstance(finder, TorchvisionGuard) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionGuard())


def _declare_missing() -> object | None:
    """Declares the operators that torch does not know; all of them or, with a library that loaded, none."""
    import torch

    known = [name for name in OPERATORS if torch._C._jit_get_schemas_for_operator(name)]
    if known:
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in OPERATORS.values():
        library.define(schema)  # type: ignore[no-untyped-call]
    return library
