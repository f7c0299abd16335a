"""An adapter goes on the base and nowhere else, trains alone with the head, and is counted right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig

from lora_ft.adapters.attach import attach, trainable_report
from lora_ft.adapters.targets import head_wrappers, inside
from lora_ft.errors import InputError
from tests.adapters.build import HEADS, batch, load, logits, train

ALL_LINEAR = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}


def adapted(model: Any) -> list[str]:
    """Names of the modules with a LoRA pair."""
    return [
        name.removeprefix("base_model.model.").rpartition(".lora_A")[0]
        for name, _ in model.named_modules()
        if name.endswith("lora_A.default")
    ]


@pytest.mark.parametrize(
    ("kind", "modules"), [("bert", 12), ("distilbert", 12), ("roberta", 12), ("gpt2", 8), ("llama", 14)]
)
def test_all_linear_means_every_linear_module_but_the_head(bases, kind, modules):
    model = attach(load(bases[kind]), ALL_LINEAR, task_type="SEQ_CLS", head=HEADS[kind])
    names = adapted(model)
    assert len(names) == modules
    assert not any(inside(name, HEADS[kind]) for name in (*names, *model.peft_config["default"].target_modules))
    assert {name.rpartition(".")[2] for name in head_wrappers(model)} == set(HEADS[kind])


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_training_step_moves_adapter_and_head_only(bases, kind):
    model = attach(load(bases[kind]), ALL_LINEAR, task_type="SEQ_CLS", head=HEADS[kind])
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    train(model, steps=2)
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {name for name, one in model.named_parameters() if one.requires_grad}
    assert all("lora_" in name or ".modules_to_save." in name for name in moved)
    assert any("lora_B" in name for name in moved)


def test_explicit_targets_inside_the_head_are_left_to_the_head(bases):
    model = attach(
        load(bases["roberta"]),
        {**ALL_LINEAR, "target_modules": ["dense"]},
        task_type="SEQ_CLS",
        head=("classifier",),
    )
    assert len(adapted(model)) == 6
    assert not any("classifier" in name for name in adapted(model))


def test_all_linear_keeps_to_the_layers_asked_for(bases):
    model = attach(
        load(bases["bert"]),
        {**ALL_LINEAR, "layers_to_transform": [1]},
        task_type="SEQ_CLS",
        head=HEADS["bert"],
    )
    assert len(adapted(model)) == 6
    assert all(".layer.1." in name for name in adapted(model))


def test_rank_and_alpha_patterns_reach_their_modules(bases):
    model = attach(
        load(bases["bert"]),
        {**ALL_LINEAR, "rank_pattern": {"query": 2}, "alpha_pattern": {"key": 3}},
        task_type="SEQ_CLS",
        head=HEADS["bert"],
    )
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self")
    assert layer.query.r == {"default": 2}
    assert layer.key.lora_alpha == {"default": 3}


def test_the_recipe_is_never_changed(bases):
    config = {**ALL_LINEAR, "modules_to_save": ["LayerNorm"], "rank_pattern": {"query": 2}}
    attach(load(bases["bert"]), config, task_type="SEQ_CLS", head=HEADS["bert"])
    assert config == {**ALL_LINEAR, "modules_to_save": ["LayerNorm"], "rank_pattern": {"query": 2}}


def test_what_the_recipe_saves_comes_beside_the_head(bases):
    model = attach(
        load(bases["bert"]),
        {**ALL_LINEAR, "modules_to_save": ["LayerNorm"]},
        task_type="SEQ_CLS",
        head=HEADS["bert"],
    )
    assert model.peft_config["default"].modules_to_save == ["pooler", "classifier", "LayerNorm"]
    assert len(head_wrappers(model)) == 2 + 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_that_trains_is_fp32_on_a_16_bit_base(bases, dtype):
    model = attach(load(bases["bert"], dtype=dtype), ALL_LINEAR, task_type="SEQ_CLS", head=HEADS["bert"])
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
    assert {one.dtype for one in model.parameters() if not one.requires_grad} == {dtype}


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "orthogonal", True])
def test_a_new_adapter_changes_no_answer(bases, start):
    model = attach(
        load(bases["bert"]),
        {**ALL_LINEAR, "init_lora_weights": start},
        task_type="SEQ_CLS",
        head=HEADS["bert"],
    )
    torch.testing.assert_close(logits(model), logits(load(bases["bert"])), rtol=0, atol=1e-5)


def test_a_base_without_task_head_can_be_adapted_without_task_type(bases):
    base = AutoModel.from_pretrained(bases["bert"])
    model = attach(base, ALL_LINEAR, task_type=None, head=())
    assert len(adapted(model)) == 12  # all of the blocks; the pooler is neither head nor target
    assert model(**batch()).pooler_output.shape == (6, 32)


def nf4(folder: Path) -> Any:
    return load(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier", "bert.pooler"]
        ),
    )


def test_report_counts_what_trains_and_what_is_there(bases):
    base = load(bases["bert"])
    parameters = sum(one.numel() for one in base.parameters())
    report = trainable_report(attach(base, ALL_LINEAR, task_type="SEQ_CLS", head=HEADS["bert"]))
    assert report.head == 33 * 32 + 33 * 3
    assert report.adapter == 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))
    assert report.trainable == report.adapter + report.head
    assert report.total == parameters + report.adapter
    assert report.modules == 12


def test_report_counts_packed_weights_as_what_they_stand_for(bases):
    plain = trainable_report(attach(load(bases["bert"]), ALL_LINEAR, task_type="SEQ_CLS", head=HEADS["bert"]))
    packed = trainable_report(attach(nf4(bases["bert"]), ALL_LINEAR, task_type="SEQ_CLS", head=HEADS["bert"]))
    assert packed == plain


def test_report_line_and_rows(bases):
    report = trainable_report(attach(load(bases["bert"]), ALL_LINEAR, task_type="SEQ_CLS", head=HEADS["bert"]))
    share = f"{100 * report.trainable / report.total:.2f} %"
    assert report.line() == (
        f"trainable {report.trainable:,} of {report.total:,} parameters, {share} "
        f"(adapter {report.adapter:,} in 12 modules, head 1,155)"
    )
    rows = {kind: (count, parameters) for kind, count, parameters in report.rows()}
    assert rows["attention.self.query"] == (2, 2 * 4 * 64)
    assert rows["head: classifier"] == (1, 99)
    assert sum(parameters for _, parameters in rows.values()) == report.trainable
    assert report.rows()[0][2] == max(parameters for _, parameters in rows.values())
    assert report.table_lines()[0] == "head: pooler              1 modules        1,056 parameters"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORAX"}, r"peft_type = 'LORAX': peft .* has no such method\. Did you mean 'LORA'\?"),
        (
            {"peft_type": "LORA", "lora_alfa": 4},
            r"lora_alfa = 4: LoraConfig .* has no field 'lora_alfa'\. Did you mean",
        ),
        (
            {"target_modules": ["qury"]},
            r"\['qury'\]: no module of BertFor.* Did you mean 'query'\? .*There are: query, key",
        ),
        ({"target_modules": ["classifier"]}, r"\['classifier'\]: no module .* outside the head"),
        ({"target_modules": "nothing.*"}, r"nothing\.\*.*no module"),
        (
            {"peft_type": "LORA", "r": 0},
            r"peft_config \(LORA\): peft .* cannot put it on this base: `r` should be",
        ),
        (
            {"peft_type": "LORA", "modules_to_save": ["poler"]},
            r"modules_to_save = 'poler': .*Did you mean 'pooler'",
        ),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, r"init_lora_weights = 'eva': .*from data"),
        ({"peft_type": "ADALORA", "target_modules": "all-linear"}, r"total_step: AdaLoRA plans its ranks"),
        ({"peft_type": "XLORA"}, r"peft_type = 'XLORA': it mixes finished adapters"),
        ({"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}, r"no modules_to_save, so the trained head"),
        ({"peft_type": "CPT"}, r"peft_config \(CPT\): peft .* refuses it: .*CAUSAL_LM"),
        (
            {"peft_type": "C3A", "block_size": 7, "target_modules": "all-linear"},
            r"C3A\): peft .* cannot put it on",
        ),
    ],
)
def test_what_peft_cannot_do_is_said_before_it_does_harm(bases, config, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        attach(load(bases["bert"]), config, task_type="SEQ_CLS", head=HEADS["bert"])


def test_a_head_that_the_base_lacks_is_named(bases):
    with pytest.raises(InputError, match=r"the head = 'classifer': .*no such module\. Did you mean 'classifier'"):
        attach(load(bases["bert"]), ALL_LINEAR, task_type="SEQ_CLS", head=("classifer",))


def test_virtual_tokens_need_a_text_task(bases):
    with pytest.raises(InputError, match="virtual tokens need a text task"):
        attach(
            load(bases["bert"]),
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2},
            task_type=None,
            head=(),
        )


def test_prefix_tuning_needs_past_keys_and_values(bases):
    config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}
    with pytest.raises(InputError, match=r"DistilBert.* takes no past_key_values"):
        attach(load(bases["distilbert"]), config, task_type="SEQ_CLS", head=HEADS["distilbert"])


def test_pissa_on_a_quantised_base_is_refused(bases):
    with pytest.raises(InputError, match=r"init_lora_weights = 'pissa': .* is quantised"):
        attach(
            nf4(bases["bert"]),
            {**ALL_LINEAR, "init_lora_weights": "pissa"},
            task_type="SEQ_CLS",
            head=HEADS["bert"],
        )


def test_olora_on_conv1d_is_refused(bases):
    with pytest.raises(InputError, match=r"'olora': peft .* cannot decompose transformer.h.0.attn.c_attn"):
        attach(
            load(bases["gpt2"]),
            {**ALL_LINEAR, "init_lora_weights": "olora"},
            task_type="SEQ_CLS",
            head=HEADS["gpt2"],
        )


def test_an_adapter_without_any_parameter_is_refused(bases):
    with pytest.raises(InputError, match=r"peft_config \(OSF\): .*found no module here"):
        attach(
            load(bases["gpt2"]),
            {"peft_type": "OSF", "target_modules": "all-linear"},
            task_type="SEQ_CLS",
            head=("score",),
        )


def test_ia3_scales_the_input_of_the_down_projections(bases):
    for kind, ends in (("bert", "output.dense"), ("gpt2", "mlp.c_proj"), ("llama", "mlp.down_proj")):
        config = {"peft_type": "IA3", "target_modules": "all-linear"}
        model = attach(load(bases[kind]), config, task_type="SEQ_CLS", head=HEADS[kind])
        down = {name for name, one in model.named_modules() if vars(one).get("is_feedforward")}
        assert len(down) == 2 and all(name.endswith(ends) and ".attention." not in name for name in down), down
