"""The model card says what the adapter is, in YAML that the hub reads and code that runs."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
import torch
from ruamel.yaml import YAML

from lora_ft.adapters.card import model_card
from lora_ft.adapters.verify import verify_files
from tests.adapters.build import batch, logits
from tests.adapters.test_families import adapt, answers, same, write
from tests.adapters.test_manifest import MANIFEST
from tests.families import FAMILIES


def front_matter(card: str) -> dict:
    return YAML(typ="safe").load(io.StringIO(card.split("---\n")[1]))


def test_front_matter_is_what_the_hub_reads_without_a_licence():
    assert front_matter(model_card(MANIFEST)) == {
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora_ft", "lora"],
    }


def test_a_base_in_a_folder_is_no_hub_name():
    local = dataclasses.replace(MANIFEST, base=dataclasses.replace(MANIFEST.base, name="/data/bases/mine"))
    assert "base_model" not in front_matter(model_card(local))


def test_card_says_that_texts_were_prepared():
    assert "prepared texts" not in model_card(MANIFEST)
    card = model_card(dataclasses.replace(MANIFEST, preparation={"strip_html": True, "lowercase": True}))
    assert "- It was trained on prepared texts: `strip_html`, `lowercase`, in this order." in card


def test_card_holds_command_data_numbers_labels_and_limits():
    run = {
        "command": "lora-ft train shop.yaml",
        "rows": {"train": 640, "test": 80},
        "truncated": {"train": 3},
        "baseline": {"test": {"f1": 0.25}},
        "seconds": 61.4,
    }
    card = model_card(dataclasses.replace(MANIFEST, run=run))
    for part in (
        "lora-ft train shop.yaml",
        "- train: 640 rows, cut to the maximum length 3 times",
        "- test: 80 rows\n",
        "| test | f1 | 0.3000 | 0.2500 |",
        "`schlecht`, `gut`, `好`",
        "trained on the base in nf4",
        "Inputs are cut to 64 tokens",
        "61 s",
    ):
        assert part in card, part


def test_a_run_that_did_not_learn_says_so():
    assert "did not learn" in model_card(dataclasses.replace(MANIFEST, learned=False))
    assert "did not learn" not in model_card(MANIFEST)


def test_the_code_of_the_card_loads_the_adapter(written, lora, tiny_bert):
    manifest = verify_files(written)
    code = re.search(r"```python\n(.*?)```", (written / "README.md").read_text(), re.DOTALL).group(1)
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(written)), names)
    assert torch.equal(logits(names["model"]), logits(lora))
    assert len(names["tokenizer"]) > 60 and batch()["input_ids"].max() < 70
    assert manifest.labels == ("bad", "fair", "good")


@pytest.mark.parametrize(
    ("name", "reader", "word"),
    [
        ("mobilenet-images", "image_processor", "photo.jpg"),
        ("timm-images", "image_processor", "photo.jpg"),
        ("rt_detr-boxes", "image_processor", "photo.jpg"),
        ("wav2vec2-ctc", "processor", "sound.wav"),
        ("ast-sounds", "processor", "sound.wav"),
        ("whisper-speech", "processor", "sound.wav"),
        ("t5-text2text", "tokenizer", "a text"),
    ],
)
def test_the_code_of_a_card_loads_an_adapter_of_any_kind(family_bases, tmp_path, name, reader, word):
    family = FAMILIES[name]
    folder = family_bases(family)
    model = adapt(family, folder)
    write(tmp_path / "adapter", model, family, folder)
    card = (tmp_path / "adapter" / "README.md").read_text()
    names: dict = {}
    exec(
        re.search(r"```python\n(.*?)```", card, re.DOTALL)
        .group(1)
        .replace("path/to/this/folder", str(tmp_path / "adapter")),
        names,
    )
    same(answers(names["model"], family), answers(model, family))
    assert callable(names[reader])
    assert f'lora-ft predict path/to/this/folder "{word}"' in card
    assert ("Output i of the head" in card) == ("num_labels" in family.config)
