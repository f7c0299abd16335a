"""A run cut into shards learns, stops, goes on and saves as a run on one process does.

FSDP2 runs here on two CPU processes, over gloo, see `sharded_ranks`. DeepSpeed runs where it is installed, on CPUs
too (`DS_ACCELERATOR=cpu`). Measured over these runs against one process: losses at most 1e-6 apart, weights 6e-7 by
plain descent and 5e-5 by Adam, which makes much of a gradient near zero.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from lora_ft.adapters.verify import verify_files
from lora_ft.assemble.answer import answer
from lora_ft.errors import GateError, InputError, RunError
from lora_ft.models.precision import Precision
from lora_ft.ops.shards import cut_like, is_cut, let_go, piece, put_together, whole
from lora_ft.tasks.text_classification import TextClassification
from lora_ft.train.run import RunOptions, train
from lora_ft.train.sharding import check_is_cut, check_sharding, embeddings_of, layers_of, sharding_of, shared_weights
from lora_ft.train.trainer import AdapterTrainer
from tests.bases import make_base
from tests.toy import read, write_recipe
from tests.train.ranks import run_ranks
from tests.train.sharded_ranks import FSDP
from tests.train.test_worlds import PLAIN, answers, curve, reviews, sizes

FLOAT32 = Precision("cpu", torch.float32, False)
ADAM = {
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "max_grad_norm": 0.1,
    "weight_decay": 0.1,
    "load_best_model_at_end": True,
}
CURVE = 5e-6
WEIGHTS = {"descent": 2e-6, "adam": 2e-4, "generated": 2e-6, "dora": 2e-6, "tied": 2e-6, "rest": 2e-5}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto", "DS_ACCELERATOR": "cpu",
}  # fmt: skip
"""What `accelerate launch` makes of launch/accelerate/zero3.yaml, but for the stage."""


def experiments(folder: Path, bert: Path, *, world: int, names: Sequence[str]) -> dict[str, Path]:
    """The same experiments for so many processes: 37 rows to learn, three to measure, one in a batch."""
    one, split = sizes(world), sizes(world, accumulated=2)
    generated = folder / "bases" / "t5"  # three modules share its embeddings
    tied = folder / "bases" / "gpt2"
    makers = {
        "descent": lambda: reviews(folder / "descent", bert, rows=37, training_args={**PLAIN, **one}),
        "adam": lambda: reviews(folder / "adam", bert, rows=37, training_args={**split, **ADAM}),
        "generated": lambda: answers(folder / "generated", make_base(generated, "t5"), **one),
        "dora": lambda: reviews(
            folder / "dora", bert, rows=37, training_args={**PLAIN, **one}, peft_config={"use_dora": True}
        ),
        "tied": lambda: _text_generation(answers(folder / "tied", make_base(tied, "gpt2"), **one)),
        "rest": lambda: _by_loraplus(
            reviews(folder / "rest", bert, rows=3, training_args={**one, "gradient_checkpointing": True})
        ),
    }  # fmt: skip
    return {name: makers[name]() for name in names}


def _text_generation(recipe: Path) -> Path:
    content = json.loads(recipe.read_text(encoding="utf-8"))
    recipe.write_text(json.dumps({**content, "task": "text-generation"}), encoding="utf-8")
    return recipe


def _by_loraplus(recipe: Path) -> Path:
    content = json.loads(recipe.read_text(encoding="utf-8"))
    del content["training_args"]["optim"]
    content["training_args"]["learning_rate"] = 1e-3
    content["optimizer"] = {"name": "loraplus", "loraplus_lr_ratio": 4.0}
    recipe.write_text(json.dumps(content), encoding="utf-8")
    return recipe


def stopped(folder: Path, base: Path) -> Path:
    """A run that draws by chance, measures and saves often, and whose baseline is the untrained model's."""
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3, "logging_steps": 1}
    recipe = answers(folder, base, num_train_epochs=6, save_total_limit=2, **sizes(2), **steps)
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content["peft_config"]["lora_dropout"] = 0.1
    recipe.write_text(json.dumps(content), encoding="utf-8")
    return recipe


