"""An adapter of every family trains alone, holds nothing of the base, and answers the same wherever it is loaded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from lora_ft.adapters.attach import attach, trainable_report
from lora_ft.adapters.card import model_card
from lora_ft.adapters.convolutions import show_geometry
from lora_ft.adapters.folder import attach_saved, write_adapter
from lora_ft.adapters.manifest import BaseIdentity, Manifest
from lora_ft.adapters.probe import check_probe, make_probe
from lora_ft.adapters.verify import verify_files
from lora_ft.errors import AdapterRefused
from lora_ft.models.load import load_base, load_processor
from lora_ft.models.precision import plan_precision
from lora_ft.models.resolve import BaseFolder
from tests.families import FAMILIES, LABELS, Family, loss, values

ALL = pytest.mark.parametrize("name", FAMILIES)
LORA = {"peft_type": "LORA", "r": 4, "init_lora_weights": True}


def load(family: Family, folder: Path, *, seed: int = 1, **changes: Any) -> Any:
    """The base for a family's task, frozen."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "auto_class": family.auto_class, "head": family.known, "config": family.config, "quantization_config": None,
        "precision": plan_precision(device="cpu", dtype="float32"), "dropout": 0.0, "attn_implementation": None,
        "dtype": None, "trust_remote_code": False,
    }  # fmt: skip
    return load_base(BaseFolder(str(folder), None, folder), **{**arguments, **changes})


