"""Every family that a task needs loads frozen, with its head and its processor, and stays as it is on the disk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lora_ft.models.load import Base, load_processor
from lora_ft.models.quantization import quantized_modules
from tests.bases import KINDS, make_base
from tests.families import FAMILIES, Family, loss, values
from tests.models.loading import load

ALL = pytest.mark.parametrize("name", FAMILIES)
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTISED = (
    "bert-tokens",
    "roberta-masked",
    "t5-text2text",
    "vit-images",
    "detr-boxes",
    "whisper-speech",
    "wav2vec2-ctc",
)
"""One of each way to have a head: the others differ in nothing that quantisation sees."""

READERS = {
    "AutoTokenizer": transformers.PreTrainedTokenizerBase,
    "AutoImageProcessor": transformers.BaseImageProcessor,
    "AutoFeatureExtractor": transformers.SequenceFeatureExtractor,
    "AutoProcessor": transformers.ProcessorMixin,
}


def load_family(family: Family, folder: Path, **changes: Any) -> Base:
    torch.manual_seed(1)
    settings = {"auto_class": family.auto_class, "head": family.known, "config": family.config}
    return load(folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def loaded(family_bases: Callable[[Family], Path]) -> Callable[[str], Base]:
    """The base of a family, loaded once for the tests of this file, which must not change its weights."""
    return functools.cache(lambda name: load_family(FAMILIES[name], family_bases(FAMILIES[name])))


def test_every_kind_of_base_is_in_the_table():
    assert {family.kind for family in FAMILIES.values()} == set(KINDS)


@ALL
def test_head_is_found_and_nothing_trains(name, loaded):
    family, base = FAMILIES[name], loaded(name)
    assert base.head == family.head
    assert base.new_head is family.new_head
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    with torch.no_grad():
        assert torch.isfinite(values(base.model.eval(), family.batch())).all()


@ALL
def test_training_mode_draws_nothing_and_writes_nothing_into_the_base(name, loaded):
    family, model = FAMILIES[name], loaded(name).model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first, second = (float(loss(model, family.batch())) for _ in range(2))
    if family.auto_class != "AutoModelForObjectDetection":  # RT-DETR draws noisy boxes for its loss
        assert first == second
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@ALL
def test_processor_is_the_first_that_the_folder_has(name, family_bases):
    family = FAMILIES[name]
    processor = load_processor(family_bases(family), classes=family.processors, trust_remote_code=False)
    expected = family.processors[-1] if family.kind == "hubert" else family.processors[0]
    assert isinstance(processor, READERS[expected])


@pytest.mark.parametrize("name", QUANTISED)
def test_linear_layers_are_quantised_and_heads_are_not(name, family_bases):
    family = FAMILIES[name]
    base = load_family(family, family_bases(family), quantization_config=NF4)
    quantised = quantized_modules(base.model)
    assert base.head == family.head and base.quantization == "nf4"
    outputs = base.model.get_output_embeddings()
    for module_name, module in base.model.named_modules():
        if module_name in quantised:
            assert module is not outputs
            assert not any(part in module_name.split(".") for part in family.head)
    assert len(quantised) > family.linears / 2  # not the lm_head, nor T5's wo, which transformers keeps in fp32
    assert torch.isfinite(loss(base.model.train(), family.batch()))


def test_whisper_keeps_its_generation_settings(tmp_path):
    folder = make_base(tmp_path, "whisper")
    family = FAMILIES["whisper-speech"]
    settings = load_family(family, folder).model.generation_config
    stored = transformers.GenerationConfig.from_pretrained(folder)
    assert settings.lang_to_id == stored.lang_to_id == {"<|en|>": 258, "<|zh|>": 259, "<|de|>": 260}
    assert settings.task_to_id == stored.task_to_id
    assert settings.decoder_start_token_id == 257
