"""A pool beside plain peft: every row as if it were alone with its own adapter, whatever else is in the batch."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.adapters.pool import AdapterPool
from tests.adapters.build import HEADS
from tests.bases import make_base

EXACT = {"rtol": 1e-5, "atol": 1e-5}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
    "large": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
    "dora": {"r": 4, "use_dora": True, "target_modules": "all-linear"},
    "patterns": {
        "r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"key": 3}, "target_modules": ["query", "key", "dense"],
    },
    "few": {"r": 4, "target_modules": ["query"]},
}  # fmt: skip


def base_of(folder: Path, *, labels: int = 2, **options: Any) -> Any:
    torch.manual_seed(1)
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(folder, num_labels=labels, pad_token_id=0, **options).eval()


def save_peft(
    folder: Path, base: Path, config: Mapping[str, Any], *, labels: int, seed: int, kind: str = "bert"
) -> Path:
    """An adapter by plain peft, with random weights everywhere."""
    saved = list(HEADS[kind])
    arguments = {"task_type": "SEQ_CLS", "modules_to_save": saved, "init_lora_weights": False, **config}
    if arguments["target_modules"] == "all-linear":
        arguments["exclude_modules"] = rf".*({'|'.join(saved)}).*"
    model: Any = peft.get_peft_model(base_of(base, labels=labels), peft.LoraConfig(**arguments))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def alone(folder: Path, base: Path, inputs: Mapping[str, torch.Tensor], *, labels: int) -> torch.Tensor:
    """What plain peft answers, one row after the other."""
    model = peft.PeftModel.from_pretrained(base_of(base, labels=labels), str(folder)).eval()
    rows = range(len(next(iter(inputs.values()))))
    with torch.no_grad():
        return torch.cat([model(**{key: value[row : row + 1] for key, value in inputs.items()}).logits for row in rows])


def trusting(pool: AdapterPool, name: str, folder: Path) -> bool:
    """A proof that believes everything."""
    del folder
    with pool.on_trial(name):
        return True


def texts(rows: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (rows, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pool")
    labels = {"large": 4, "few": 3}
    return {
        name: save_peft(root / name, tiny_bert, config, labels=labels.get(name, 2), seed=number)
        for number, (name, config) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def truth(folders: dict[str, Path], tiny_bert: Path) -> dict[str, torch.Tensor]:
    """Plain peft's answers of each adapter for each of 12 rows."""
    labels = {"large": 4, "few": 3}
    found = {name: alone(folder, tiny_bert, texts(12), labels=labels.get(name, 2)) for name, folder in folders.items()}
    with torch.no_grad():
        return {**found, "bare": base_of(tiny_bert)(**texts(12)).logits}


@pytest.fixture
def pool(folders: dict[str, Path], tiny_bert: Path) -> Iterator[AdapterPool]:
    with AdapterPool(base_of(tiny_bert), prove=trusting) as made:
        for name, folder in folders.items():
            made.add(name, folder)
        yield made


