"""Several adapters on one base become one adapter folder that is whole, verified, and remembers where it came from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from lora_ft.adapters.manifest import Centroid
from lora_ft.adapters.merge_plan import Plan, read_sources
from lora_ft.assemble import combined as room
from lora_ft.assemble.combined import asking, asking_combined, mean_centroid, open_sources, save_combined
from lora_ft.assemble.merged import probe_answers
from lora_ft.assemble.saved import OpenOptions, open_adapter
from lora_ft.errors import AdapterRefused
from lora_ft.train.run import RunOptions, train
from tests.adapters.build import resign, snapshot
from tests.bases import make_base
from tests.toy import read, write_recipe

OFFLINE = OpenOptions(offline=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> list[Path]:
    """Two adapters whose labels lie in another order."""
    root = tmp_path_factory.mktemp("pair")
    found = []
    for index, labels in enumerate((["negative", "positive"], ["positive", "negative"])):
        recipe = write_recipe(
            root / f"run{index}", tiny_bert, dataset={"label_names": labels},
            training_args={"num_train_epochs": 2, "seed": index}, peft_config={"r": 4 * (index + 1)},
        )  # fmt: skip
        found.append(train(read(recipe), RunOptions()).folder)
    return found


def test_labels_are_matched_by_name_and_stand_in_the_order_of_the_first(folders: list[Path]) -> None:
    alone = [open_adapter(folder, OFFLINE) for folder in folders]
    inputs = transformers.AutoTokenizer.from_pretrained(folders[0])(["a great book"], return_tensors="pt")
    opened = open_sources(read_sources(folders), OFFLINE)
    with torch.no_grad():
        own = [one.model(**inputs).logits for one in alone]
        with asking(opened, 0) as first:
            assert torch.allclose(first.model(**inputs).logits, own[0], atol=1e-6)
        with asking(opened, 1) as second:
            assert second.manifest.labels == ("negative", "positive")
            assert torch.allclose(second.model(**inputs).logits, own[1].flip(1), atol=1e-6)


def test_the_new_folder_is_verified_and_loads_in_plain_peft(folders: list[Path], tmp_path: Path) -> None:
    before = [snapshot(folder) for folder in folders]
    opened = open_sources(read_sources(folders), OFFLINE)
    with asking_combined(opened, Plan("cat", (0.6, 0.4))) as (adapter, new):
        wanted = probe_answers(adapter)
    manifest = save_combined(
        tmp_path / "merged", opened=opened, new=new, merge={"method": "cat"}, metrics={"validation": {"f1": 0.5}},
        command="lora-ft merge", overwrite=False,
    )  # fmt: skip
    assert [snapshot(folder) for folder in folders] == before
    assert manifest.run["merge"] == {"method": "cat"}
    assert manifest.run["rows"] == {"train": 256, "validation": 64}
    assert manifest.labels == ("negative", "positive")
    assert manifest.learned is None
    again = open_adapter(tmp_path / "merged", OFFLINE)
    assert torch.allclose(probe_answers(again), wanted, atol=1e-5)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(manifest.base.name, num_labels=2)
    plain = peft.PeftModel.from_pretrained(base, str(tmp_path / "merged")).eval()
    inputs = again.processor(["a great book"], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(plain(**inputs).logits, again.model(**inputs).logits, atol=1e-5)


def test_what_does_not_answer_as_meant_leaves_the_earlier_adapter(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(folders[0], tmp_path / "merged"))
    before = snapshot(target)
    opened = open_sources(read_sources(folders), OFFLINE)
    with asking_combined(opened, Plan("cat", (0.6, 0.4))) as (_, new):
        pass

    def refuse(*given: object, **named: object) -> None:
        raise AdapterRefused("probe: logits differ")

    monkeypatch.setattr(room, "check_probe", refuse)
    with pytest.raises(AdapterRefused, match="logits differ"):
        save_combined(target, opened=opened, new=new, merge={}, metrics={}, command="", overwrite=True)
    assert snapshot(target) == before
    assert [one.name for one in tmp_path.iterdir()] == ["merged"], "no temporary folder is left"


def test_a_base_that_moved_and_changed_is_refused(folders: list[Path], tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=7)
    with pytest.raises(AdapterRefused, match="this base is another one"):
        open_sources(read_sources(folders), OpenOptions(base=str(other), offline=True))


def test_an_adapter_that_answers_otherwise_than_recorded_is_named(folders: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders[0], tmp_path / "tampered" / "adapter"))

    def change(content: dict[str, dict[str, list[list[float]]]]) -> None:
        content["probe"]["logits"] = [[value + 3 for value in row] for row in content["probe"]["logits"]]

    resign(copy, change)
    with pytest.raises(AdapterRefused, match=r"tampered.*probe: logits differ"):
        open_sources(read_sources([folders[0], copy]), OFFLINE)


def test_a_centroid_of_several_is_that_of_all_their_rows() -> None:
    rows = [np.random.default_rng(seed).normal(seed, 1 + seed, (10 * (seed + 1), 3)) for seed in range(3)]
    parts = [Centroid(mean=one.mean(0).tolist(), rows=len(one)) for one in rows]
    together = mean_centroid(parts)
    everything = np.concatenate(rows)
    assert together is not None
    assert together.rows == len(everything)
    assert np.allclose(together.mean, everything.mean(0))
    assert mean_centroid([*parts, None]) is None
