"""With adapters in the top layers, those below compute each row once, and all comes out as without that.

Apart from rounding: a row is computed in a batch of other rows, which may be wider. Measured on these bases: weights of
the adapter at most 6e-6 apart after 30 steps; on those that look back alone (GPT-2, Llama) equal to the last bit.
"""

from __future__ import annotations

import json
import logging
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.bert.modeling_bert import BertLayer

from lora_ft.assemble.fresh import build
from lora_ft.assemble.prefix_run import batches
from lora_ft.assemble.prepare import prepare
from lora_ft.errors import Interrupted
from lora_ft.train.arguments import training_arguments
from lora_ft.train.checkpoints import Start
from lora_ft.train.interrupt import Interruption
from lora_ft.train.prefix import know_prefix
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.run import RunOptions, TrainResult, train
from lora_ft.train.setup import make_trainer
from tests.bases import make_base
from tests.toy import read, write_recipe, write_reviews
from tests.train.ranks import run_ranks

LAYERS, BELOW = 4, 3
ROWS = 128 + 32
OTHERS = 128 + 32 + 40 + 6
"""Rows that are computed beside: for the centroid, the longest batch of an evaluation, the probe, a few once more."""
SHORT = {
    "num_train_epochs": 2, "logging_steps": 1, "eval_strategy": "epoch", "save_strategy": "epoch",
    "learning_rate": 5e-3, "per_device_train_batch_size": 16,
}  # fmt: skip
TOP = {"layers_to_transform": [BELOW], "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bert"), layers=LAYERS)


def experiment(folder: Path, base: Path, **sections: Any) -> Path:
    return write_recipe(folder, base, **{"peft_config": TOP, "training_args": SHORT, **sections})


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "adapter_model.safetensors")


def losses(result: TrainResult) -> list[float]:
    newest = max(result.folder.parent.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry]


def ran(result: TrainResult) -> Any:
    assert result.manifest is not None
    return result.manifest.run["lean"]["prefix_cache"]


def ready(file: Path, *overrides: str) -> ResumableTrainer:
    """The trainer of a run before its first step."""
    prepared = prepare(read(file, *overrides))
    arguments, precision = training_arguments(prepared)
    fresh = build(prepared, precision=precision, total_steps=1)
    return make_trainer(prepared, fresh, arguments, start=Start(None, []), made_of={}, interruption=Interruption())


