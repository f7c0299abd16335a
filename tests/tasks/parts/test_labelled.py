"""Losses from what the head reads at labelled positions: the usual ones, in every family, or the usual way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import peft
import pytest
import torch
import transformers as tf

from lora_ft.tasks.parts.labelled import Labelled, LabelLoss, following, outputs_at_labels, token_loss, token_sums
from lora_ft.tasks.parts.language import IGNORED
from lora_ft.tasks.parts.preferences import pairs_of, sigmoid_loss

VOCABULARY, WIDTH = 61, 16
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.3, "max_position_embeddings": 40,
}  # fmt: skip
ENCODER = {name: value for name, value in COMMON.items() if name not in ("head_dim", "num_key_value_heads")}
PAIRED: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip

CAUSAL: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**COMMON)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**COMMON, final_logit_softcapping=3.0)),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**COMMON, logit_scale=0.3)),
    "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**COMMON, logits_scaling=4.0)),
    "hyperclovax": lambda: tf.HyperCLOVAXForCausalLM(tf.HyperCLOVAXConfig(**COMMON, logits_scaling=0.4)),
}
OTHERS: Mapping[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**ENCODER)),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(**PAIRED, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0)
    ),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(
            **PAIRED, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, dropout=0.0,
        )
    ),
}  # fmt: skip
TARGETS = {"gpt2": ["c_attn"], "bert": ["query"], "t5": ["q"], "cohere": ["q_proj"]}


def adapted(family: str, **options: Any) -> Any:
    """A tiny model of a family with an adapter that has moved, without dropout."""
    torch.manual_seed(0)
    base = {**CAUSAL, **OTHERS}[family]()
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    if family == "bart":
        base.final_logits_bias.normal_()
    config = peft.LoraConfig(r=2, target_modules=TARGETS.get(family, ["q_proj"]), **options)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(family: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs, and for each position what is to be said there: a few labels, one row without any."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=generator)
    labels = ids.masked_fill(torch.rand(3, 9, generator=generator) < 0.6, IGNORED)
    labels[1] = IGNORED
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in ("t5", "bart"):
        inputs["decoder_input_ids"] = ids.flip(1)
    return inputs, following(labels) if family in CAUSAL else labels


def loss_and_gradients(
    model: Any, family: str, label_loss: LabelLoss | None, **options: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs, labels = batch_of(family)
    model.train()
    outputs = outputs_at_labels(model, inputs, labels, label_loss)
    assert isinstance(outputs, Labelled) == (label_loss is not None and label_loss.told is True)
    loss = token_loss(outputs, labels, items=labels.ne(IGNORED).sum(), **{"label_smoothing": 0.0, **options})
    loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return loss.detach(), found


def assert_same_as_usual(model: Any, family: str, **options: Any) -> LabelLoss:
    ours = LabelLoss()
    loss, gradients = loss_and_gradients(model, family, ours, **options)
    wanted, others = loss_and_gradients(model, family, None, **options)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == others.keys()
    for name, one in gradients.items():
        torch.testing.assert_close(one, others[name], rtol=1e-4, atol=2e-6, msg=name)
    return ours


@pytest.mark.parametrize("family", [*CAUSAL, *OTHERS])
def test_loss_and_adapter_gradients_are_the_usual_ways(family: str) -> None:
    assert assert_same_as_usual(adapted(family), family).told is True


@pytest.mark.parametrize("family", ["gemma2", "bert"])
def test_with_label_smoothing_too(family: str) -> None:
    assert assert_same_as_usual(adapted(family), family, label_smoothing=0.1).told is True


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_lora_on_the_head_gets_the_same_gradients(family: str) -> None:
    model = adapted(family)
    targets = ["q_proj", "lm_head"]
    model = peft.get_peft_model(model.unload(), peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert assert_same_as_usual(model, family).told is True


@pytest.mark.parametrize("family", [*CAUSAL, *OTHERS])
def test_measured_sums_are_the_usual_ways(family: str) -> None:
    model, (inputs, labels) = adapted(family).eval(), batch_of(family)
    with torch.no_grad():
        ours = token_sums(outputs_at_labels(model, inputs, labels, LabelLoss()), labels)
        wanted = token_sums(outputs_at_labels(model, inputs, labels, None), labels)
    torch.testing.assert_close(ours["loss_sum"], wanted["loss_sum"], rtol=1e-6, atol=1e-5)
    assert {name: ours[name].tolist() for name in ("tokens", "correct")} == {
        name: wanted[name].tolist() for name in ("tokens", "correct")
    }


@pytest.mark.parametrize("head_too", [False, True])
def test_preference_gradients_are_the_usual_ways(head_too: bool) -> None:
    model = adapted("llama")
    if head_too:
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        model = peft.get_peft_model(model.unload(), config)
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(3))
    labels = ids.masked_fill(torch.arange(9) < 4, IGNORED)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = []
    for label_loss in (LabelLoss(), None):
        pairs = pairs_of(model, batch, reference=True, label_loss=label_loss)
        sigmoid_loss(pairs, 0.3).sum().backward()
        grads = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        model.zero_grad()
        found.append((pairs, grads))
        assert label_loss is None or label_loss.told is True
    for name, one in vars(found[0][0]).items():
        torch.testing.assert_close(one, vars(found[1][0])[name], rtol=1e-6, atol=1e-5)
    assert len(found[0][1]) == len(found[1][1]) > 0
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_head_makes_no_logits_for_positions_without_a_label() -> None:
    model, (inputs, labels), ours = adapted("llama"), batch_of("llama"), LabelLoss()
    outputs_at_labels(model, inputs, labels, ours)  # the proof needs two positions, once
    widths: list[int] = []
    model.get_base_model().lm_head.register_forward_hook(lambda _, __, made: widths.append(made.numel()))
    outputs = outputs_at_labels(model, inputs, labels, ours)
    token_loss(outputs, labels, items=1, label_smoothing=0.0)
    assert widths == [0]
    assert outputs.hidden.shape == (int(labels.ne(IGNORED).sum()), WIDTH)


class Odd(tf.LlamaForCausalLM):
    """A family whose logits go through something that no config names."""

    def forward(self, **inputs: Any) -> Any:
        outputs = super().forward(**inputs)
        outputs.logits = 300 * torch.tanh(outputs.logits / 300)  # hardly seen at small logits
        return outputs


def odd() -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(
        Odd(tf.LlamaConfig(**{**COMMON, "initializer_range": 0.002})), peft.LoraConfig(target_modules=["q_proj"])
    )


def quantised() -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = adapted("llama")
    base = model.get_base_model()
    base.lm_head = bitsandbytes.nn.Linear8bitLt(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    return model


def of(**options: Any) -> Callable[[], Any]:
    return lambda: adapted("llama", **options)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (of(modules_to_save=["lm_head"]), "off: the head is trained"),
        (odd, "off: what this family does after its head is not known"),
        (quantised, "off: the head is a bitsandbytes.nn.modules.Linear8bitLt"),
        (lambda: peft.get_peft_model(
            adapted("llama").unload(), peft.LoraConfig(target_modules=["lm_head"], use_dora=True)
        ), "off: the head's LoRA is not a plain one"),
        (lambda: peft.get_peft_model(
            adapted("llama").unload(), peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[])
        ), "off: the head is trained"),
        (lambda: peft.get_peft_model(
            adapted("llama").unload(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        ), "off: what this family does after its head is not known"),
    ],
)  # fmt: skip
def test_what_is_not_a_known_frozen_head_goes_the_usual_way(make: Callable[[], Any], why: str) -> None:
    model, (inputs, labels), ours = make(), batch_of("llama"), LabelLoss()
    for _ in range(2):
        with torch.no_grad():
            outputs = outputs_at_labels(model, inputs, labels, ours)
        assert outputs["logits"].shape[-1] == VOCABULARY
        assert outputs["logits"].shape[1] >= labels.shape[1]
    assert ours.told == why


def test_the_proof_leaves_mode_and_hooks_as_they_were() -> None:
    model, (inputs, labels), ours = adapted("llama").train(), batch_of("llama"), LabelLoss()
    before = torch.get_rng_state()
    outputs_at_labels(model, inputs, labels, ours)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert model(**inputs)["logits"].shape == (3, 9, VOCABULARY)


def test_in_bfloat16_by_autocast_the_loss_is_the_usual_one_up_to_its_rounding() -> None:
    model, found = adapted("gemma2"), []
    for label_loss in (LabelLoss(), None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(loss_and_gradients(model, "gemma2", label_loss))
    (loss, gradients), (wanted, others) = found
    torch.testing.assert_close(loss, wanted, rtol=5e-3, atol=5e-3)
    for name, one in gradients.items():
        assert float((one - others[name]).norm()) < 0.05 * float(others[name].norm()), name