def train(model: Any, family: Family, *, steps: int = 2) -> None:
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    model.train()
    for _ in range(steps):
        loss(model, family.batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def adapt(family: Family, folder: Path, config: Any = None, *, steps: int = 2, **changes: Any) -> Any:
    """A trained adapter."""
    base = load(family, folder, **changes)
    model = attach(base.model, config or LORA, task_type=family.task_type, head=base.head)
    train(model, family, steps=steps)
    return model


def write(target: Path, model: Any, family: Family, folder: Path, *, quantization: str | None = None) -> Manifest:
    """Its folder."""
    manifest = Manifest(
        task="a-task", problem_type="a-problem", labels=LABELS if "num_labels" in family.config else (),
        base=BaseIdentity(str(folder), None, {}, 1, 1), head=family.head, new_head=family.new_head,
        peft_type=model.peft_config["default"].peft_type.value, versions={}, seed=0, metrics={}, learned=None,
        settings={}, precision="float32", quantization=quantization, created="", run={},
        probe=make_probe(model, family.batch(), forward=values, precision="float32", quantization=quantization),
    )  # fmt: skip
    return write_adapter(
        target,
        model=model,
        processor=load_processor(folder, classes=family.processors, trust_remote_code=False),
        recipe_yaml="",
        manifest=manifest,
        metrics={},
        card=model_card(manifest, auto_class=family.auto_class, config=family.config),
        overwrite=False,
    )


def answers(model: Any, family: Family) -> torch.Tensor:
    with torch.no_grad():
        return values(model.eval(), family.batch())


def same(now: torch.Tensor, then: torch.Tensor) -> None:
    """Equal but for the order of additions: convolutions may add up otherwise where memory lies otherwise."""
    torch.testing.assert_close(now, then, rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Trained:
    """An adapter with default targets: trained for two steps, written, and which of its tensors moved."""

    model: Any
    moved: frozenset[str]
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def trained(family_bases: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """The adapter of a family, made once for the tests of this file."""

    @functools.cache
    def make(name: str) -> Trained:
        family, target = FAMILIES[name], tmp_path_factory.mktemp(name) / "adapter"
        model = adapt(family, family_bases(family), steps=0)
        before = {key: one.detach().clone() for key, one in model.state_dict(keep_vars=True).items()}
        train(model, family)
        after = model.state_dict(keep_vars=True)
        moved = frozenset(key for key, one in after.items() if not torch.equal(one, before[key]))
        return Trained(model, moved, target, write(target, model, family, family_bases(family)))

    return make


@ALL
def test_default_targets_are_linear_layers_or_else_convolutions(name, trained):
    family = FAMILIES[name]
    assert trainable_report(trained(name).model).modules == (family.linears or family.convolutions)


@ALL
def test_only_adapter_and_head_move_and_every_one_of_them_does(name, trained):
    model, moved = trained(name).model, trained(name).moved
    assert moved == {name for name, one in model.named_parameters(remove_duplicate=False) if one.requires_grad}
    assert all("lora_" in name or ".modules_to_save." in name for name in moved)


@ALL
def test_a_saved_adapter_answers_the_same_in_lora_ft_and_in_plain_peft(name, trained, family_bases):
    family, made = FAMILIES[name], trained(name)
    folder, then = family_bases(family), answers(made.model, family)
    assert verify_files(made.folder) == made.manifest
    ours = attach_saved(load(family, folder, seed=8).model, made.folder, made.manifest)
    same(answers(ours, family), then)
    assert check_probe(ours, made.manifest.probe, forward=values, precision="float32", quantization=None) < 1e-5
    plain = peft.PeftModel.from_pretrained(load(family, folder, seed=9).model, made.folder)
    show_geometry(plain)  # MobileNet asks for it, see the model card
    same(answers(plain, family), then)


@ALL
def test_an_adapter_holds_no_weight_of_the_base(name, trained):
    model, folder = trained(name).model, trained(name).folder
    saved = load_file(folder / "adapter_model.safetensors")
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    buffers = sum(one.numel() for key, one in model.named_buffers() if ".modules_to_save." in key)
    assert sum(one.numel() for one in saved.values()) == trainable + buffers
    base = model.get_base_model()
    if base.main_input_name == "input_ids":
        words = base.get_input_embeddings().num_embeddings
        assert not [key for key, one in saved.items() if words in one.shape]
    assert not list(folder.glob("model*")) and not (folder / "config.json").exists()


@ALL
def test_the_processor_comes_back_from_the_adapter_folder(name, trained, family_bases):
    places = (family_bases(FAMILIES[name]), trained(name).folder)
    there, here = (
        load_processor(place, classes=FAMILIES[name].processors, trust_remote_code=False) for place in places
    )
    assert type(there) is type(here)
    assert repr(there).replace(str(places[0]), "") == repr(here).replace(str(places[1]), "")


@pytest.mark.parametrize("name", ["t5-text2text", "vit-images", "detr-boxes", "whisper-speech", "wav2vec2-ctc"])
def test_an_adapter_of_a_quantised_base_comes_back(name, family_bases, tmp_path):
    family = FAMILIES[name]
    folder = family_bases(family)
    quantized = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    model = adapt(family, folder, **quantized)
    manifest = write(tmp_path / "adapter", model, family, folder, quantization="nf4")
    ours = attach_saved(load(family, folder, seed=8, **quantized).model, tmp_path / "adapter", manifest)
    assert check_probe(ours, manifest.probe, forward=values, precision="float32", quantization="nf4") < 1e-4


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.convolutions])
def test_all_conv_adapts_every_convolution_that_can_be(name, family_bases, tmp_path):
    family = FAMILIES[name]
    folder = family_bases(family)
    model = adapt(family, folder, {**LORA, "target_modules": "all-conv"})
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == family.convolutions
    assert all(isinstance(layer.get_base_layer(), (torch.nn.Conv1d, torch.nn.Conv2d)) for layer in layers)
    then = answers(model, family)
    manifest = write(tmp_path / "adapter", model, family, folder)
    ours = attach_saved(load(family, folder, seed=8).model, tmp_path / "adapter", manifest)
    same(answers(ours, family), then)


def test_the_probe_of_images_is_small_and_the_same_at_every_load(trained, family_bases):
    family, made = FAMILIES["vit-images"], trained("vit-images")
    assert made.manifest.probe.inputs == {"pixel_values": {"random_normal": {"shape": [4, 3, 32, 32], "seed": 1}}}
    assert (made.folder / "manifest.json").stat().st_size < 20_000
    other = {"pixel_values": {"random_normal": {"shape": [4, 3, 32, 32], "seed": 2}}}
    ours = attach_saved(load(family, family_bases(family), seed=8).model, made.folder, made.manifest)
    probe = dataclasses.replace(made.manifest.probe, inputs=other)
    with pytest.raises(AdapterRefused, match="probe: logits differ"):
        check_probe(ours, probe, forward=values, precision="float32", quantization=None)