@pytest.fixture
def rows_of_layers(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    return counted(monkeypatch)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many rows each layer of a BERT computes from now on."""
    seen: Counter[int] = Counter()
    forward = BertLayer.forward

    def count(layer: Any, hidden: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        seen[layer.attention.self.layer_idx or 0] += len(hidden)
        return forward(layer, hidden, *arguments, **named)

    monkeypatch.setattr(BertLayer, "forward", count)
    return seen


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> TrainResult:
    folder = tmp_path_factory.mktemp("without")
    return train(read(experiment(folder, bert), "lean.prefix_cache=false"), RunOptions())


@pytest.fixture(scope="module")
def passed_over(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> tuple[TrainResult, Counter[int]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        rows = counted(monkeypatch)
        return train(read(experiment(tmp_path_factory.mktemp("passed"), bert)), RunOptions()), rows


def test_losses_and_adapter_are_those_of_a_run_that_computes_all_and_the_layers_below_run_once(
    passed_over: tuple[TrainResult, Counter[int]], without: TrainResult
) -> None:
    found, rows = passed_over
    assert ran(without) == "off: lean.prefix_cache is false"
    facts = ran(found)
    assert {name: facts[name] for name in ("layers", "of", "rows", "computed", "in")} == {
        "layers": BELOW, "of": LAYERS, "rows": ROWS, "computed": ROWS, "in": "memory"
    }  # fmt: skip
    assert losses(found) == pytest.approx(losses(without), abs=1e-5)
    expected = weights(without)
    for name, tensor in weights(found).items():
        torch.testing.assert_close(tensor, expected[name], atol=5e-5, rtol=0)
    assert rows[0] < ROWS + OTHERS
    assert rows[LAYERS - 1] > 2 * ROWS


@pytest.mark.parametrize(
    ("kept", "limit"),
    [
        (True, ["lean.prefix_cache_ram_gb=0"]),
        pytest.param(True, [], marks=pytest.mark.slow),
        pytest.param(False, ["lean.prefix_cache_ram_gb=0"], marks=pytest.mark.slow),
    ],
)
def test_wherever_it_lies_and_whoever_computed_it_the_run_is_the_same_to_the_last_bit(
    tmp_path: Path, bert: Path, passed_over: tuple[TrainResult, Any], kept: bool, limit: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="lora_ft")
    cache = tmp_path / "cache" if kept else None
    if kept:
        know_prefix(ready(experiment(tmp_path / "first", bert), *limit), kept_in=cache)
    found = train(read(experiment(tmp_path / "second", bert), *limit), RunOptions(cache_dir=cache))
    where, computed = "a mapped file" if limit else "memory", 0 if kept else ROWS
    assert (ran(found)["in"], ran(found)["computed"]) == (where, computed)
    told = [record.message for record in caplog.records if record.message.startswith("prefix cache")]
    line = (
        f"prefix cache: {BELOW} of {LAYERS} layers are computed once: {ROWS} rows, 0 MB in {where}, {computed} computed"
    )
    assert told[-1].startswith(line)
    assert losses(found) == losses(passed_over[0])
    for key, tensor in weights(found).items():
        assert torch.equal(tensor, weights(passed_over[0])[key]), key
    if cache is not None:
        assert len(list((cache / "prefix").iterdir())) == 2


def test_a_sweep_reads_what_it_computed_and_all_that_it_depends_on_computes_anew(tmp_path: Path, bert: Path) -> None:
    computed = 0

    def known(*overrides: str, base: Path = bert, seed: int = 1) -> int:
        nonlocal computed
        folder = tmp_path / f"run-{computed}-{len(overrides)}-{seed}"
        file = experiment(folder, base)
        if seed != 1:
            write_reviews(folder / "data" / "train.csv", 128, seed=seed)
        trainer = ready(file, *overrides)
        know_prefix(trainer, kept_in=tmp_path / "cache")
        computed += 1
        return int(trainer.ran["prefix_cache"]["computed"])

    assert known() == ROWS
    same = ("peft_config.r=2", "training_args.learning_rate=1e-3", "training_args.seed=3", "peft_config.use_dora=true")
    assert known(*same) == 0
    assert known("peft_config.layers_to_transform=[2, 3]") == ROWS
    assert known("processor.max_length=8") == ROWS
    assert known(seed=5) == 128
    assert known("model.attn_implementation=eager") == ROWS
    assert known("model.dtype=bfloat16") == ROWS
    assert known(base=make_base(tmp_path / "other", layers=LAYERS, seed=1)) == ROWS


def test_without_room_on_disk_nothing_is_read_that_another_run_kept_and_nothing_of_it_is_lost(
    tmp_path: Path, bert: Path
) -> None:
    know_prefix(ready(experiment(tmp_path, bert)), kept_in=tmp_path / "cache")
    kept = sorted(path.name for path in (tmp_path / "cache" / "prefix").iterdir())
    trainer = ready(experiment(tmp_path, bert), "lean.prefix_cache_disk_gb=0.0")
    know_prefix(trainer, kept_in=tmp_path / "cache")
    assert trainer.ran["prefix_cache"]["computed"] == ROWS
    assert trainer.ran["prefix_cache"]["in"] == "memory"
    assert len(kept) == 2
    assert sorted(path.name for path in (tmp_path / "cache" / "prefix").iterdir()) == kept


def test_what_no_longer_fits_the_layers_is_thrown_away_with_one_line(
    tmp_path: Path, bert: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = experiment(tmp_path, bert)
    know_prefix(ready(file), kept_in=tmp_path / "cache")
    monkeypatch.setattr("lora_ft.models.hidden_rows._record", lambda _: {"bytes": 0, "sha256": ""})
    for entry in (tmp_path / "cache" / "prefix").iterdir():
        content = bytearray((entry / "hidden.bin").read_bytes())
        (entry / "hidden.bin").write_bytes(bytes(reversed(content)))
        (entry / "entry.json").write_text('{"bytes": 0, "sha256": ""}', encoding="utf-8")
    trainer = ready(file)
    know_prefix(trainer, kept_in=tmp_path / "cache")
    told = [record.message for record in caplog.records if "not what these layers compute" in record.message]
    assert len(told) == 2
    assert trainer.ran["prefix_cache"]["computed"] == ROWS


def test_rows_that_change_under_a_run_are_noticed_and_the_run_computes_on(
    tmp_path: Path, bert: Path, without: TrainResult, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ResumableTrainer.log

    def spoil(trainer: ResumableTrainer, logs: dict[str, float], *arguments: Any) -> None:
        if trainer.state.global_step == 8 and "eval_loss" in logs:  # the end of the first epoch
            trainer.known["train"].hidden.values.mul_(-1)
        log(trainer, logs, *arguments)

    monkeypatch.setattr(ResumableTrainer, "log", spoil)
    found = train(read(experiment(tmp_path, bert)), RunOptions())
    told = [
        record.message
        for record in caplog.records
        if record.message.startswith("prefix cache") and record.levelname == "WARNING"
    ]
    assert told == ["prefix cache: rows of epoch 1 are no longer what was kept of them: thrown away"]
    assert ran(found) == "thrown away in epoch 1: rows were no longer what was kept of them"
    assert losses(found) == pytest.approx(losses(without), abs=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_very_same_adapter(
    tmp_path: Path, bert: Path, passed_over: tuple[TrainResult, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = passed_over[0]
    file = experiment(tmp_path / "cut", bert)
    step = ResumableTrainer.training_step

    def signalled(trainer: ResumableTrainer, *arguments: Any) -> torch.Tensor:
        if trainer.state.global_step == 10:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, *arguments)

    monkeypatch.setattr(ResumableTrainer, "training_step", signalled)
    with pytest.raises(Interrupted):
        train(read(file), RunOptions())
    monkeypatch.undo()
    found = train(read(file), RunOptions(resume=True))
    assert losses(found) == losses(whole)
    for key, tensor in weights(found).items():
        assert torch.equal(tensor, weights(whole)[key]), key


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"peft_config": {}}, "no layer lies below the lowest one that is trained"),
        ({"model": {"dropout": 0.1}}, "these layers compute something else in training (dropout)"),
        (
            {"peft_config": {**TOP, "modules_to_save": ["word_embeddings"]}},
            "something before the layers is trained",
        ),
        ({"training_args": {**SHORT, "neftune_noise_alpha": 5.0}}, "training_args.neftune_noise_alpha"),
        ({"training_args": {**SHORT, "num_train_epochs": 1}}, "every row is read once, and nothing is kept"),
        (
            {"lean": {"prefix_cache_ram_gb": 0.0, "prefix_cache_disk_gb": 0.0}},
            "0.000173 GB of hidden states, for which there is no room",
        ),
        ({"processor": {"padding_side": "left"}}, "rows are not padded on the right alone"),
    ],
)
def test_where_it_cannot_be_all_is_as_it_was_and_the_manifest_says_why(
    tmp_path: Path, bert: Path, sections: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_ft")
    trainer = ready(experiment(tmp_path, bert, **sections))
    drawn = torch.get_rng_state()
    know_prefix(trainer, kept_in=None)
    assert trainer.ran["prefix_cache"] == f"off: {reason}"
    tried = not reason.startswith(("no layer", "training_args", "every row"))
    assert (f"prefix cache: off: {reason}" in caplog.messages) == tried
    assert not trainer.known
    assert torch.equal(torch.get_rng_state(), drawn)


def test_without_a_temporary_folder_all_is_as_it_was(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ready(experiment(tmp_path, bert, lean={"prefix_cache_ram_gb": 0.0}))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    know_prefix(trainer, kept_in=None)
    assert trainer.ran["prefix_cache"] == "off: 0.000173 GB of hidden states, for which there is no room"


@pytest.mark.slow
def test_checkpointed_activations_recompute_the_upper_layers_alone(
    tmp_path: Path, bert: Path, without: TrainResult, rows_of_layers: Counter[int]
) -> None:
    file = experiment(tmp_path, bert, training_args={**SHORT, "gradient_checkpointing": True})
    found = train(read(file), RunOptions())
    assert losses(found) == pytest.approx(losses(without), abs=1e-5)
    assert rows_of_layers[0] < ROWS + OTHERS


@pytest.mark.slow
def test_a_causal_model_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    base = make_base(tmp_path / "llama", "llama", layers=LAYERS, auto_class="AutoModelForCausalLM")
    found = []
    for name, switch in (("on", "true"), ("off", "false")):
        file = experiment(
            tmp_path / name, base, task="text-generation",
            dataset={"columns": {"text": "text"}}, training_args={**SHORT, "max_steps": 3, "logging_steps": 1,
            "per_device_train_batch_size": 48, "eval_strategy": "no"},
        )  # fmt: skip
        found.append(train(read(file, f"lean.prefix_cache={switch}"), RunOptions()))
    assert ran(found[0])["layers"] == BELOW
    assert losses(found[0]) == losses(found[1])
    for key, tensor in weights(found[0]).items():
        assert torch.equal(tensor, weights(found[1])[key]), key


@pytest.mark.slow
def test_two_processes_share_what_each_computed_a_part_of(tmp_path: Path, bert: Path) -> None:
    one = train(read(experiment(tmp_path / "one", bert, peft_config={**TOP, "lora_dropout": 0.0})), RunOptions())
    halves = {**SHORT, "per_device_train_batch_size": 8}
    file = experiment(tmp_path / "two", bert, training_args=halves, peft_config={**TOP, "lora_dropout": 0.0})
    run_ranks([{"do": "train", "recipe": file}], world=2, folder=tmp_path / "said")
    folder = tmp_path / "two" / "run" / "adapter"
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["run"]["lean"]["prefix_cache"]
    assert (facts["in"], facts["rows"]) == ("a mapped file", ROWS)
    expected = weights(one)
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=5e-5, rtol=0)
    assert not list(tmp_path.rglob("hidden.bin"))


def test_batches_follow_from_the_lengths_alone_and_hold_every_row_once() -> None:
    lengths = [7, 5_000, 2_000, 7, 2_000, 100]
    assert list(batches(lengths)) == [[1], [2, 4], [5, 0, 3]]
    assert list(batches([])) == []
