"""What cannot be adopted is refused before torch, with every reason and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.assemble.adoption import Adoption, Wishes, plan_adoption
from lora_ft.errors import AdapterError, AdapterRefused, InputError, ModelError, RecipeError
from tests.bases import make_base
from tests.plain_peft import edit_config, edit_tensors, save_plain

Tensors = dict[str, Any]
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return save_plain(tmp_path_factory.mktemp("adoption") / "plain", tiny_bert, "text-classification")


@pytest.fixture
def plain(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "plain")
    return tmp_path / "plain"


def plan(folder: Path, base: Path | str, task: str = "text-classification", **wishes: Any) -> Adoption:
    return plan_adoption(folder, Wishes(base=str(base), task=task, offline=True, **wishes))


def reasons(folder: Path, base: Path | str, task: str = "text-classification", **wishes: Any) -> list[str]:
    """All faults of an adapter."""
    with pytest.raises(AdapterRefused) as error:
        plan(folder, base, task, **wishes)
    heading, *faults = str(error.value).splitlines()
    assert heading.endswith(f"{len(faults)} fault{'s' if len(faults) > 1 else ''}:")
    return faults


def renamed(change: Callable[[str], str | None]) -> Callable[[Tensors], Tensors]:
    """The same tensors under other names; None leaves one out."""
    return lambda tensors: {new: one for name, one in tensors.items() if (new := change(name)) is not None}


def of(name: str, value: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    """Tensors whose name holds `name`, changed."""
    return lambda tensors: {key: value(one) if name in key else one for key, one in tensors.items()}


TENSOR_FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "head lost": (renamed(lambda name: None if "classifier" in name else name), "the head is missing: modules_to_save"),
    "foreign prefix": (
        renamed(lambda name: name.replace("base_model.model.", "diffusion_model.") if "query" in name else name),
        "4 of 10 tensors have a foreign prefix (first: diffusion_model.bert",
    ),
    "adapter's name left in": (
        renamed(lambda name: name.replace("lora_A.weight", "lora_A.default.weight")),
        "4 of 10 tensors have the adapter's name in theirs",
    ),
    "not finite": (of(f"{QUERY}.lora_A", lambda one: one * float("nan")), f"not finite (first: {QUERY}.lora_A.weight)"),
    "infinite in 16 bits": (
        lambda tensors: {key: (one / 0 if "query" in key else one).bfloat16() for key, one in tensors.items()},
        "4 tensors hold numbers that are not finite",
    ),
    "never trained": (of("lora_B", lambda one: one * -0.0), "THE ADAPTER NEVER TRAINED"),
    "half of a pair": (renamed(lambda name: None if f"{QUERY}.lora_B" in name else name), "only one of lora_A and"),
    "another rank": (of("lora_A", lambda one: one.repeat(2, 1)), "has 8, r = 4"),
    "other sizes": (of(f"{QUERY}.lora_A", lambda one: one.repeat(1, 2)), "is made for 64 -> 32, the base's"),
    "a layer too much": (
        lambda tensors: {**tensors, **{k.replace("layer.0", "layer.7"): v.clone() for k, v in tensors.items()}},
        "2 of 6 adapted modules are not in",
    ),
    "unknown tensors": (
        lambda tensors: {**tensors, "base_model.model.bert.extra.weight": next(iter(tensors.values())).clone()},
        "1 of 11 tensors are neither LoRA nor in modules_to_save",
    ),
    "embeddings under LoRA": (
        lambda t: {**t, "base_model.model.bert.word_embeddings.base_layer.weight": next(iter(t.values())).clone()},
        "or LoRA is on them",
    ),
    "embeddings": (
        lambda t: {**t, "base_model.model.bert.embeddings.word_embeddings.weight": next(iter(t.values())).clone()},
        "embeddings of the base are in it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSOR_FAULTS)
def test_tensors_that_peft_would_take_wrongly_are_refused(case: str, plain: Path, tiny_bert: Path) -> None:
    change, expected = TENSOR_FAULTS[case]
    edit_tensors(plain, change)
    assert any(expected in fault for fault in reasons(plain, tiny_bert)), reasons(plain, tiny_bert)


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "no rank": ({}, ("r",), "r is missing: peft would take its default without a word. lora_A has 4 rows"),
    "no alpha": ({}, ("lora_alpha",), "lora_alpha is missing"),
    "alpha as text": ({"lora_alpha": "8"}, (), "lora_alpha = '8'"),
    "one name for a list": ({"modules_to_save": "classifier"}, (), "modules_to_save = 'classifier': expected"),
    "ranks as a list": ({"rank_pattern": [2]}, (), "rank_pattern = [2]: expected"),
    "unknown method": ({"peft_type": "LORRA"}, (), "'LORRA': the installed peft has no such method. Did you"),
    "no method": ({}, ("peft_type",), "peft_type = None"),
    "field of a newer peft": ({"use_moonbeam": True}, (), "use_moonbeam = True: LoraConfig (peft"),
    "changes the base": ({"init_lora_weights": "pissa_niter_4"}, (), "path_initial_model_for_weight_conversion"),
    "copied layers": ({"layer_replication": [[0, 2], [1, 2]]}, (), "lora_ft does not load"),
    "biases": ({"bias": "all"}, (), "bias = 'all'"),
    "another task": ({"task_type": "CAUSAL_LM"}, (), "task_type = 'CAUSAL_LM': the task given is one of SEQ_CLS"),
    "custom code": (
        {"auto_mapping": {"base_model_class": "Mine", "parent_library": "transformers_modules.x"}}, (), "custom code",
    ),
    "a module that was not saved": (
        {"modules_to_save": ["classifier", "pooler"]}, (), "= 'pooler': adapter_model.safetensors has no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG_FAULTS)
def test_a_config_that_peft_would_read_wrongly_is_refused(case: str, plain: Path, tiny_bert: Path) -> None:
    change, drop, expected = CONFIG_FAULTS[case]
    edit_config(plain, change, drop=drop)
    assert any(expected in fault for fault in reasons(plain, tiny_bert)), reasons(plain, tiny_bert)


def test_all_faults_come_in_one_report(plain: Path, tiny_bert: Path) -> None:
    edit_config(plain, {"bias": "all"}, drop=("r",))
    edit_tensors(plain, of("lora_B", lambda one: one * 0))
    edit_tensors(plain, of("value.lora_A", lambda one: one * float("inf")))
    faults = reasons(plain, tiny_bert, labels=("a", "b"))
    for expected in (
        "r is missing",
        "bias = ",
        "NEVER TRAINED",
        "not finite",
        "--labels: 2 labels, and the head",
    ):
        assert sum(expected in fault for fault in faults) == 1, faults
    assert len(faults) == 5


def test_pickled_weights_are_not_read_and_the_command_converts_them(plain: Path, tiny_bert: Path) -> None:
    import subprocess
    import sys

    import torch
    from safetensors.torch import load_file

    tensors = load_file(plain / "adapter_model.safetensors")
    torch.save(tensors, plain / "adapter_model.bin")
    (plain / "adapter_model.safetensors").unlink()
    (fault,) = reasons(plain, tiny_bert)
    code = fault.partition('python -c "')[2].partition('" (in that folder)')[0]
    subprocess.run([sys.executable, "-c", code], cwd=plain, check=True)
    assert plan(plain, tiny_bert).adapter.tensors.keys() == tensors.keys()
    assert any("left alone" in note for note in plan(plain, tiny_bert).notes)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"garbage that is no header of anything"])
def test_a_file_that_is_missing_or_damaged_is_a_fault(
    name: str, content: bytes | None, plain: Path, tiny_bert: Path
) -> None:
    (plain / name).unlink()
    if content is not None:
        (plain / name).write_bytes(content)
    assert name in reasons(plain, tiny_bert)[0]


def test_a_folder_without_an_adapter_says_what_was_expected(tmp_path: Path, plain: Path, tiny_bert: Path) -> None:
    with pytest.raises(AdapterError, match="Did you mean 'plain'"):
        plan(tmp_path / "plane", tiny_bert)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="no adapter of peft here"):
        plan(tmp_path / "empty", tiny_bert)
    (plain / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AdapterError, match="an adapter of lora_ft already"):
        plan(plain, tiny_bert)


def test_code_named_beside_the_adapter_is_refused(plain: Path, tiny_bert: Path) -> None:
    auto_map = {"auto_map": {"AutoTokenizer": "mine.Tokenizer"}}
    (plain / "tokenizer_config.json").write_text(json.dumps(auto_map), encoding="utf-8")
    assert "auto_map names code of its own" in reasons(plain, tiny_bert)[0]


def test_trained_embeddings_of_another_size_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "gpt2", "gpt2", auto_class="AutoModelForCausalLM")
    plain = save_plain(
        tmp_path / "plain", base, "text-generation", labels=None, target_modules=["c_attn"], modules_to_save=["wte"]
    )
    assert plan(plain, base, "text-generation").adapter.head == ("wte",)
    edit_tensors(plain, of("wte", lambda one: one.repeat(2, 1)))
    assert "tokens were added before it was trained" in reasons(plain, base, "text-generation")[0]


def test_layer_zero_alone_is_a_field_that_says_something(plain: Path, tiny_bert: Path) -> None:
    edit_config(plain, {"layers_to_transform": 0, "lora_dropout": 0.0})
    fields = plan(plain, tiny_bert).adapter.peft_fields
    assert fields["layers_to_transform"] == 0
    assert set(fields) == {"r", "lora_alpha", "target_modules", "layers_to_transform"}


def test_an_untrained_adapter_is_planned_when_asked_for_and_loudly(plain: Path, tiny_bert: Path) -> None:
    edit_tensors(plain, of("lora_B", lambda one: one * 0))
    assert any("CHANGES NOTHING" in note for note in plan(plain, tiny_bert, untrained=True).notes)


def test_labels_come_from_the_user_the_adapter_the_base_or_nobody(plain: Path, tiny_bert: Path, tmp_path: Path) -> None:
    nobody = plan(plain, tiny_bert)
    assert nobody.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert any(note.startswith("WARNING") for note in nobody.notes)
    base = tmp_path / "named"
    shutil.copytree(tiny_bert, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    named = {**config, "id2label": {"0": "x", "1": "y", "2": "z"}}
    (base / "config.json").write_text(json.dumps(named), encoding="utf-8")
    assert plan(plain, base).labels == ("x", "y", "z")
    own = {"id2label": {"2": "good", "0": "bad", "1": "fair"}, "problem_type": "multi_label_classification"}
    (plain / "config.json").write_text(json.dumps(own), encoding="utf-8")
    found = plan(plain, base)
    assert (found.labels, found.problem_type) == (("bad", "fair", "good"), "multi_label_classification")
    assert plan(plain, base, labels=("1", "2", "3")).labels == ("1", "2", "3")
    assert "expected names, each once" in reasons(plain, base, labels=("a", "a", "b"))[0]


def test_a_head_of_one_row_is_a_regression(tmp_path: Path, tiny_bert: Path) -> None:
    plain = save_plain(tmp_path / "plain", tiny_bert, "text-classification", labels=1)
    found = plan(plain, tiny_bert)
    assert (found.problem_type, found.labels) == ("regression", ())
    assert "has no labels" in reasons(plain, tiny_bert, labels=("a",))[0]


def test_a_revision_is_compared_where_there_is_one(
    plain: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ft.assemble import adoption
    from lora_ft.models.resolve import BaseFolder

    ours, theirs = "a" * 40, "b" * 40
    edit_config(plain, {"base_model_name_or_path": "some/base", "revision": ours})
    assert any("no revision to compare" in note for note in plan(plain, tiny_bert).notes)
    asked: list[str | None] = []

    def resolve(name: str, *, revision: str | None, offline: bool) -> BaseFolder:
        asked.append(revision)
        return BaseFolder(name, revision, tiny_bert)

    monkeypatch.setattr(adoption, "resolve_base", resolve)
    assert plan(plain, "some/base").base.revision == ours
    assert asked == [ours]
    assert "the adapter was trained on it" in reasons(plain, "some/base", revision=theirs)[0]


def test_wishes_that_the_task_does_not_know_are_refused(plain: Path, tiny_bert: Path) -> None:
    with pytest.raises(InputError, match="no such task"):
        plan(plain, tiny_bert, "text-clasification")
    with pytest.raises(InputError, match="--problem-type ranking"):
        plan(plain, tiny_bert, problem_type="ranking")
    with pytest.raises(RecipeError) as error:
        plan(plain, tiny_bert, sets=("processor.max_lenght=32", "training_args.seed=1", "dataset.path=x"))
    assert len(error.value.faults) == 3
    assert "Did you mean 'max_length'" in error.value.faults[0]
    assert plan(plain, tiny_bert, sets=("processor.max_length=32",)).processor == {"max_length": 32}
    with pytest.raises(ModelError):
        plan(plain, tiny_bert / "absent")
