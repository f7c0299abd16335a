"""The failures that users of other toolkits met and that looked like success, each made again and stopped.

One test or two for each pain of the list that this project began with, in its order; the number is the pain's. A run is
stopped before its second step and before anything is written, an adapter before its first answer, with one message.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers

from lora_ft.adapters.merge import merge_into
from lora_ft.assemble.answer import answer
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import AdapterError, AdapterRefused, GateError, LoraFtError, RecipeError
from lora_ft.models.precision import plan_precision
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import load_task
from lora_ft.tasks.text_classification import TextClassification
from lora_ft.tasks.text_generation import TextGeneration
from lora_ft.train.run import RunOptions, train
from lora_ft.train.supervision import check_ends
from lora_ft.train.trainer import AdapterTrainer
from tests.adapters.build import edit_tensors, resign
from tests.assemble.make_adapter import make_adapter
from tests.bases import make_base
from tests.toy import read, write_recipe
from tests.train.completions import completions

LABELS = ("negative", "positive")


def stopped(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """What a run is stopped with, in its first step at the latest, and with nothing written."""
    steps: list[int] = []
    whole = AdapterTrainer.training_step

    def training_step(trainer: AdapterTrainer, *given: Any) -> torch.Tensor:
        steps.append(trainer.state.global_step)
        return whole(trainer, *given)

    monkeypatch.setattr(AdapterTrainer, "training_step", training_step)
    with pytest.raises(LoraFtError) as caught:
        train(recipe, RunOptions(**options))
    assert set(steps) <= {0}
    folder = Path(recipe.training_args["output_dir"])
    assert not (folder / "adapter").exists()
    assert not list(folder.glob("checkpoint-*"))
    return str(caught.value)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "made", "bert", "text-classification", labels=LABELS)


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(AdapterRefused) as caught:
        open_adapter(folder, OpenOptions(offline=True, **options))
    return str(caught.value)


def test_01_a_lost_head_is_no_adapter(adapter: Path) -> None:
    edit_tensors(
        adapter, lambda state: {name: one for name, one in state.items() if "classifier" not in name}, labels=LABELS
    )
    resign(adapter)
    assert "the head 'classifier' is missing" in refused(adapter)


def test_01_a_head_that_began_anew_answers_otherwise_and_is_refused(adapter: Path) -> None:
    edit_tensors(
        adapter,
        lambda state: {name: torch.randn_like(one) if "classifier" in name else one for name, one in state.items()},
        labels=LABELS,
    )
    resign(adapter)
    assert "probe: logits differ from the recorded ones" in refused(adapter)


def test_02_an_adapter_that_is_dropped_is_noticed_before_the_base_answers(adapter: Path) -> None:
    edit_tensors(
        adapter,
        lambda state: {name: torch.zeros_like(one) if "lora_B" in name else one for name, one in state.items()},
        labels=LABELS,
    )
    resign(adapter)
    assert "probe: logits differ from the recorded ones" in refused(adapter)


def test_02_an_adapter_that_does_nothing_is_not_written(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_warmup = {
        "max_steps": 1, "warmup_steps": 1, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False
    }  # fmt: skip
    told = stopped(read(write_recipe(tmp_path, tiny_bert, training_args=only_warmup)), monkeypatch)
    assert "zero-initialised tensors are still all zero after training" in told


def test_03_another_base_of_the_same_shape_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=7)
    assert "weights" in refused(adapter, base=str(other))


def test_04_labels_that_are_all_masked_stop_the_run(
    tmp_path: Path, tiny_gpt2_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextGeneration.encode

    def encode(task: Any, rows: Any, problem: Any, **named: Any) -> Any:
        features = whole(task, rows, problem, **named)
        return {**features, "labels": [[-100] * len(labels) for labels in features["labels"]]}

    monkeypatch.setattr(TextGeneration, "encode", encode)
    told = stopped(completions(tmp_path, tiny_gpt2_head), monkeypatch)
    assert "labels of the training rows are masked (-100): the loss would be 0.0" in told
    assert not (tmp_path / "run").exists()


def test_05_accumulation_leaves_the_gradients_alone_and_the_old_way_is_stopped(
    tmp_path: Path, tiny_gpt2_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for every task: tests/tasks/test_contract.py, several small batches give the gradients of one large one."""

    def norms(name: str, **arguments: Any) -> list[float]:
        found: list[float] = []
        whole = AdapterTrainer._get_grad_norm

        def norm(trainer: AdapterTrainer, model: Any, grad_norm: Any = None) -> Any:
            found.append(float(whole(trainer, model, grad_norm=grad_norm)))
            return found[-1]

        with monkeypatch.context() as patch:
            patch.setattr(AdapterTrainer, "_get_grad_norm", norm)
            only = {"max_steps": 1, "lr_scheduler_type": "constant", **arguments}
            train(completions(tmp_path / name, tiny_gpt2_head, training_args=only), RunOptions())
        return found

    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    whole = norms("whole", per_device_train_batch_size=8)
    assert norms("parts", **small) == pytest.approx(whole, rel=1e-4)
    monkeypatch.setattr(AdapterTrainer, "_get_num_items_in_batch", lambda *_: None)  # each batch by its own labels
    old = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    told = stopped(completions(tmp_path / "old", tiny_gpt2_head, training_args=old), monkeypatch)
    assert "loss at start: 40" in told
    assert "equal probabilities have 4.2" in told