def compare(one: Path, several: Path, *, weights: float) -> None:
    """Losses, metrics and the adapter of two runs."""
    expected, found = curve(one), curve(several)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in expected], abs=CURVE, rel=CURVE)
    alone, together = (json.loads((run / "adapter" / "metrics.json").read_text("utf-8")) for run in (one, several))
    for split, metrics in alone["adapter"].items():
        assert together["adapter"][split] == pytest.approx(metrics, abs=CURVE, rel=CURVE), split
    assert together["baseline"] == {
        split: pytest.approx(metrics, abs=CURVE, rel=CURVE) for split, metrics in alone["baseline"].items()
    }
    second = load_file(several / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(one / "adapter" / "adapter_model.safetensors").items():
        assert second.pop(name) == pytest.approx(tensor, abs=weights), name
    assert not second


Run = tuple[Path, Path, list[list[dict[str, Any]]]]


def both_ways(folder: Path, bert: Path, *, names: Sequence[str], module: str, variables: Mapping[str, str]) -> Run:
    """Experiments on one process and on two that cut the model; all in one start."""
    for file in experiments(folder / "alone", bert, world=1, names=names).values():
        train(read(file), RunOptions())
    cut = experiments(folder / "cut", bert, world=2, names=names)
    jobs: list[dict[str, Any]] = [{"do": "train", "recipe": file} for file in cut.values()]
    if len(names) > 1:
        base = make_base(folder / "bases" / "t5", "t5")
        whole_run, cut_run = (stopped(folder / "cut" / name, base) for name in ("never stopped", "stopped"))
        jobs.append({"do": "train", "recipe": whole_run})
        jobs.append({"do": "stop and go on", "recipe": cut_run, "rank": 1, "step": 4})
    said = run_ranks(jobs, world=2, folder=folder / "ranks", module=module, variables=variables)
    return folder / "alone", folder / "cut", said


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Run:
    """What takes no more than a start."""
    folder = tmp_path_factory.mktemp("fsdp")
    return both_ways(folder, tiny_bert, names=["adam"], module="tests.train.sharded_ranks", variables=FSDP)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Run:
    """Other adapters, optimizers and embeddings, and a run that is stopped."""
    folder = tmp_path_factory.mktemp("others")
    names = ("descent", "generated", "dora", "tied", "rest")
    return both_ways(folder, tiny_bert, names=names, module="tests.train.sharded_ranks", variables=FSDP)


@pytest.mark.slow
def test_fsdp_learns_measures_and_saves_what_one_process_does(fsdp: Run) -> None:
    alone, cut, _ = fsdp
    compare(alone / "adam" / "run", cut / "adam" / "run", weights=WEIGHTS["adam"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["descent", "generated", "dora", "tied", "rest"])
def test_fsdp_learns_with_other_adapters_optimizers_and_embeddings(others: Run, name: str) -> None:
    alone, cut, _ = others
    compare(alone / name / "run", cut / name / "run", weights=WEIGHTS[name])


@pytest.mark.slow
def test_a_run_cut_by_fsdp_goes_on_to_the_very_same_losses_and_adapter(others: Run) -> None:
    _, cut, said = others
    same_after_a_stop(cut, said)


@pytest.mark.slow
def test_one_process_goes_on_with_what_was_begun_in_shards(others: Run, tmp_path: Path) -> None:
    run = others[1] / "never stopped" / "run"
    (run / "adapter").rename(tmp_path / "adapter")
    again = read(others[1] / "never stopped" / "recipe.yaml", "training_args.gradient_accumulation_steps=2")
    assert train(again, RunOptions(resume=True)).manifest is not None


def same_after_a_stop(cut: Path, said: list[list[dict[str, Any]]]) -> None:
    """The one rank that got no signal stops too; losses, baseline and adapter are as if nobody had."""
    assert said[0][-1]["told"].startswith("143 another process got a signal: ended after step 6 of 12")
    expected, found = cut / "never stopped" / "run", cut / "stopped" / "run"
    assert curve(found) == curve(expected)
    metrics = [json.loads((run / "adapter" / "metrics.json").read_text("utf-8")) for run in (expected, found)]
    assert metrics[0] == metrics[1]
    second = load_file(found / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(expected / "adapter" / "adapter_model.safetensors").items():
        assert np.array_equal(second[name], tensor), name


@pytest.mark.slow
def test_an_adapter_out_of_shards_is_whole_for_us_and_for_plain_peft(fsdp: Run, tiny_bert: Path) -> None:
    folder = fsdp[1] / "adam" / "run" / "adapter"
    verify_files(folder)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    loaded = peft.get_peft_model_state_dict(peft.PeftModel.from_pretrained(base, folder))
    saved = load_file(folder / "adapter_model.safetensors")
    assert loaded.keys() == saved.keys()
    for name, tensor in loaded.items():
        assert np.array_equal(tensor.numpy(), saved[name]), name


@pytest.mark.slow
def test_checkpoints_out_of_shards_are_those_of_one_process(fsdp: Run) -> None:
    """So a run can go on without shards, or on other machines."""
    alone, cut, _ = fsdp
    ours = sorted((cut / "adam" / "run").glob("checkpoint-*"))
    assert [one.name for one in ours] == [one.name for one in sorted((alone / "adam" / "run").glob("checkpoint-*"))]
    for folder in ours:
        theirs = alone / "adam" / "run" / folder.name
        for name in ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "loop.pt"):
            assert (folder / name).exists() == (theirs / name).exists(), name
        found, expected = (torch.load(one / "optimizer.pt", weights_only=True) for one in (folder, theirs))
        assert found["param_groups"] == expected["param_groups"]
        for index, values in expected["state"].items():
            for key, value in values.items():
                torch.testing.assert_close(found["state"][index][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_in_16_bits_fsdp_computes_what_ddp_does_to_the_last_bit(tmp_path: Path, tiny_bert: Path) -> None:
    """One process has other batches, whose products are rounded otherwise in 16 bits."""
    for name, module, variables in (("ddp", "tests.train.ranks", {}), ("fsdp", "tests.train.sharded_ranks", FSDP)):
        half = {"model": {"dtype": "bfloat16"}, "training_args": {**PLAIN, **sizes(2)}}
        job = {"do": "train", "recipe": reviews(tmp_path / name, tiny_bert, rows=37, **half)}
        run_ranks([job], world=2, folder=tmp_path / "ranks" / name, module=module, variables=variables)
    assert curve(tmp_path / "fsdp" / "run") == curve(tmp_path / "ddp" / "run")
    expected, found = (
        load_file(tmp_path / name / "run" / "adapter" / "adapter_model.safetensors") for name in ("ddp", "fsdp")
    )
    assert all(np.array_equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_learns_saves_and_goes_on_as_one_process_does(tmp_path: Path, tiny_bert: Path, stage: int) -> None:
    names = ("descent", "adam", "generated")
    variables = {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    alone, cut, said = both_ways(tmp_path, tiny_bert, names=names, module="tests.train.ranks", variables=variables)
    for name in names:
        compare(alone / name / "run", cut / name / "run", weights=WEIGHTS[name])
    same_after_a_stop(cut, said)


def arguments(folder: Path, **settings: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(output_dir=str(folder), use_cpu=True, **settings)


def refusal(recipe: Path, folder: Path, *overrides: str, **settings: Any) -> str:
    """What a run that is to be cut by FSDP is told."""
    given = arguments(folder, **settings)
    with pytest.raises(InputError) as caught:
        check_sharding(read(recipe, *overrides), given, kind=sharding_of(given), precision=FLOAT32)
    return str(caught.value)


def test_what_cannot_be_cut_is_refused_all_at_once_before_a_base_is_loaded(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    recipe = write_recipe(tmp_path, tiny_bert)
    given = arguments(tmp_path)
    check_sharding(read(recipe), given, kind=sharding_of(given), precision=FLOAT32)
    told = refusal(recipe, tmp_path, "peft_config.init_lora_weights=pissa", "optimizer.name=lorafa")
    assert "FSDP: peft_config.init_lora_weights = 'pissa'" in told
    assert "FSDP: optimizer.name = 'lorafa'" in told
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert "fsdp_offload_params: true" in refusal(recipe, tmp_path)
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD")
    assert "fsdp_version = 1" in refusal(recipe, tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"load_in_8bit": True}, "quantization_config.load_in_8bit = true: bitsandbytes cannot cut"),
        ({"load_in_4bit": True}, "bnb_4bit_quant_storage = uint8: FSDP cuts only weights that are stored in the type"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, "Expected float32"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "float32"}, None),
    ],
)
def test_a_quantised_base_is_cut_only_where_it_is_stored_as_it_computes(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], told: str | None
) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    recipe = dataclasses.replace(read(write_recipe(tmp_path, tiny_bert)), quantization_config=settings)
    if told is None:
        check_sharding(recipe, arguments(tmp_path), kind="FSDP", precision=FLOAT32)
        return
    with pytest.raises(InputError, match=told):
        check_sharding(recipe, arguments(tmp_path), kind="FSDP", precision=FLOAT32)


def test_a_run_that_accelerate_does_not_cut_although_asked_ends(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FSDP: asked for, but accelerate does not cut a model on CPUs"):
        check_is_cut(SimpleNamespace(is_fsdp_enabled=False), "FSDP")  # type: ignore[arg-type]


def test_memory_that_is_too_small_ends_a_process_at_once_where_none_can_try_alone(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def forward(task: Any, model: Any, batch: Any, problem: Any) -> Any:
        tried.append(len(batch["input_ids"]))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TextClassification, "forward", forward)
    monkeypatch.setattr(AdapterTrainer, "in_step", True)
    with pytest.raises(GateError, match=r"eval_batch_size below 32 \(not tried: no process can try one"):
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions())
    assert tried == [32]


@pytest.mark.parametrize(
    ("kind", "auto_class", "layers"),
    [
        ("bert", "AutoModelForSequenceClassification", ["BertLayer"]),
        ("vit", "AutoModelForImageClassification", ["ViTLayer"]),
        ("t5", "AutoModelForSeq2SeqLM", ["T5Block"]),
    ],
)
def test_pieces_are_layers_and_never_what_holds_the_embeddings(
    tmp_path: Path, kind: str, auto_class: str, layers: list[str]
) -> None:
    folder = make_base(tmp_path / kind, kind)
    base = getattr(transformers, auto_class).from_pretrained(folder)
    assert layers_of(base, apart=embeddings_of(base)) == layers


def test_a_base_that_does_not_say_where_its_embeddings_are_is_refused(tmp_path: Path) -> None:
    base = transformers.AutoModelForObjectDetection.from_pretrained(make_base(tmp_path / "detr", "detr"))
    with pytest.raises(InputError, match=r"FSDP: accelerate .* cannot cut DetrForObjectDetection"):
        embeddings_of(base)


def test_weights_that_more_than_the_embeddings_share_stay_whole(tmp_path: Path) -> None:
    for kind, auto_class, count in (
        ("t5", "AutoModelForSeq2SeqLM", 1),
        ("gpt2", "AutoModelForCausalLM", 0),
        ("bert", "AutoModelForMaskedLM", 1),  # the bias over the vocabulary
    ):
        base = getattr(transformers, auto_class).from_pretrained(make_base(tmp_path / kind, kind))
        base.requires_grad_(False)
        assert len(shared_weights(base, apart=embeddings_of(base))) == count, kind


class Counted(torch.nn.Module):
    """A model that counts how often it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.runs = torch.nn.Parameter(torch.zeros(())), 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return rows + self.weight


COUNTING: Any = SimpleNamespace(
    collator=lambda problem: lambda rows: {"rows": torch.tensor([row["row"] for row in rows])},
    forward=lambda model, batch, problem: model(batch["rows"]),
    loss=lambda outputs, batch, problem, items: outputs.sum(),
    items=lambda batch: len(batch["rows"]),
    answer=lambda model, batch, problem, outputs: {"rows": outputs},
    decode=lambda found, rows, problem: found["rows"].tolist(),
)


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_a_process_with_fewer_batches_runs_one_more_and_forgets_it(rows: int) -> None:
    features = [{"row": row, "length": 1} for row in range(rows)]

    class Features(list):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            return [row[key] for row in features] if isinstance(key, str) else features[key]

    runs, parts, sums, items = [], {}, 0.0, 0
    for rank in range(2):
        model = Counted()
        found = answer(
            model, Features(features), task=COUNTING, problem=SimpleNamespace(), precision=FLOAT32, batch_size=2,
            share=(rank, 2), measure_loss=True, in_step=True,
        )  # fmt: skip
        runs.append(model.runs)
        assert not parts.keys() & found.parts.keys()
        parts.update(found.parts)
        sums, items = sums + found.loss_sum, items + found.items
    assert runs[0] == runs[1]
    assert parts == {row: float(row) for row in range(rows)}
    assert (sums, items) == (sum(range(rows)), rows)


def test_what_is_not_cut_passes_through_unchanged() -> None:
    module, tensor = torch.nn.Linear(2, 3), torch.arange(6.0)
    assert whole(tensor) is tensor
    assert piece(tensor) is tensor
    assert torch.equal(cut_like(tensor, torch.zeros(6)), tensor)
    assert not is_cut(module)
    let_go(module)
    with put_together(module):
        assert torch.equal(module(torch.ones(2)), module(torch.ones(2)))
