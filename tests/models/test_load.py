"""A loaded base is frozen, free of dropout, knows its head, and is what the files say."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, CLIPConfig

from lora_ft.errors import ModelError
from lora_ft.models.config import load_config
from lora_ft.models.load import load_processor
from lora_ft.models.resolve import BaseFolder
from tests.bases import make_base
from tests.models.loading import CPU, CPU_BF16, LABELS, batch, load

HEADS = {
    "bert": ("classifier", "pooler"),
    "distilbert": ("classifier", "pre_classifier"),
    "roberta": ("classifier",),
    "gpt2": ("score",),
    "llama": ("score",),
}


@pytest.fixture(scope="module", params=HEADS)
def any_base(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, make_base(tmp_path_factory.mktemp(request.param), request.param)


def edit(folder: Path, change) -> Path:
    """Rewrites the weights of a base."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def bert_copy(tiny_bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bert, tmp_path / "base")


@pytest.fixture
def trained_classifier(tiny_bert: Path, tmp_path: Path) -> Path:
    """A base that has its own head of three labels."""
    shutil.copytree(tiny_bert, tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_nothing_trains_and_the_head_is_known(any_base):
    kind, folder = any_base
    base = load(folder)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.head == HEADS[kind]
    assert base.new_head
    assert base.quantization is None
    assert base.model.dtype is torch.float32
    assert base.model(**batch()).logits.shape == (4, 3)


def test_no_dropout_is_left_and_the_file_is_untouched(any_base):
    _, folder = any_base
    before = (folder / "config.json").read_bytes()
    model = load(folder, dropout=0.0).model.train()
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    assert torch.equal(model(**batch()).logits, model(**batch()).logits)
    assert (folder / "config.json").read_bytes() == before


def test_dropout_keep_keeps_the_base_own(tiny_bert):
    model = load(tiny_bert, dropout="keep").model
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    model = load(tiny_bert, dropout=0.25).model
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_dropouts_of_inner_configs_are_set_too(tmp_path):
    CLIPConfig(text_config={"attention_dropout": 0.3}, vision_config={"attention_dropout": 0.4}).save_pretrained(
        tmp_path
    )
    base = BaseFolder("clip", None, tmp_path)
    config = load_config(base, fields={}, dropout=0.0, trust_remote_code=False)
    assert config.text_config.attention_dropout == config.vision_config.attention_dropout == 0.0


def test_labels_reach_the_config(tiny_bert):
    config = load(tiny_bert).model.config
    assert (config.num_labels, config.id2label, config.label2id, config.problem_type) == tuple(LABELS.values())


def test_gpt_pads_without_growing_and_model_and_tokenizer_agree(any_base):
    _, folder = any_base
    base = load(folder)
    tokenizer = load_processor(folder, trust_remote_code=False)
    assert tokenizer.pad_token_id == base.model.config.pad_token_id is not None
    assert len(tokenizer) == base.model.get_input_embeddings().num_embeddings


def test_gpt_logits_do_not_depend_on_padding(tiny_gpt2):
    tokenizer = load_processor(tiny_gpt2, trust_remote_code=False)
    model = load(tiny_gpt2).model.eval()
    alone = model(**tokenizer(["good book"], return_tensors="pt")).logits
    padded = model(**tokenizer(["good book", "very bad phone broken again"], padding=True, return_tensors="pt"))
    torch.testing.assert_close(padded.logits[:1], alone)


def test_tokenizer_without_any_token_to_pad_is_an_error(tiny_gpt2, tmp_path):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("eos_token", "unk_token", "pad_token"):
        settings.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no token to pad with"):
        load_processor(BaseFolder("x", None, folder), trust_remote_code=False)


def test_folder_without_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer. Expected one of tokenizer.json"):
        load_processor(tmp_path, trust_remote_code=False)


def test_trained_head_is_kept_and_not_new(trained_classifier):
    base = load(trained_classifier)
    stored = load_file(trained_classifier / "model.safetensors")
    assert torch.equal(base.model.classifier.weight, stored["classifier.weight"])
    assert base.head == ("classifier", "pooler")
    assert not base.new_head


def test_head_with_another_number_of_labels_is_made_anew(trained_classifier):
    base = load(trained_classifier, config={"num_labels": 5})
    assert base.model.classifier.weight.shape[0] == 5
    assert base.new_head
    assert "classifier" in base.head


def test_new_pooler_is_part_of_the_head_though_nobody_named_it(bert_copy):
    edit(bert_copy, lambda weights: {k: v for k, v in weights.items() if not k.startswith("pooler")})
    assert load(bert_copy, head=("classifier",)).head == ("classifier", "pooler")


def test_new_head_follows_the_seed(tiny_bert):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load(tiny_bert).model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_base_that_lost_a_layer_is_refused(bert_copy):
    edit(bert_copy, lambda weights: {k: v for k, v in weights.items() if "layer.1.attention" not in k})
    with pytest.raises(ModelError, match=r"10 of 39 weights of the base are missing.*encoder.layer.1.attention"):
        load(bert_copy)


def test_weights_of_another_architecture_are_refused(bert_copy):
    edit(bert_copy, lambda weights: {f"other.{k}": v for k, v in weights.items()})
    with pytest.raises(ModelError, match=r"39 of 39 weights of the base are missing"):
        load(bert_copy)


def test_weights_of_another_size_are_refused(tiny_bert, tmp_path):
    other = make_base(tmp_path / "base", hidden=64)
    shutil.copy(tiny_bert / "model.safetensors", other / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing or have another shape than config.json says"):
        load(other)


def test_unused_layers_are_logged_once_and_other_heads_are_not(bert_copy, caplog):
    def grow(weights):
        more = {k.replace("layer.1", "layer.2"): v.clone() for k, v in weights.items() if "layer.1" in k}
        return {**weights, **more, "cls.predictions.bias": torch.zeros(3)}

    edit(bert_copy, grow)
    with caplog.at_level(logging.WARNING):
        load(bert_copy)
    assert len(caplog.messages) == 1
    assert "16 of its weights are not used: encoder.layer.2" in caplog.messages[0]


def test_transformers_table_of_new_weights_is_silent(tiny_bert, capfd):
    load(tiny_bert)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_wrong_kind_of_base_names_the_kinds(tiny_gpt2):
    with pytest.raises(ModelError, match=r"no AutoModelForMaskedLM for this kind of base. Expected one of: .*Bert"):
        load(tiny_gpt2, auto_class="AutoModelForMaskedLM")


def test_unknown_model_type_is_an_error_of_ours(bert_copy):
    (bert_copy / "config.json").write_text('{"model_type": "bertt"}')
    with pytest.raises(ModelError, match=r"cannot read its config.json"):
        load(bert_copy)


def test_remote_code_is_off_unless_said(bert_copy):
    (bert_copy / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}')
    (bert_copy / "mine.py").write_text("raise RuntimeError('must not run')")
    with pytest.raises(ModelError, match=r"set model.trust_remote_code: true if you trust it"):
        load(bert_copy)


def test_quantised_copy_is_refused(bert_copy):
    config = json.loads((bert_copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (bert_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"this copy is stored quantised \(bitsandbytes\)"):
        load(bert_copy)


@pytest.mark.parametrize(
    ("stored", "precision", "dtype", "expected"),
    [
        (torch.float32, CPU, None, torch.float32),
        (torch.float16, CPU, None, torch.float32),
        (torch.bfloat16, CPU, None, torch.float32),
        (torch.float32, CPU_BF16, None, torch.float32),
        (torch.float16, CPU_BF16, None, torch.bfloat16),
        (torch.bfloat16, CPU_BF16, "float32", torch.float32),
        (torch.float32, CPU_BF16, "bfloat16", torch.bfloat16),
    ],
)
def test_type_of_the_weights(bert_copy, stored, precision, dtype, expected):
    edit(bert_copy, lambda weights: {k: v.to(stored) for k, v in weights.items()})
    base = load(bert_copy, precision=precision, dtype=dtype)
    assert base.model.bert.encoder.layer[0].output.dense.weight.dtype is expected
    assert base.model.classifier.weight.dtype is torch.float32


def test_attention_is_the_one_asked_for(tiny_bert):
    assert load(tiny_bert, attn_implementation="eager").model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="cannot read its model"):
        load(tiny_bert, attn_implementation="no_such_attention")


def test_loading_makes_no_input_gradients(tiny_bert):
    model = load(tiny_bert).model.train()
    assert not model(**batch()).logits.requires_grad


def test_the_pad_token_of_the_base_is_shared_with_models_of_texts_alone(tiny_bert, tmp_path):
    assert load(tiny_bert, config={**LABELS, "pad_token_id": 3}).model.config.pad_token_id == 3
    speech = make_base(tmp_path, "wav2vec2")
    content = json.loads((speech / "config.json").read_text())
    (speech / "config.json").write_text(json.dumps({**content, "pad_token_id": 7}))  # the blank of its own head
    settings = {"auto_class": "AutoModelForCTC", "head": ("lm_head",)}
    assert load(speech, **settings, config={"vocab_size": 9}).model.config.pad_token_id == 7
    assert load(speech, **settings, config={"vocab_size": 9, "pad_token_id": 8}).model.config.pad_token_id == 8


def test_dropouts_among_the_arguments_of_timm_are_set_too(tmp_path):
    folder = make_base(tmp_path, "timm")
    content = json.loads((folder / "config.json").read_text())
    arguments = {**content["model_args"], "drop_rate": 0.3, "drop_path_rate": 0.2}
    (folder / "config.json").write_text(json.dumps({**content, "model_args": arguments}))
    base = BaseFolder("timm", None, folder)
    config = load_config(base, fields={}, dropout=0.0, trust_remote_code=False)
    assert config.model_args == {**arguments, "drop_rate": 0.0, "drop_path_rate": 0.0}
    kept = load_config(base, fields={}, dropout="keep", trust_remote_code=False)
    assert kept.model_args == arguments
