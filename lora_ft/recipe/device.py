"""What half precision the machine at hand computes in, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
ACCELERATORS = (
    *("dev/nvidia0", "dev/dxg", "dev/nvhost-gpu", "dev/dri", "dev/kfd"),
    *("dev/accel", "dev/davinci0", "dev/hl0"),
)
"""NVIDIA, any GPU under WSL 2, Jetson, Intel, AMD; Google and Habana, Huawei, Habana: seen without their libraries."""


@dataclass(frozen=True)
class Device:
    """What can be said of this machine.

    Attributes:
        accelerator: Whether there is, or may be, a device besides the CPU.
        cpu_bf16: Whether the CPU computes in bfloat16; True where that cannot be seen (no /proc).
    """

    accelerator: bool
    cpu_bf16: bool


def find_device(root: Path | None = None) -> Device:
    """Looks for accelerators and CPU flags.

    Args:
        root: Where `/proc` and `/dev` are; for tests.

    Returns:
        The device; on macOS and Windows one that nothing is known to be wrong with.
    """
    root = ROOT if root is None else root
    cpuinfo = root / "proc/cpuinfo"
    if not cpuinfo.is_file():
        return Device(accelerator=True, cpu_bf16=True)
    gpus = root / "proc/driver/nvidia/gpus"
    seen = any((root / name).exists() for name in ACCELERATORS) or (gpus.is_dir() and any(gpus.iterdir()))
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    cpu_bf16 = flags is None or bool(BF16_FLAGS & set(flags[1].split()))
    return Device(accelerator=seen, cpu_bf16=cpu_bf16)