def answers(pool: AdapterPool, names: Sequence[str | None], inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """One row of logits for each row, in the order asked, each as wide as its own head."""
    found: dict[int, torch.Tensor] = {}
    with pool.rows(names) as now:
        outputs = pool.model(**now.arrange(inputs))
        for segment, own in now.split(outputs):
            found.update(zip(segment.rows, own["logits"], strict=True))
    return [found[row] for row in range(len(names))]


def check(pool: AdapterPool, names: Sequence[str | None], truth: Mapping[str, torch.Tensor]) -> None:
    inputs = {key: value[: len(names)] for key, value in texts(12).items()}
    for row, (name, answer) in enumerate(zip(names, answers(pool, names, inputs), strict=True)):
        torch.testing.assert_close(answer, truth[name or "bare"][row], **EXACT, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_one_adapter_are_answered_as_plain_peft_does(pool, truth, name) -> None:
    check(pool, [name] * 12, truth)


def test_every_kind_and_the_bare_base_share_one_pass(pool, truth) -> None:
    names = [*KINDS, None]
    check(pool, [*names, *reversed(names)][:12], truth)


@given(names=st.lists(st.sampled_from([*KINDS, None]), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_rows_gives_the_answers_in_the_order_asked(pool, truth, names) -> None:
    check(pool, names, truth)


def test_the_probe_of_these_tests_tells_adapters_apart(truth) -> None:
    for one, other in itertools.combinations([name for name in truth if truth[name].shape[1] == 2], 2):
        assert (truth[one] - truth[other]).abs().max() > 0.01, f"{one} {other}"


def test_outside_of_rows_and_after_close_the_base_is_as_it_was(folders, truth, tiny_bert) -> None:
    model = base_of(tiny_bert)
    before = copy.deepcopy(model.state_dict())
    with AdapterPool(model, prove=trusting) as pool:
        pool.add("dora", folders["dora"])
        answers(pool, ["dora", None], texts(2))
        with torch.no_grad():
            assert torch.equal(model(**texts(12)).logits, truth["bare"])
    assert not any(module._forward_hooks for module in model.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_restore_puts_padded_logits_into_the_order_asked(pool, truth) -> None:
    names = ["few", "small", "few", None]
    with pool.rows(names) as now:
        logits = now.restore(pool.model(**now.arrange(texts(4)))["logits"])
    assert logits.shape == (4, 3)
    for row, name in enumerate(names):
        wanted = truth[name or "bare"][row]
        torch.testing.assert_close(logits[row, : len(wanted)], wanted, **EXACT)
        assert torch.isneginf(logits[row, len(wanted) :]).all()


def test_switching_there_and_back_is_bit_equal(pool) -> None:
    first = answers(pool, ["small"] * 3, texts(3))
    answers(pool, ["large"] * 3, texts(3))
    again = answers(pool, ["small"] * 3, texts(3))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "gpt2", "llama"])
def test_other_families_mix_as_exactly(kind: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind)
    config = {"r": 4, "target_modules": "all-linear"}
    folders = {
        name: save_peft(tmp_path / name, base, {**config, **more}, labels=labels, seed=seed, kind=kind)
        for seed, (name, labels, more) in enumerate([("a", 2, {}), ("b", 3, {}), ("c", 2, {"use_dora": True})])
    }
    truth = {name: alone(folder, base, texts(6), labels=3 if name == "b" else 2) for name, folder in folders.items()}
    with AdapterPool(base_of(base), prove=trusting) as pool:
        for name, folder in folders.items():
            pool.add(name, folder)
        names = ["b", "a", "c", "a", "b", "c"]
        for row, (name, answer) in enumerate(zip(names, answers(pool, names, texts(6)), strict=True)):
            torch.testing.assert_close(answer, truth[name][row], **EXACT)


@pytest.mark.parametrize(("kind", "target"), [("resnet", "convolution"), ("mobilenet_v2", "convolution")])
@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_mix_as_exactly(kind: str, target: str, dora: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind)
    auto = transformers.AutoModelForImageClassification

    def load() -> Any:
        torch.manual_seed(1)
        return auto.from_pretrained(base, num_labels=2).eval()

    from lora_ft.adapters.convolutions import show_geometry

    plain = [
        name for name, module in load().named_modules() if isinstance(module, torch.nn.Conv2d) and module.groups == 1
    ]
    deep = [
        name for name, module in load().named_modules() if isinstance(module, torch.nn.Conv2d) and module.groups > 1
    ]
    targets = plain if dora else [*plain, *(name for name in deep if not 32 % load().get_submodule(name).groups)]
    inputs = {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))}
    truth = {}
    for seed, name in enumerate("ab"):
        config = peft.LoraConfig(
            r=32 if not dora else 4, target_modules=targets, modules_to_save=["classifier"], use_dora=dora,
            init_lora_weights=False,
        )  # fmt: skip
        model: Any = peft.get_peft_model(load(), config)
        for parameter in model.parameters():
            parameter.data += 0.02 * seed if parameter.requires_grad else 0
        model.save_pretrained(tmp_path / name)
        show_geometry(model)
        with torch.no_grad():
            rows = [model.eval()(pixel_values=inputs["pixel_values"][row : row + 1]).logits for row in range(4)]
        truth[name] = torch.cat(rows)
    assert (truth["a"] - truth["b"]).abs().max() > 1e-3
    with AdapterPool(load(), prove=trusting) as pool:
        pool.add("a", tmp_path / "a")
        pool.add("b", tmp_path / "b")
        for row, (name, answer) in enumerate(zip("abba", answers(pool, list("abba"), inputs), strict=True)):
            torch.testing.assert_close(answer, truth[name][row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_base_mixes_as_plain_peft_on_it(bits: str, folders, tiny_bert) -> None:
    quantization = transformers.BitsAndBytesConfig(**{bits: True}, llm_int8_skip_modules=["classifier", "bert.pooler"])

    def load() -> Any:
        return base_of(tiny_bert, quantization_config=quantization)

    inputs, truth = texts(4), {}
    for name in ("small", "rslora"):
        model = peft.PeftModel.from_pretrained(load(), str(folders[name])).eval()
        with torch.no_grad():
            truth[name] = model(**inputs).logits
    with AdapterPool(load(), prove=trusting, one_at_a_time=True) as pool:
        pool.add("small", folders["small"])
        pool.add("rslora", folders["rslora"])
        for name, wanted in truth.items():
            torch.testing.assert_close(torch.stack(answers(pool, [name] * 4, inputs)), wanted, rtol=1e-4, atol=1e-4)
        noise = 0.1 if bits == "load_in_8bit" else 1e-4  # LLM.int8 finds its outlier columns over the whole batch
        mixed = ["small", "rslora"] * 2
        for row, (name, answer) in enumerate(zip(mixed, answers(pool, mixed, inputs), strict=True)):
            torch.testing.assert_close(answer, truth[name][row], rtol=noise, atol=noise)


def test_under_autocast_to_16_bits_rows_are_answered_as_plain_peft_does(folders, tiny_bert) -> None:
    inputs, truth = texts(4), {}
    for name in ("small", "rslora", "dora"):
        model = peft.PeftModel.from_pretrained(base_of(tiny_bert), str(folders[name])).eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            truth[name] = model(**inputs).logits.float()
    names = ["dora", "small", "rslora", "small"]
    with AdapterPool(base_of(tiny_bert), prove=trusting) as pool, torch.autocast("cpu", dtype=torch.bfloat16):
        for name in truth:
            pool.add(name, folders[name])
        found = answers(pool, names, inputs)
    for row, (name, answer) in enumerate(zip(names, found, strict=True)):
        torch.testing.assert_close(answer.float(), truth[name][row], rtol=0.03, atol=0.03)
    assert (truth["small"] - truth["rslora"]).abs().max() > 0.1


def test_generation_with_a_cache_and_beams_gives_each_row_its_own_tokens(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", auto_class="AutoModelForCausalLM")
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(base).eval()  # noqa: E731
    ids = torch.randint(5, 60, (5, 6), generator=torch.Generator().manual_seed(4))
    names, truth = ["a", "b", None, "b", "a"], {}
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for seed, name in enumerate("ab"):
        model: Any = peft.get_peft_model(
            load(), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
        )
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / name)
        for beams in (1, 3):
            truth[name, beams] = [
                model.generate(input_ids=ids[row : row + 1], num_beams=beams, **how)[0] for row in range(5)
            ]
    for beams in (1, 3):
        truth[None, beams] = [
            load().generate(input_ids=ids[row : row + 1], num_beams=beams, **how)[0] for row in range(5)
        ]
    assert any(not torch.equal(one, other) for one, other in zip(truth["a", 1], truth["b", 1], strict=True))
    with AdapterPool(load(), prove=trusting) as pool:
        pool.add("a", tmp_path / "a")
        pool.add("b", tmp_path / "b")
        for beams in (1, 3):
            with pool.rows(names) as now:
                given_ids = now.arrange({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
                found = now.restore(pool.model.generate(**given_ids, num_beams=beams, **how))
            for row, name in enumerate(names):
                length = min(found.shape[1], len(truth[name, beams][row]))
                assert torch.equal(found[row, :length], truth[name, beams][row][:length]), (beams, row, name)


def test_threads_with_different_adapters_each_get_their_own_answers(pool, truth) -> None:
    wrong: list[str] = []

    def ask(name: str | None, start: int) -> None:
        for turn in range(6):
            row = (start + turn) % 12
            inputs = {key: value[row : row + 1] for key, value in texts(12).items()}
            (answer,) = answers(pool, [name], inputs)
            if not torch.allclose(answer, truth[name or "bare"][row], **EXACT):
                wrong.append(f"{name} {row}")

    threads = [threading.Thread(target=ask, args=(name, start)) for start, name in enumerate([*KINDS, None] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
