"""Every way in which an adapter folder can be damaged is refused with its own reason; a sound one passes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.adapters.folder import attach_saved
from lora_ft.adapters.manifest import FORMAT_VERSION
from lora_ft.adapters.probe import check_probe
from lora_ft.adapters.verify import read_manifest, refuse_other_base, verify_files
from lora_ft.errors import AdapterRefused
from tests.adapters.build import LABELS, edit_tensors, forward, load, resign, trained, write

WEIGHTS = "adapter_model.safetensors"


def open_fully(folder: Path, base: Path) -> None:
    """Everything that is checked before an adapter answers."""
    manifest = verify_files(folder)
    model = attach_saved(load(base, seed=9), folder, manifest)
    check_probe(model, manifest.probe, forward=forward, precision="float32", quantization=None)


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def reversed_rows(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.flip(0).contiguous() if ".classifier." in name else value for name, value in state.items()}


def fresh_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(99)
    return {name: torch.randn_like(value) * 0.02 if ".classifier." in name else value for name, value in state.items()}


def missing_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def truncated_resigned(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-64])
    content = json.loads((folder / "manifest.json").read_text())
    resigned_file(folder, content)


def resigned_file(folder: Path, content: dict[str, Any]) -> None:
    from lora_ft.adapters.manifest import checksum
    from lora_ft.adapters.verify import hash_file

    del content["checksum"]
    content["files"][WEIGHTS] = vars(hash_file(folder / WEIGHTS))
    content["checksum"] = checksum(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def flipped_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def half_copied(folder: Path) -> None:
    for name in ("manifest.json", "recipe.yaml", "tokenizer_config.json"):
        (folder / name).unlink()


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


def empty_mapping(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def edited_labels(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda content: content["labels"].reverse())


def resigned_labels(folder: Path) -> None:
    resign(folder, lambda content: content["labels"].reverse())


def one_label_less(folder: Path) -> None:
    edit_tensors(folder, lambda state: state, labels=LABELS[:2])
    resign(folder, lambda content: content["labels"].pop())


def rows_permuted(folder: Path) -> None:
    edit_tensors(folder, reversed_rows)
    resign(folder)


def head_restarted(folder: Path) -> None:
    edit_tensors(folder, fresh_head)
    resign(folder)


def head_dropped(folder: Path) -> None:
    edit_tensors(folder, lambda state: {name: one for name, one in state.items() if ".classifier." not in name})
    resign(folder)


def one_bias_dropped(folder: Path) -> None:
    edit_tensors(folder, lambda state: {name: one for name, one in state.items() if "classifier.bias" not in name})
    resign(folder)


def one_pair_dropped(folder: Path) -> None:
    edit_tensors(
        folder,
        lambda state: {name: one for name, one in state.items() if "layer.0.attention.self.query" not in name},
    )
    resign(folder)


def foreign_prefix(folder: Path) -> None:
    edit_tensors(folder, lambda state: {f"module.{name}": one for name, one in state.items()})
    resign(folder)


def other_architecture(folder: Path) -> None:
    edit_tensors(folder, lambda state: {name.replace(".bert.", ".roberta."): one for name, one in state.items()})
    resign(folder)


def lora_b_zeroed(folder: Path) -> None:
    edit_tensors(folder, lambda state: {name: one * 0 if "lora_B" in name else one for name, one in state.items()})
    resign(folder)


def not_a_number(folder: Path) -> None:
    def poison(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        next(one for name, one in state.items() if "lora_A" in name)[0, 0] = float("nan")
        return state

    edit_tensors(folder, poison)
    resign(folder)


def other_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update(good=7, bad=8))


def extra_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def extra_code(folder: Path) -> None:
    (folder / "modeling_bert.py").write_text("import os\n")


def extra_weights(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "model.safetensors")


def future_version(folder: Path) -> None:
    resign(folder, lambda content: content.update(format_version=FORMAT_VERSION + 1))


def unknown_key(folder: Path) -> None:
    resign(folder, lambda content: content.update(lables=["a"]))


def missing_key(folder: Path) -> None:
    resign(folder, lambda content: content.pop("probe"))


def wrong_type(folder: Path) -> None:
    resign(folder, lambda content: content.update(seed="0"))


def rank_changed(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(r=8))


def rank_changed_resigned(folder: Path) -> None:
    rank_changed(folder)
    resign(folder)


def alpha_changed_resigned(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(lora_alpha=64))
    resign(folder)


def head_forgotten_in_config(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(modules_to_save=["pooler"]))
    resign(folder)


def method_changed(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", lambda content: content.update(peft_type="LOHA"))
    resign(folder)


def link_out(folder: Path) -> None:
    shutil.move(folder / "recipe.yaml", folder.parent / "elsewhere.yaml")
    (folder / "recipe.yaml").symlink_to(folder.parent / "elsewhere.yaml")


def outside_path(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["files"]["../elsewhere"] = content["files"]["README.md"]

    resign(folder, change)


def metrics_edited(folder: Path) -> None:
    edit_json(folder / "metrics.json", lambda content: content.update(f1=0.9))


def recipe_edited(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("task: text-classificatiom\n")


CORRUPTIONS = [
    (missing_file, r"tokenizer\.json: missing\. The copy is incomplete"),
    (missing_weights, r"adapter_model\.safetensors: missing"),
    (truncated, r"adapter_model\.safetensors: \d+ bytes, recorded are \d+"),
    (truncated_resigned, r"adapter_model\.safetensors: \d+ bytes, its header says \d+"),
    (flipped_byte, r"adapter_model\.safetensors: the content was changed after training"),
    (half_copied, r"manifest\.json: missing\. The folder was not written by lora-ft train, or the copy"),
    (empty_manifest, r"manifest\.json: not readable as JSON"),
    (empty_mapping, r"manifest\.json: empty"),
    (edited_labels, r"manifest\.json: checksum does not match"),
    (resigned_labels, r"labels stored with the head are .* answers would get the wrong names"),
    (one_label_less, r"no tensor of the head .* has a row for each of 2 labels"),
    (rows_permuted, r"probe: logits differ from the recorded ones"),
    (head_restarted, r"probe: logits differ from the recorded ones"),
    (head_dropped, r"the head 'classifier' is missing"),
    (one_bias_dropped, r"does not fit the base: tensor .*classifier\.bias. is missing"),
    (one_pair_dropped, r"does not fit the base: 2 tensors missing .*query\.lora_A"),
    (foreign_prefix, r"foreign prefix \(first: module\.base_model"),
    (other_architecture, r"does not fit the base: tensor .*bert\.pooler.* is missing"),
    (lora_b_zeroed, r"probe: logits differ"),
    (not_a_number, r"lora_A.* holds numbers that are not finite"),
    (other_tokenizer, r"tokenizer\.json: "),
    (extra_pickle, r"adapter_model\.bin: not part of the adapter"),
    (extra_code, r"modeling_bert\.py: not part of the adapter"),
    (extra_weights, r"model\.safetensors: not part of the adapter"),
    (future_version, rf"format_version = {FORMAT_VERSION + 1}: written by a newer lora_ft.*Upgrade"),
    (unknown_key, r"unknown key 'lables'\. Did you mean 'labels'"),
    (missing_key, r"probe is missing"),
    (wrong_type, r"seed = '0': expected int"),
    (rank_changed, r"adapter_config\.json: "),
    (rank_changed_resigned, r"does not fit BertForSequenceClassification.*size mismatch"),
    (alpha_changed_resigned, r"probe: logits differ"),
    (head_forgotten_in_config, r"modules_to_save lacks the head \['classifier'\]"),
    (method_changed, r"peft_type = 'LOHA', manifest\.json says 'LORA'"),
    (link_out, r"recipe\.yaml: a link"),
    (outside_path, r"files: '\.\./elsewhere' lies outside the folder"),
    (metrics_edited, r"metrics\.json: "),
    (recipe_edited, r"recipe\.yaml: the content was changed|recipe\.yaml: \d+ bytes"),
]


@pytest.mark.parametrize(("corrupt", "reason"), CORRUPTIONS, ids=[one.__name__ for one, _ in CORRUPTIONS])
def test_a_damaged_folder_is_refused_with_its_reason(adapter, tiny_bert, corrupt, reason):
    corrupt(adapter)
    with pytest.raises(AdapterRefused, match=f"(?s){reason}"):
        open_fully(adapter, tiny_bert)


def test_the_sound_folder_passes_the_same_checks(adapter, tiny_bert):
    open_fully(adapter, tiny_bert)


def test_resigning_alone_changes_nothing(adapter, tiny_bert):
    edit_tensors(adapter, lambda state: state)
    resign(adapter)
    open_fully(adapter, tiny_bert)


def test_weights_of_another_adapter_are_refused(adapter, tiny_bert, tmp_path):
    other = trained(tiny_bert, {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": "all-linear"})
    write(tmp_path / "other", other, tiny_bert)
    shutil.copy(tmp_path / "other" / WEIGHTS, adapter / WEIGHTS)
    with pytest.raises(AdapterRefused, match="the content was changed after training"):
        open_fully(adapter, tiny_bert)
    resign(adapter)
    with pytest.raises(AdapterRefused, match="probe: logits differ"):
        open_fully(adapter, tiny_bert)


def test_another_base_of_the_same_shape_is_refused(adapter, tmp_path):
    from tests.bases import make_base

    manifest = read_manifest(adapter)
    with pytest.raises(AdapterRefused, match=r"trained on .* this base is another one: weights differ\. Give the base"):
        refuse_other_base(manifest, ["weights differ"])
    refuse_other_base(manifest, [])
    with pytest.raises(AdapterRefused, match="probe: logits differ"):
        open_fully(adapter, make_base(tmp_path / "other", seed=5))


def test_hidden_files_and_notes_of_the_user_are_left_alone(adapter):
    (adapter / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (adapter / "NOTES.md").write_text("mine\n")
    verify_files(adapter)


def test_verifying_needs_no_torch(adapter):
    code = (
        "import sys; from pathlib import Path; from lora_ft.adapters.verify import verify_files; "
        "verify_files(Path(sys.argv[1])); assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(adapter)], check=True)
