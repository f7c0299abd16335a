"""Every PEFT method that suits sequence classification trains, is saved and comes back, in plain peft too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from lora_ft.adapters.attach import attach, trainable_report
from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.method import UNFIT
from lora_ft.adapters.probe import check_probe
from lora_ft.adapters.targets import head_wrappers
from lora_ft.adapters.verify import verify_files
from lora_ft.errors import InputError
from tests.adapters.build import HEADS, batch, forward, load, logits, train, write

LINEAR = {"target_modules": "all-linear"}
SUITED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 20, "tinit": 2, "tfinal": 2, **LINEAR},
    "ADAMSS": LINEAR,
    "BEFT": {},
    "BOFT": {"boft_block_size": 4, **LINEAR},
    "C3A": {"block_size": 16, **LINEAR},
    "DEFT": LINEAR,
    "DELORA": LINEAR,
    "FOURIERFT": {"n_frequency": 20, **LINEAR},
    "FROD": {"progressbar": False, **LINEAR},
    "GLORA": LINEAR,
    "GRALORA": {"r": 8, **LINEAR},
    "HIRA": LINEAR,
    "HRA": LINEAR,
    "IA3": LINEAR,
    "LILY": LINEAR,
    "LN_TUNING": {},
    "LOHA": LINEAR,
    "LOKR": LINEAR,
    "LORA": LINEAR,
    "MISS": {"r": 8, **LINEAR},
    "OFT": {"oft_block_size": 4, "r": 0, **LINEAR},
    "OSF": LINEAR,
    "PEANUT": LINEAR,
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": LINEAR,
    "PVERA": LINEAR,
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 32},
    "RANDLORA": LINEAR,
    "ROAD": {"group_size": 16, **LINEAR},
    "SHIRA": {"r": 4, **LINEAR},
    "SUPERTUNING": LINEAR,
    "TINYLORA": LINEAR,
    "UNILORA": LINEAR,
    "VBLORA": {"vector_length": 16, "num_vectors": 8, **LINEAR},
    "VERA": LINEAR,
    "WAVEFT": {"n_frequency": 20, **LINEAR},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA fast, rsLoRA, patterns": {
        "init_lora_weights": "pissa_niter_4",
        "use_rslora": True,
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"value": 5},
    },
    "OLoRA": {"init_lora_weights": "olora"},
    "OLoRA with DoRA": {"init_lora_weights": "olora", "use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "MiCA": {"init_lora_weights": "mica"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "biases": {"bias": "lora_only"},
}
CASES = [pytest.param({"peft_type": name, **config}, id=name) for name, config in SUITED.items()] + [
    pytest.param({"peft_type": "LORA", "r": 4, **LINEAR, **config}, id=name) for name, config in VARIANTS.items()
]
NOT_FOR_CLASSIFICATION = {*UNFIT, "CPT", "TRAINABLE_TOKENS"}


@pytest.mark.parametrize("config", CASES)
def test_method_trains_alone_and_comes_back_with_equal_logits(config, tiny_bert, tmp_path):
    model = attach(load(tiny_bert), config, task_type="SEQ_CLS", head=HEADS["bert"])
    report = trainable_report(model)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    train(model, steps=3)
    frozen = [name for name, one in model.named_parameters() if not one.requires_grad]
    assert all(torch.equal(before[name], model.get_parameter(name)) for name in frozen)
    assert len(head_wrappers(model)) == 2 and report.head == 33 * 32 + 33 * 3 and report.adapter > 0
    unmoved = [
        name
        for name, one in model.named_parameters()
        if one.requires_grad and torch.equal(before[name], one) and "glora_D" not in name  # scales biases, here 0
    ]
    assert not unmoved

    manifest = write(tmp_path / "adapter", model, tiny_bert)
    assert verify_files(tmp_path / "adapter") == manifest
    ours = attach_saved(load(tiny_bert, seed=8), tmp_path / "adapter", manifest)
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=2e-5)
    check_probe(ours, manifest.probe, forward=forward, precision="float32", quantization=None)
    plain = peft.PeftModel.from_pretrained(load(tiny_bert, seed=8), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(NOT_FOR_CLASSIFICATION))
def test_method_that_does_not_suit_is_refused_at_once(name, tiny_bert):
    with pytest.raises(InputError, match=name):
        attach(load(tiny_bert), {"peft_type": name}, task_type="SEQ_CLS", head=HEADS["bert"])


def test_every_method_of_peft_is_either_tried_or_refused():
    known = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known == set(SUITED) | NOT_FOR_CLASSIFICATION


def test_every_method_is_in_the_table_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    for name in (*SUITED, *NOT_FOR_CLASSIFICATION):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_changes_the_base_in_memory_is_saved_for_the_original_base(tiny_bert, tmp_path, start):
    config = {"peft_type": "LORA", "r": 4, **LINEAR, "init_lora_weights": start}
    model = attach(load(tiny_bert), config, task_type="SEQ_CLS", head=HEADS["bert"])
    train(model)
    manifest = write(tmp_path / "adapter", model, tiny_bert)
    again = peft.PeftModel.from_pretrained(load(tiny_bert, seed=8), tmp_path / "adapter")
    assert again.peft_config["default"].r == 8 and again.peft_config["default"].init_lora_weights is True
    with again.disable_adapter():  # the base itself is as it was, and so is its own head
        assert torch.equal(logits(again), logits(load(tiny_bert, seed=8)))
    bare = attach(load(tiny_bert), {"peft_type": "LORA", **LINEAR}, task_type="SEQ_CLS", head=HEADS["bert"])
    heads = {name: one for name, one in model.state_dict().items() if ".modules_to_save." in name}
    bare.load_state_dict(heads, strict=False)
    torch.testing.assert_close(torch.tensor(manifest.probe.bare_logits), logits(bare), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "gpt2", "llama"])
def test_adapters_of_other_families_come_back_too(bases, tmp_path, kind):
    config = {"peft_type": "LORA", "r": 2, **LINEAR, "init_lora_weights": "pissa", "use_dora": kind != "gpt2"}
    model = attach(load(bases[kind]), config, task_type="SEQ_CLS", head=HEADS[kind])
    train(model, steps=2)
    write(tmp_path / "adapter", model, bases[kind], head=HEADS[kind])
    verify_files(tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(load(bases[kind], seed=8), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=2e-5)


def test_adalora_comes_back_after_ranks_were_cut(tiny_bert, tmp_path):
    config = {
        "peft_type": "ADALORA",
        "init_r": 6,
        "target_r": 2,
        "tinit": 1,
        "tfinal": 1,
        "deltaT": 1,
        **LINEAR,
    }
    model = attach(load(tiny_bert), config, task_type="SEQ_CLS", head=HEADS["bert"], total_steps=6)
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for step in range(6):
        model(**batch(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    manifest = write(tmp_path / "adapter", model, tiny_bert)
    verify_files(tmp_path / "adapter")
    ours = attach_saved(load(tiny_bert, seed=8), tmp_path / "adapter", manifest)
    plain = peft.PeftModel.from_pretrained(load(tiny_bert, seed=8), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=2e-5)