def test_06_packed_documents_that_see_each_other_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "base", "llama", auto_class="AutoModelForCausalLM")
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    told = stopped(completions(tmp_path / "x", base, processor={"packing": True}), monkeypatch)
    assert "in this base the sequences of a packed row see each other" in told


def test_07_a_qlora_adapter_is_not_merged_into_the_rounded_base_that_it_was_trained_on(
    tmp_path: Path, tiny_bert: Path
) -> None:
    """Also: what a merge into the original precision changes is measured, tests/assemble/test_merged.py."""
    made = make_adapter(tmp_path / "made", "bert", "text-classification", labels=LABELS)
    opened = open_adapter(made, OpenOptions(offline=True, quantization="nf4"))
    assert isinstance(opened, SavedAdapter)
    with pytest.raises(AdapterError, match=r"quantised .* rounds it away"):
        merge_into(opened.model)


def test_08_an_adapter_that_gets_no_gradient_stops_the_run_in_its_first_step(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(task: Any, model: Any, batch: Any, problem: Any) -> Any:
        inner = model.get_base_model()
        with torch.no_grad():  # what a checkpointed layer does whose input asks for no gradient
            pooled = inner.bert(**{name: value for name, value in batch.items() if name != "labels"}).pooler_output
        return {"logits": inner.classifier(pooled)}

    monkeypatch.setattr(TextClassification, "forward", forward)
    told = stopped(read(write_recipe(tmp_path, tiny_bert)), monkeypatch)
    assert "trainable tensors get none" in told
    assert "use_reentrant: false" in told


def test_09_fewer_processes_than_asked_for_stop_the_run(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a real launcher: tests/train/test_two_processes.py."""
    told = stopped(read(write_recipe(tmp_path, tiny_bert)), monkeypatch, asked_world_size=2)
    assert "2 processes were asked for, 1 started" in told
    assert not (tmp_path / "run").exists()


def test_10_an_end_token_that_is_masked_like_padding_stops_the_run(
    tmp_path: Path, tiny_gpt2_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextGeneration.encode

    def encode(task: Any, rows: Any, problem: Any, **named: Any) -> Any:
        features, pad = whole(task, rows, problem, **named), problem.processor.pad_token_id  # which is the end token
        labels = [[-100 if label == pad else label for label in one] for one in features["labels"]]
        return {**features, "labels": labels}

    monkeypatch.setattr(TextGeneration, "encode", encode)
    told = stopped(completions(tmp_path, tiny_gpt2_head), monkeypatch)
    assert "do not end with '<|endoftext|>', so the model would never learn to stop" in told


@pytest.mark.parametrize(("labels", "ends"), [([5, 6, 2, 9], True), ([5, 6, 9], False), ([5, 6, 2, 7], False)])
def test_10_a_language_code_may_stand_behind_the_end_token(labels: list[int], ends: bool) -> None:
    features = datasets.Dataset.from_dict({"labels": [labels], "truncated": [False]})  # mBART writes: words </s> en_XX
    task: Any = SimpleNamespace(token_labels=("labels",), end_tokens=lambda _: (2,))
    processor = SimpleNamespace(all_special_ids=[0, 1, 2, 9], decode=lambda _: "</s>")
    problem: Any = SimpleNamespace(processor=processor)
    with nullcontext() if ends else pytest.raises(GateError, match="do not end with '</s>'"):
        check_ends(features, task=task, problem=problem)


def test_10_padding_that_is_learned_stops_the_run(
    tmp_path: Path, tiny_gpt2_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextGeneration.collator

    def collator(task: Any, problem: Any, **named: Any) -> Any:
        def collate(features: Sequence[Mapping[str, Any]]) -> Any:
            batch = whole(task, problem, **named)(features)
            return {**batch, "labels": batch["input_ids"].clone()}

        return collate

    monkeypatch.setattr(TextGeneration, "collator", collator)
    told = stopped(completions(tmp_path, tiny_gpt2_head), monkeypatch)
    assert "the model would learn to write padding" in told


def test_11_an_unknown_key_is_a_fault_with_the_nearest_name(tmp_path: Path, tiny_bert: Path) -> None:
    """Also: tests/recipe/test_words.py, every word that may be written is read."""
    with pytest.raises(RecipeError, match=r"peft_config\.lora_alfa = 16: .* has no field.*Did you mean 'lora_alpha'\?"):
        read(write_recipe(tmp_path, tiny_bert, peft_config={"lora_alfa": 16}))


def test_12_too_little_memory_for_the_longest_batch_shows_before_the_first_step(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: tests/train/test_first_batch.py."""
    whole = TextClassification.forward

    def forward(task: Any, model: Any, batch: Any, problem: Any) -> Any:
        if model.training and batch["input_ids"].numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(task, model, batch, problem)

    monkeypatch.setattr(TextClassification, "forward", forward)
    told = stopped(read(write_recipe(tmp_path, tiny_bert)), monkeypatch)
    assert "set training_args.per_device_train_batch_size: 4 and training_args.gradient_accumulation_steps: 2" in told


@pytest.mark.parametrize("keeps", [False, True], ids=["as it is", "logits kept"])
def test_14_an_evaluation_needs_as_much_memory_for_many_rows_as_for_few(
    tmp_path: Path, tiny_gpt2_head: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    prepared, task = prepare(completions(tmp_path, tiny_gpt2_head)), load_task("text-generation")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_gpt2_head).eval()
    kept: list[Any] = []
    peak = 0
    whole = TextGeneration.answer

    def answered(one: Any, model: Any, batch: Any, problem: Any, *, outputs: Any) -> Any:
        nonlocal peak
        if keeps:  # what transformers' own loop does
            kept.append(outputs["logits"])
        found = whole(one, model, batch, problem, outputs=outputs)
        sizes = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in gc.get_objects()
            if isinstance(tensor, torch.Tensor)
        }
        peak = max(peak, sum(sizes.values()))
        return found

    monkeypatch.setattr(TextGeneration, "answer", answered)
    features, peaks = prepared.features["train"], []
    for rows in (8, 24):
        kept.clear()
        gc.collect()
        peak = 0
        some = features.select([0] * rows)
        answer(
            model, some, task=task, problem=prepared.problem, precision=plan_precision(device="cpu", dtype="float32"),
            batch_size=4, measure_loss=True,
        )  # fmt: skip
        peaks.append(peak)
    logits = 4 * len(features[0]["input_ids"]) * model.config.vocab_size * 4
    grown = peaks[1] - peaks[0]
    assert grown >= 3 * logits if keeps else grown < logits


def test_every_pain_that_a_run_can_show_is_here() -> None:
    """The thirteenth, how much memory a run needs, is a question and no failure."""
    numbers = {name[5:7] for name in globals() if name.startswith("test_") and name[5:7].isdigit()}
    assert numbers == {f"{number:02}" for number in (*range(1, 13), 14)}
