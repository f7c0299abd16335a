"""Images: whatever a file holds becomes an upright RGB picture, or a reason why it cannot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_ft.errors import DataError, InputError
from lora_ft.tasks.parts.images import image_fault, image_settings, image_size, open_image, processed

RED, GREEN = (255, 0, 0), (0, 128, 0)


def value(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return {"path": None, "bytes": stream.getvalue()}


def halves(width: int = 12, height: int = 8) -> Image.Image:
    """Left half red, right half green."""
    image = Image.new("RGB", (width, height), GREEN)
    image.paste(RED, (0, 0, width // 2, height))
    return image


def test_a_path_and_bytes_give_the_same_picture_and_bytes_win(tmp_path: Path) -> None:
    file = tmp_path / "halves.png"
    halves().save(file)
    by_path = open_image({"path": str(file), "bytes": None})
    by_bytes = open_image({"path": "nowhere.png", "bytes": file.read_bytes()})
    assert by_path.tobytes() == by_bytes.tobytes() == halves().tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    turned = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = halves() if turned is None else halves().transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = value(stored, exif=exif)
    assert open_image(found).tobytes() == halves().tobytes()
    assert image_size(found) == (12, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("I;16", (4, 4), 65_535) if mode == "I;16" else Image.new("RGB", (4, 4), "white").convert(mode)
    found = open_image(value(image, "PNG" if mode not in ("CMYK", "YCbCr", "PA") else "TIFF"))
    assert found.mode == "RGB"
    assert np.asarray(found).min() >= 254


def test_sixteen_bits_keep_their_order_instead_of_being_clipped_to_white() -> None:
    grey = Image.fromarray(np.asarray([[0, 1_000, 32_768, 65_535]], dtype=np.uint16))
    assert np.asarray(open_image(value(grey)))[0, :, 0].tolist() == [0, 3, 128, 255]


def test_transparent_parts_are_white_not_what_lies_under_them() -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    assert [open_image(value(image)).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_of_a_moving_picture_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN)]
    assert open_image(value(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_an_image_that_was_cut_off_is_a_fault_with_its_reason(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = value(Image.fromarray(noise), kind)
    assert image_fault(whole) is None
    cut = {"path": "photos/cut.img", "bytes": whole["bytes"][: len(whole["bytes"]) // 2]}
    found = image_fault(cut)
    assert found is not None
    assert found.startswith("photos/cut.img: ")
    with pytest.raises(DataError):
        open_image(cut)


def test_what_is_no_image_is_a_fault_that_says_so(tmp_path: Path) -> None:
    assert image_fault({"path": None, "bytes": b"hello"}) == "an image of 5 bytes: it is no image that Pillow can read"
    assert image_fault({"path": f"{tmp_path}/a.png", "bytes": None}) == f"{tmp_path}/a.png: there is no such file"
    assert "neither a path nor bytes" in str(image_fault({"path": None, "bytes": None}))
    floats = Image.fromarray(np.zeros((2, 2), dtype=np.float32))
    assert "floats without a known range" in str(image_fault(value(floats, "TIFF")))


def test_a_timm_base_refuses_settings_that_its_transforms_do_not_have() -> None:
    with pytest.raises(InputError, match=r"^processor\.size = 64: .* timm base is fixed"):
        image_settings({"size": 64}, base_config={"pretrained_cfg": {}})
    assert image_settings({}, base_config={"pretrained_cfg": {}}) == {}


def test_a_size_that_a_vit_cannot_read_is_refused_before_training() -> None:
    config = {"model_type": "vit", "image_size": 224}
    with pytest.raises(InputError, match=r"^processor\.size = 384: this vit reads images of 224 x 224 pixels"):
        image_settings({"size": 384}, base_config=config)
    assert image_settings({"size": {"height": 224, "width": 224}}, base_config=config)
    assert image_settings({"size": 384}, base_config={"model_type": "resnet"})


def test_the_processor_of_the_base_does_the_resizing_as_the_recipe_says() -> None:
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    assert processed(halves(), processor, {})["pixel_values"].shape == (3, 16, 16)
    smaller = processed(halves(), processor, {"size": 8, "image_mean": [0.0] * 3, "image_std": [1.0] * 3})
    assert smaller["pixel_values"].shape == (3, 8, 8)
    assert smaller["pixel_values"][:, 4, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])
