"""A processor is loaded by the first auto class that the folder has the files of, and its absence is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

from lora_ft.errors import ModelError
from lora_ft.models.load import load_processor
from tests.bases import make_base

SPEECH = ("AutoProcessor", "AutoFeatureExtractor")


def read(folder: Path, *classes: str):
    return load_processor(folder, classes=classes, trust_remote_code=False)


@pytest.mark.parametrize(
    ("kind", "classes", "expected"),
    [
        ("hubert", SPEECH, "Wav2Vec2FeatureExtractor"),
        ("wav2vec2", SPEECH, "Wav2Vec2Processor"),
        ("wav2vec2", ("AutoFeatureExtractor",), "Wav2Vec2FeatureExtractor"),
        ("wav2vec2", ("AutoTokenizer",), "Wav2Vec2CTCTokenizer"),
        ("whisper", SPEECH, "WhisperProcessor"),
        ("ast", ("AutoFeatureExtractor",), "ASTFeatureExtractor"),
        ("vit", ("AutoImageProcessor",), "ViTImageProcessorPil"),
        ("rt_detr", ("AutoImageProcessor",), "RTDetrImageProcessorPil"),
        ("timm", ("AutoImageProcessor",), "TimmWrapperImageProcessor"),
    ],
)
def test_the_first_class_that_the_folder_supports(tmp_path, kind, classes, expected):
    assert type(read(make_base(tmp_path, kind), *classes)).__name__ == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("AutoImageProcessor",),
            r"no image processor. Expected preprocessor_config.json \(or processor_config.json\)",
        ),
        (SPEECH, r"no processor and no feature extractor. Expected preprocessor_config.json"),
        (("AutoProcessor",), r"no processor. Expected preprocessor_config.json .*, and one of tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(tiny_bert, classes, message):
    with pytest.raises(ModelError, match=message):
        read(tiny_bert, *classes)


def test_a_base_for_images_has_no_tokenizer(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer. Expected one of tokenizer.json"):
        read(make_base(tmp_path, "vit"), "AutoTokenizer")


def test_a_processor_that_transformers_does_not_know_is_an_error_of_ours(tmp_path):
    folder = make_base(tmp_path, "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "NoSuchImageProcessor"}))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"cannot read its image processor"):
        read(folder, "AutoImageProcessor")


def test_the_tokenizer_inside_a_processor_gets_a_token_to_pad_with(tmp_path):
    folder = make_base(tmp_path, "whisper")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read(folder, *SPEECH).tokenizer
    assert tokenizer.pad_token == "<|endoftext|>"


def test_images_are_processed_by_pil_and_timm_alike_after_a_round_trip(tmp_path):
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (50, 40, 3), dtype=np.uint8))
    base = make_base(tmp_path / "base", "timm")
    processor = read(base, "AutoImageProcessor")
    (tmp_path / "copy").mkdir()
    content = json.dumps(processor.to_dict())
    (tmp_path / "copy" / "preprocessor_config.json").write_text(content)
    again = read(tmp_path / "copy", "AutoImageProcessor")
    assert isinstance(again, transformers.TimmWrapperImageProcessor)
    one, other = (each(picture, return_tensors="pt")["pixel_values"] for each in (processor, again))
    assert one.shape == (1, 3, 32, 32)
    assert one.equal(other)


def test_an_older_feature_extractor_file_serves_as_an_image_processor(tmp_path):
    folder = make_base(tmp_path / "base", "vit")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_processor_type"]
    settings["feature_extractor_type"] = "ViTFeatureExtractor"
    copy = shutil.copytree(folder, tmp_path / "old")
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    assert type(read(copy, "AutoImageProcessor")).__name__ == "ViTImageProcessorPil"
