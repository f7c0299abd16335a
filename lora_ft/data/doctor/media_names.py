"""What the checks of images and sounds may say, apart from the checks, which need Pillow and soundfile.

One finding: `blank-images`
"""

from __future__ import annotations

IMAGE_FINDINGS = (
    "unreadable-images", "tiny-images", "blank-images", "turned-images", "duplicate-images", "look-alike-images",
    "duplicate-images-leakage", "look-alike-images-leakage",
)  # fmt: skip
SOUND_FINDINGS = (
    "unreadable-sounds", "silent-sounds", "clipped-sounds", "short-sounds", "long-sounds", "mixed-sample-rates",
)  # fmt: skip
