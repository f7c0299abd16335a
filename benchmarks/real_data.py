"""Where the real data of the benchmarks lies; a benchmark skips with a reason where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def real_data(name: str) -> Path:
    """The folder of a data set: in `../shared/data` beside the checkout, or in the folder LORA_FT_REAL_DATA.

    Args:
        name: The data set's folder, such as `wnut17`.

    Raises:
        SystemExit: It is not there; says where it was looked for.
    """
    folder = Path(os.environ.get("LORA_FT_REAL_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        raise SystemExit(f"skipped: no data at {folder}; set LORA_FT_REAL_DATA to the folder that holds {name}/")
    return folder
