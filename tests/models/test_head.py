"""The head is what trains in full: never what shares weights with the base, nothing random is left outside of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lora_ft.errors import ModelError
from lora_ft.models.head import Head, find_head
from lora_ft.models.pretrained import build_skeleton, find_label_modules
from lora_ft.models.resolve import BaseFolder
from tests.bases import make_base
from tests.models.loading import LABELS, load


class Tiny(nn.Module):
    """A base proper of two layers, a head outside, and output embeddings tied to the input."""

    base_model_prefix = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"words": nn.Embedding(7, 4), "dense": nn.Linear(4, 4), "score": nn.Linear(4, 4)})
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.lm = nn.ModuleDict({"transform": nn.Linear(4, 4), "decoder": nn.Linear(4, 7, bias=False)})
        self.lm["decoder"].weight = self.encoder["words"].weight
        self.scale = nn.Parameter(torch.ones(3))
        self.noise = nn.Parameter(torch.randn(3))

    @property
    def base_model(self) -> nn.Module:
        return self.encoder

    def get_output_embeddings(self) -> nn.Module:
        return self.lm["decoder"]


def found(*fresh: str, known: tuple[str, ...] = (), labelled: tuple[str, ...] = ()) -> Head:
    return find_head(Tiny(), known=known, fresh=fresh, base="tiny", labelled=lambda: set(labelled))


def test_a_base_with_all_its_weights_has_no_head_unless_the_task_names_one():
    assert found() == Head((), frozenset(), new=False)
    assert found(known=("dense",)) == Head(("dense",), frozenset({"encoder.dense"}), new=False)


def test_a_list_of_modules_is_its_members_by_their_full_names():
    assert found("heads.0.weight", known=("heads",)).names == ("heads.0", "heads.1")
    assert found("heads.1.weight").names == ("heads.1",)
    assert found("heads.1.weight").new


def test_a_short_name_is_used_only_where_no_other_module_ends_with_it():
    model = Tiny()
    model.score = nn.Linear(4, 2)
    head = find_head(model, known=("encoder.score",), fresh=[], base="tiny", labelled=set)
    assert head.names == ("encoder.score",)


def test_what_shares_its_weights_with_the_base_is_never_part_of_the_head():
    assert found("lm.transform.weight", "lm.transform.bias").names == ("transform",)
    assert found(known=("lm",)).modules == {"lm.transform"}


def test_fresh_parameters_that_are_the_same_at_every_load_need_no_head():
    assert found("scale") == Head((), frozenset(), new=False)


def test_fresh_parameters_that_would_be_random_at_every_load_are_refused():
    with pytest.raises(ModelError, match=r"'tiny': it has no weights for noise, which no adapter can save"):
        found("noise")


def test_modules_that_follow_the_labels_are_the_head_where_no_name_fits():
    head = found("encoder.score.weight", known=("classifier",), labelled=("encoder.score",))
    assert head == Head(("score",), frozenset({"encoder.score"}), new=True)
    assert not found(known=("classifier",), labelled=("encoder.score",)).new


def test_a_model_that_is_its_own_base_proper_has_its_new_modules_as_head():
    class Whole(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(4, 3)

        @property
        def base_model(self) -> nn.Module:
            return self

    fresh = ["classifier.weight", "classifier.bias"]
    head = find_head(Whole(), known=(), fresh=fresh, base="whole", labelled=set)
    assert head == Head(("classifier",), frozenset({"classifier"}), new=True)


def test_a_base_that_lacks_a_part_of_a_layer_is_refused():
    with pytest.raises(ModelError, match=r"1 of 5 weights of the base are missing .*: dense.weight"):
        found("encoder.dense.weight", known=("classifier",), labelled=("encoder.score",))


@pytest.mark.parametrize(
    ("architecture", "classifier"),
    [
        ("vgg11", "head.fc"),
        ("resnet18", "fc"),
        ("vit_tiny_patch16_224", "head"),
        ("mobilenetv3_small_050", "classifier"),
    ],
)
def test_the_classifier_of_any_timm_model_is_found(architecture, classifier):
    config = transformers.TimmWrapperConfig(architecture=architecture)
    config.num_labels = 5
    settings = {"auto_class": "AutoModelForImageClassification", "config": config, "trust_remote_code": False}
    base = BaseFolder("timm", None, Path())
    names = find_label_modules(base, **settings)
    assert names == {f"timm_model.{classifier}"}
    head = find_head(
        build_skeleton(base, **settings),
        known=("no_such_name",),
        fresh=[f"timm_model.{classifier}.weight"],
        base="timm",
        labelled=lambda: names,
    )
    assert head == Head((classifier.rpartition(".")[2],), frozenset(names), new=True)


def without(folder: Path, key: str, target: Path) -> Path:
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    del weights[key]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_speech_base_without_its_mask_vector_loads(tmp_path):
    base = make_base(tmp_path / "whole", "wav2vec2")
    lacking = without(base, "masked_spec_embed", tmp_path / "lacking")
    known = ("projector", "classifier")
    loaded = load(lacking, auto_class="AutoModelForAudioClassification", head=known)
    assert loaded.head == ("classifier", "projector")


def test_a_weighted_sum_of_layers_that_the_base_does_not_have_is_refused(tmp_path):
    base = make_base(tmp_path, "wav2vec2")
    fields = {**LABELS, "use_weighted_layer_sum": True}  # transformers 5.23 leaves the weights of the sum uninitialised
    with pytest.raises(ModelError, match="it has no weights for layer_weights"):
        load(base, auto_class="AutoModelForAudioClassification", head=("projector", "classifier"), config=fields)


def test_a_detector_with_other_classes_gets_new_classifiers_and_keeps_its_boxes(tmp_path):
    base = make_base(tmp_path, "rt_detr")
    stored = load_file(base / "model.safetensors")
    known = ("class_embed", "bbox_embed")
    loaded = load(base, auto_class="AutoModelForObjectDetection", head=known)
    assert loaded.new_head
    assert {"enc_score_head", "denoising_class_embed", "model.decoder.class_embed.0"} < set(loaded.head)
    name = "model.decoder.bbox_embed.0.layers.0.weight"
    assert torch.equal(loaded.model.get_parameter(name), stored[name])
