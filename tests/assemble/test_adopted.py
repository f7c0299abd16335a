"""An adapter that plain peft saved becomes one of ours, and answers bit for bit as plain peft does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.assemble.adopted import measure, open_foreign, write_adopted
from lora_ft.assemble.adoption import Wishes, plan_adoption
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import AdapterRefused, ModelError
from lora_ft.recipe.reader import read_document
from tests.bases import IMAGE_SIZE, make_base
from tests.plain_peft import edit_config, edit_tensors, load_plain, save_plain
from tests.toy import GOOD

Bases = Callable[[str], Path]
HEAD = {"task_type": None, "modules_to_save": ["classifier"]}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text LoRA": ("bert", "text-classification", {}),
    "text DoRA": ("bert", "text-classification", {"use_dora": True}),
    "text rsLoRA": ("bert", "text-classification", {"use_rslora": True}),
    "text ranks by pattern": (
        "bert", "text-classification", {"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3}},
    ),
    "text without task type": ("bert", "text-classification", HEAD),
    "text roberta": ("roberta", "text-classification", {}),
    "text distilbert": ("distilbert", "text-classification", {"target_modules": ["q_lin"]}),
    "text gpt2": ("gpt2", "text-classification", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "text IA3": ("bert", "text-classification", {"method": "IA3Config", "feedforward_modules": []}),
    "text VeRA": ("bert", "text-classification", {"method": "VeraConfig", "r": 4}),
    "tokens LoRA": ("bert", "token-classification", {}),
    "tokens DoRA": ("bert", "token-classification", {"use_dora": True}),
    "causal LoRA": ("gpt2", "text-generation", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "causal DoRA": ("llama", "text-generation", {"target_modules": "all-linear", "use_dora": True}),
    "causal rsLoRA": ("llama", "text-generation", {"target_modules": ["q_proj"], "use_rslora": True}),
    "causal single tokens": (
        "llama", "text-generation", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
    ),
    "image LoRA": ("vit", "image-classification", {**HEAD, "target_modules": r".*(q_proj|v_proj|query|value)"}),
    "image DoRA": ("vit", "image-classification", {**HEAD, "target_modules": "all-linear", "use_dora": True}),
    "image convolutions": ("resnet", "image-classification", {**HEAD, "target_modules": r".*\.convolution"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    made: dict[str, Path] = {}

    def base_of(kind: str) -> Path:
        if kind not in made:
            auto_class = "AutoModelForCausalLM" if kind in ("gpt2", "llama") else None
            made[kind] = make_base(tmp_path_factory.mktemp("adopt") / kind, kind, auto_class=auto_class)
        return made[kind]

    return base_of


def adopt(folder: Path, target: Path, base: Path, task: str = "text-classification", **wishes: Any) -> Path:
    """Adopts on the CPU, offline."""
    plan = plan_adoption(folder, Wishes(base=str(base), task=task, offline=True, **wishes))
    write_adopted(target, open_foreign(plan, device="cpu", cache_dir=None), plan, measured=None, overwrite=False)
    return target


def logits_of(model: Any, task: str) -> torch.Tensor:
    """The answers to a fixed batch."""
    generator = torch.Generator().manual_seed(3)
    if task == "image-classification":
        batch = {"pixel_values": torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
    else:
        batch = {"input_ids": torch.randint(5, 60, (1, 12), generator=generator)}
    with torch.no_grad():
        return model(**batch).logits


def digests(folder: Path) -> dict[str, str]:
    """What lies in a folder."""
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_an_adopted_adapter_answers_bit_for_bit_as_with_plain_peft(case: str, bases: Bases, tmp_path: Path) -> None:
    kind, task, config = CASES[case]
    labels = None if task == "text-generation" else 3
    plain = save_plain(tmp_path / "plain", bases(kind), task, labels=labels, **config)
    before = digests(plain)
    expected = logits_of(load_plain(plain, bases(kind), task, labels=labels), task)
    ours = adopt(plain, tmp_path / "ours", bases(kind), task)
    opened = open_adapter(ours, OpenOptions(offline=True, device="cpu"))
    assert torch.equal(logits_of(opened.model, task), expected)
    again = logits_of(load_plain(ours, bases(kind), task, labels=labels), task)
    assert torch.equal(again, expected)
    assert digests(plain) == before
    with opened.model.disable_adapter():
        assert not torch.equal(logits_of(opened.model, task), expected)


OLD_FIELDS = ("auto_mapping", "peft_version", "alpha_pattern", "rank_pattern", "use_dora", "use_rslora", "eva_config",
              "exclude_modules", "lora_bias", "corda_config", "loftq_config", "megatron_config", "megatron_core",
              "layers_pattern", "layers_to_transform", "trainable_token_indices", "target_parameters", "revision",
              "alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "kasa_config", "layer_replication",
              "lora_ga_config", "monteclora_config", "qalora_group_size", "use_qalora", "use_bdlora",
              "velora_config")  # fmt: skip


def test_an_adapter_as_peft_0_2_wrote_it_is_adopted(bases: Bases, tmp_path: Path) -> None:
    """Source: adapter_config.json of peft 0.2 and 0.3: enable_lora and merge_weights, modules_to_save null."""
    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    expected = logits_of(load_plain(plain, bases("bert"), "text-classification"), "text-classification")
    old = {"enable_lora": None, "merge_weights": False, "modules_to_save": None}
    edit_config(plain, old, drop=OLD_FIELDS)
    assert len(json.loads((plain / "adapter_config.json").read_text(encoding="utf-8"))) == 14
    ours = adopt(plain, tmp_path / "ours", bases("bert"))
    opened = open_adapter(ours, OpenOptions(offline=True, device="cpu"))
    assert torch.equal(logits_of(opened.model, "text-classification"), expected)
    assert opened.manifest.run["adopted"]["peft_version"] is None


def test_what_nobody_knows_is_recorded_as_unknown(bases: Bases, tmp_path: Path) -> None:
    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    ours = adopt(plain, tmp_path / "ours", bases("bert"), labels=("a", "b", "c"))
    manifest = open_adapter(ours, OpenOptions(offline=True)).manifest
    assert (manifest.metrics, manifest.learned, manifest.run["steps"]) == ({}, None, None)
    assert {"training data", "training seed", "metrics"} <= set(manifest.run["adopted"]["unknown"])
    assert manifest.labels == ("a", "b", "c")
    card = (ours / "README.md").read_text(encoding="utf-8")
    assert "**Adopted**" in card
    assert "Unknown: it was not measured" in card
    assert "seed 0" not in card
    recipe = read_document(ours / "recipe.yaml").value
    assert recipe["peft_config"] == {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    assert "training_args" not in recipe
    assert (ours / "recipe.yaml").read_text(encoding="utf-8").startswith("# Adopted from plain peft")


def test_metrics_are_those_of_the_given_rows(bases: Bases, tmp_path: Path) -> None:
    import datasets

    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    plan = plan_adoption(
        plain, Wishes(base=str(bases("bert")), task="text-classification", labels=("a", "b", "c"), offline=True)
    )
    opened = open_foreign(plan, device="cpu", cache_dir=None)
    texts = [f"the book is {word}" for word in GOOD]
    answers = [one["label"] for one in opened.predict(datasets.Dataset.from_dict({"text": texts}), batch_size=4)]
    wrong = {"a": "b", "b": "c", "c": "a"}
    labels = [answers[0], *(wrong[one] for one in answers[1:])]
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{t},{one}\n" for t, one in zip(texts, labels, strict=True)))
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    measured = measure(opened, rows, file=file, batch_size=4)
    assert measured.metrics["accuracy"] == pytest.approx(0.1)
    manifest = write_adopted(tmp_path / "ours", opened, plan, measured=measured, overwrite=False)
    assert manifest.metrics["data"]["accuracy"] == pytest.approx(0.1)
    assert manifest.run["rows"] == {"data": 10}
    assert "metrics" not in manifest.run["adopted"]["unknown"]
    assert manifest.run["adopted"]["data"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_head_that_is_only_half_there_is_refused(tmp_path: Path) -> None:
    """A BERT of masked language modelling has no pooler: peft saves the classifier alone and draws that anew."""
    base = make_base(tmp_path / "mlm", auto_class="AutoModelForMaskedLM")
    plain = save_plain(tmp_path / "plain", base, "text-classification")
    with pytest.raises(AdapterRefused, match="no tensor of pooler") as error:
        adopt(plain, tmp_path / "ours", base)
    assert "['classifier', 'pooler']" in str(error.value)
    assert not (tmp_path / "ours").exists()
    whole = save_plain(tmp_path / "whole", base, "text-classification", modules_to_save=["classifier", "pooler"])
    opened = open_adapter(adopt(whole, tmp_path / "ours", base), OpenOptions(offline=True, device="cpu"))
    expected = logits_of(load_plain(whole, base, "text-classification"), "text-classification")
    assert torch.equal(logits_of(opened.model, "text-classification"), expected)


def test_an_adapter_on_a_base_with_its_own_head_is_adopted_with_its_labels(bases: Bases, tmp_path: Path) -> None:
    base = tmp_path / "finetuned"
    shutil.copytree(bases("bert"), base)
    from tests.plain_peft import plain_base

    model = plain_base(base, "text-classification", labels=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model.save_pretrained(base)
    plain = save_plain(tmp_path / "plain", base, "text-classification", task_type=None)
    expected = logits_of(load_plain(plain, base, "text-classification"), "text-classification")
    ours = adopt(plain, tmp_path / "ours", base)
    opened = open_adapter(ours, OpenOptions(offline=True, device="cpu"))
    assert opened.manifest.labels == ("bad", "fair", "good")
    assert opened.manifest.head == ()
    assert torch.equal(logits_of(opened.model, "text-classification"), expected)


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused(bases: Bases, tmp_path: Path) -> None:
    import transformers

    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bases("bert"))
    tokenizer.add_tokens(["brandnew"])
    tokenizer.save_pretrained(plain)
    with pytest.raises(AdapterRefused, match=r"its tokenizer has .* tokens were added"):
        adopt(plain, tmp_path / "ours", bases("bert"))


def test_the_tokenizer_beside_the_adapter_comes_first(bases: Bases, tmp_path: Path) -> None:
    import transformers

    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bases("bert"))
    tokenizer.model_max_length = 17
    tokenizer.save_pretrained(plain)
    opened = open_adapter(adopt(plain, tmp_path / "ours", bases("bert")), OpenOptions(offline=True))
    assert opened.processor.model_max_length == 17


def test_a_head_without_effect_of_the_adapter_is_found_by_the_probe(bases: Bases, tmp_path: Path) -> None:
    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")

    def no_a(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: one * 0 if "lora_A" in name else one for name, one in tensors.items()}

    edit_tensors(plain, no_a)
    with pytest.raises(AdapterRefused, match="HAS NO EFFECT"):
        adopt(plain, tmp_path / "ours", bases("bert"))
    adopt(plain, tmp_path / "ours", bases("bert"), untrained=True)


def test_another_base_of_the_same_shape_is_said_and_recorded(bases: Bases, tmp_path: Path) -> None:
    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    other = make_base(tmp_path / "other", seed=7)
    plan = plan_adoption(plain, Wishes(base=str(other), task="text-classification", offline=True))
    assert any("no proof" in note for note in plan.notes)
    ours = adopt(plain, tmp_path / "ours", other)
    said = open_adapter(ours, OpenOptions(offline=True)).manifest.run["adopted"]
    assert said["base_model_name_or_path"] == str(bases("bert"))
    with pytest.raises(AdapterRefused, match="adopted on"):
        open_adapter(ours, OpenOptions(offline=True, base=str(bases("bert"))))


def test_a_base_that_is_not_there_is_a_model_error(bases: Bases, tmp_path: Path) -> None:
    plain = save_plain(tmp_path / "plain", bases("bert"), "text-classification")
    with pytest.raises(ModelError):
        adopt(plain, tmp_path / "ours", tmp_path / "absent")
