"""What a pool has in memory: bounded, least recently used out first, safe under threads, usable after each error."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import peft
import pytest
import torch

from lora_ft.adapters.pool import AdapterPool
from lora_ft.adapters.pool_pass import NotByRow
from lora_ft.adapters.pool_store import PoolLimits
from lora_ft.errors import AdapterError, AdapterRefused, InputError, RunError
from tests.adapters.test_pool import (
    EXACT,
    KINDS,
    alone,
    answers,
    base_of,
    check,
    folders,
    pool,
    save_peft,
    texts,
    trusting,
    truth,
)
from tests.bases import make_base

__all__ = ["folders", "pool", "truth"]


def test_threads_over_a_pool_that_is_too_small_take_turns(folders, truth, tiny_bert) -> None:
    wrong: list[str] = []
    with AdapterPool(base_of(tiny_bert), prove=trusting, limits=PoolLimits(max_adapters=2)) as pool:
        for name, folder in folders.items():
            pool.add(name, folder)

        def ask(names: Sequence[str]) -> None:
            for _ in range(3):
                found = answers(pool, names, texts(12) if len(names) == 12 else head(texts(12), len(names)))
                for row, (name, answer) in enumerate(zip(names, found, strict=True)):
                    if not torch.allclose(answer, truth[name][row], **EXACT):
                        wrong.append(name)

        pairs = [["small", "large"], ["large", "few"], ["few", "small"], ["dora"], ["rslora", "dora"], ["patterns"]]
        threads = [threading.Thread(target=ask, args=(pair,)) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
        assert len(pool.loaded()) <= 2
    assert not wrong


def head(batch: Mapping[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    return {key: value[:rows] for key, value in batch.items()}


def test_a_layer_may_have_lora_in_one_adapter_and_be_trained_in_full_in_another(tiny_bert, tmp_path: Path) -> None:
    config = {"r": 4, "target_modules": ["query"]}
    lora = save_peft(
        tmp_path / "lora",
        tiny_bert,
        {**config, "target_modules": ["query", "pooler.dense"], "modules_to_save": ["classifier"]},
        labels=2,
        seed=1,
    )
    full = save_peft(tmp_path / "full", tiny_bert, config, labels=2, seed=2)
    truth = [alone(folder, tiny_bert, texts(4), labels=2) for folder in (lora, full)]
    for first in (0, 1):
        with AdapterPool(base_of(tiny_bert), prove=trusting) as pool:
            pool.add("0", (lora, full)[first])
            pool.add("1", (full, lora)[first])
            answers(pool, ["0"] * 4, texts(4))
            for row, (name, answer) in enumerate(zip("0110", answers(pool, list("0110"), texts(4)), strict=True)):
                torch.testing.assert_close(answer, truth[int(name) ^ first][row], **EXACT)


def test_an_adapter_that_needs_passes_of_its_own_can_be_proved_again(folders, truth, tiny_bert, tmp_path: Path) -> None:
    proofs: list[bool] = []

    def lonely(pool: AdapterPool, name: str, folder: Path) -> bool:
        del folder
        with pool.on_trial(name), pool.rows([name, None]):
            proofs.append(True)
        return False

    folder = Path(shutil.copytree(folders["small"], tmp_path / "copy"))
    with AdapterPool(base_of(tiny_bert), prove=lonely, limits=PoolLimits(max_adapters=1)) as pool:
        pool.add("copy", folder)
        pool.add("few", folders["few"])
        for _ in range(2):
            check_alone(pool, "copy", truth["small"])
            with pytest.raises(InputError, match="cannot share a pass"):
                answers(pool, ["copy", None], texts(2))
            check_alone(pool, "few", truth["few"])
            (folder / "adapter_config.json").touch()
    assert len(proofs) == 3, "copy twice, few once"


def check_alone(pool: AdapterPool, name: str, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.stack(answers(pool, [name] * 12, texts(12))), wanted, **EXACT)


def test_loading_new_layers_gets_its_turn_among_passes_that_never_end(folders, truth, tiny_bert) -> None:
    stop = threading.Event()
    with AdapterPool(base_of(tiny_bert), prove=trusting) as pool:
        pool.add("few", folders["few"])
        pool.add("large", folders["large"])

        def answer_for_ever() -> None:
            while not stop.is_set():
                answers(pool, [None], head(texts(12), 1))

        threads = [threading.Thread(target=answer_for_ever) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            pool.prefetch(["few", "large"]).result(timeout=60)
        finally:
            stop.set()
        for thread in threads:
            thread.join()
        check_alone(pool, "large", truth["large"])
        with pool.rows(["few"]), pytest.raises(RunError, match="closed inside of rows"):
            pool.close()


def test_the_least_recently_used_goes_first_and_pinned_ones_stay(folders, tiny_bert) -> None:
    with AdapterPool(base_of(tiny_bert), prove=trusting, limits=PoolLimits(max_adapters=2)) as pool:
        for name in ("small", "large", "rslora", "few"):
            pool.add(name, folders[name], pin=name == "small")
        pool.prefetch(["small", "large"]).result()
        assert pool.loaded() == ["small", "large"]
        answers(pool, ["rslora"], texts(1))
        assert pool.loaded() == ["small", "rslora"]
        pool.pin("small", pinned=False)
        answers(pool, ["few"], texts(1))
        assert pool.loaded() == ["rslora", "few"]


def test_what_does_not_fit_is_one_error_and_the_pool_goes_on(pool, truth, folders, tiny_bert) -> None:
    with AdapterPool(base_of(tiny_bert), prove=trusting, limits=PoolLimits(max_adapters=2)) as small:
        for name, folder in folders.items():
            small.add(name, folder)
        with pytest.raises(AdapterError, match=r"no room for 'rslora'.*pinned or wanted by the same batch"):
            answers(small, ["small", "large", "rslora"], texts(3))
        check(small, ["small", "large"], truth)
    with AdapterPool(base_of(tiny_bert), prove=trusting, limits=PoolLimits(max_bytes=100)) as tiny:
        tiny.add("small", folders["small"])
        with pytest.raises(AdapterError, match=r"takes .* MB, the pool may hold 0.00 MB"):
            answers(tiny, ["small"], texts(1))
    for name, message in (("small", "already"), ("a/b", "cannot be the name"), ("..", "cannot be the name")):
        with pytest.raises(InputError, match=message):
            pool.add(name, folders["small"])
    with pytest.raises(InputError, match=r"no adapter 'smal'\. Did you mean 'small'"):
        answers(pool, ["smal"], texts(1))
    with pytest.raises(RunError, match="rows inside of rows"), pool.rows(["small"]), pool.rows(["few"]):
        pass
    with pool.rows(["small"]), pytest.raises(InputError, match="in use"):
        pool.remove("small")
    pool.remove("small")
    assert "small" not in pool.names()
    check(pool, ["few", "large"], truth)


def test_an_adapter_of_another_base_is_refused_and_the_pool_goes_on(pool, truth, tmp_path: Path) -> None:
    other = make_base(tmp_path / "base", "bert", hidden=48)
    pool.add("other", save_peft(tmp_path / "other", other, KINDS["small"], labels=2, seed=1))
    with pytest.raises(AdapterRefused, match="does not fit Linear"):
        answers(pool, ["small", "other"], texts(2))
    assert "other" not in pool.loaded()
    check(pool, ["small", "few"], truth)


def test_kinds_that_cannot_be_mixed_are_named(pool, tiny_bert, tmp_path: Path) -> None:
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    peft.get_peft_model(base_of(tiny_bert), config).save_pretrained(tmp_path / "ia3")
    pool.add("ia3", tmp_path / "ia3")
    with pytest.raises(AdapterError, match="is a IA3 adapter; a pool holds LoRA"):
        answers(pool, ["ia3"], texts(1))
    save_peft(tmp_path / "biased", tiny_bert, {**KINDS["few"], "lora_bias": True}, labels=2, seed=1)
    pool.add("biased", tmp_path / "biased")
    with pytest.raises(AdapterError, match="lora_bias = True"):
        answers(pool, ["biased"], texts(1))


def test_a_folder_that_changes_is_proved_again_and_one_that_changes_meanwhile_is_refused(
    folders, tiny_bert, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["small"], tmp_path / "copy"))
    proofs: list[str] = []

    def prove(pool: AdapterPool, name: str, place: Path) -> bool:
        proofs.append(name)
        with pool.on_trial(name):
            if len(proofs) == 2:
                (place / "adapter_config.json").touch()
            return True

    with AdapterPool(base_of(tiny_bert), prove=prove, limits=PoolLimits(max_adapters=1)) as pool:
        pool.add("copy", folder)
        pool.add("few", folders["few"])
        answers(pool, ["copy"], texts(1))
        proofs.clear()
        answers(pool, ["few"], texts(1))
        proofs.clear()
        answers(pool, ["copy"], texts(1))
        assert proofs == [], "an unchanged folder is proved once"
        answers(pool, ["few"], texts(1))
        (folder / "adapter_config.json").touch()
        proofs.append("before")
        with pytest.raises(AdapterError, match="was changed while it was loaded"):
            answers(pool, ["copy"], texts(1))
        proofs.append("after")
        answers(pool, ["copy"], texts(1))
        assert proofs.count("copy") == 2


def test_a_layer_that_computes_once_for_a_whole_batch_cannot_share_a_pass(tiny_bert, folders) -> None:
    model = base_of(tiny_bert)
    with AdapterPool(model, prove=trusting) as pool:
        pool.add("small", folders["small"])
        pool.add("few", folders["few"])
        query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
        with pool.rows(["small", "few"]), pytest.raises(NotByRow, match="computes 3 rows for a batch of 2"):
            query(torch.randn(3, 4, query.in_features))


def test_memory_is_that_of_the_tensors(pool) -> None:
    pool.prefetch(["small"]).result()
    before = pool.loaded_bytes()
    pool.prefetch(["large"]).result()
    tensors = peft.load_peft_weights(str(pool.folder("large")))
    assert pool.loaded_bytes() - before == sum(one.nbytes for one in tensors.values())
