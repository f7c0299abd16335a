"""Packed rows: nothing is lost, nobody sees another, and bases in which they do are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.errors import ModelError
from lora_ft.tasks.parts.language import IGNORED, causal_labels
from lora_ft.tasks.parts.packing import pack, packed_batch, prove_isolation
from tests.bases import make_base


def features_of(sizes: list[int]) -> dict[str, list[Any]]:
    ids = [[100 * row + position for position in range(size)] for row, size in enumerate(sizes)]
    labels = [causal_labels(one) for one in ids]
    return {"input_ids": ids, "labels": labels, "truncated": [False] * len(ids), "row": list(range(len(ids)))}


def causal_model(folder: Path, kind: str, **arguments: Any) -> Any:
    import transformers

    make_base(folder, kind, auto_class="AutoModelForCausalLM")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()


@given(sizes=st.lists(st.integers(2, 16), min_size=1, max_size=20))
def test_every_sequence_is_in_one_row_whole(sizes: list[int]) -> None:
    packed = pack(features_of(sizes), 16)
    found = []
    for ids, labels, segments, length in zip(
        packed["input_ids"], packed["labels"], packed["segments"], packed["length"], strict=True
    ):
        assert length == len(ids) == sum(segments) <= 16
        start = 0
        for size in segments:
            found.append(ids[start : start + size])
            assert labels[start] == IGNORED  # a sequence is not foretold by the one before it
            assert labels[start + 1 : start + size] == ids[start + 1 : start + size]
            start += size
    assert sorted(found) == sorted(features_of(sizes)["input_ids"])


def test_positions_begin_again_with_each_sequence_and_with_the_padding() -> None:
    packed = pack(features_of([5, 3, 6]), 8)
    rows = [{name: packed[name][row] for name in packed} for row in range(len(packed["row"]))]
    batch = packed_batch(rows, pad=0, settings={})
    assert [row["segments"] for row in rows] == [[6], [5, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2]]
    assert "attention_mask" not in batch


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_packed_sequence_gets_the_logits_that_it_gets_alone(tmp_path: Path, kind: str, attention: str) -> None:
    model = causal_model(tmp_path, kind, attn_implementation=attention)
    features = features_of([5, 3, 6, 4])
    features["input_ids"] = [[(7 * token) % 60 for token in ids] for ids in features["input_ids"]]
    packed = pack(features, 12)
    rows = [{name: packed[name][row] for name in packed} for row in range(len(packed["row"]))]
    batch = packed_batch(rows, pad=0, settings={"pad_to_multiple_of": 16})
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        together = model(**inputs, use_cache=False).logits
        for row, one in enumerate(rows):
            start = 0
            for size in one["segments"]:
                alone = model(input_ids=batch["input_ids"][row : row + 1, start : start + size]).logits
                assert torch.allclose(together[row, start : start + size], alone[0], atol=1e-5)
                start += size
    prove_isolation(model, vocabulary=60)


def test_a_base_whose_packed_sequences_see_each_other_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4)
    config.initializer_range = 0.5
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"processor\.packing: in this base the sequences .* see each other"):
        prove_isolation(transformers.AutoModelForCausalLM.from_config(config), vocabulary=60)


def test_a_base_that_ignores_positions_is_refused(tmp_path: Path) -> None:
    model = causal_model(tmp_path, "llama")

    class Deaf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, position_ids: Any = None, use_cache: bool = False) -> Any:
            return self.model(input_ids=input_ids, use_cache=use_cache)

    with pytest.raises(ModelError, match=r"processor\.packing"):
        prove_isolation(Deaf(), vocabulary=60)


def test_a_kernel_that_packs_only_batches_of_one_row_is_refused(tmp_path: Path) -> None:
    model = causal_model(tmp_path, "llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="in batches of several rows"):
        prove_isolation(model, vocabulary=60)
