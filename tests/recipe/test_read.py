"""Reading a recipe: defaults, paths, and every fault at once with its line, its value and its remedy."""

# ruff: noqa: E501 - a message is compared on the line that it is

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ft.errors import RecipeError
from lora_ft.recipe.defaults import DEFAULTS, Default
from lora_ft.recipe.installed import version
from lora_ft.recipe.read import read_recipe, resolved_yaml
from lora_ft.recipe.values import problems
from lora_ft.recipe.words import section_struct
from tests.recipe.stub import GOOD, TASKS, fault, faults, read, write

EIGHT_MISTAKES = """\
task: text-classification
model:
  pretrained_model_name_or_path: bert-base-chinese
quantization_config:
  load_in_4bit: true
  bnb_4bit_quant_typ: nf4
peft_config:
  peft_type: LORA
  lora_alfa: 16
  use_dora: no
dataset:
  data_files: {train: train.csv, validation: dve.csv}
  columns: {text: review, label: sentiment}
training_args:
  output_dir: runs/shop
  learning_rate: "1e-4"
  seed: 0
  seed: 1
  lr_scheduler_type: cosin
"""

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


def test_eight_mistakes_come_in_one_report(tmp_path: Path) -> None:
    transformers, peft = f"transformers {version('transformers')}", f"peft {version('peft')}"
    found = faults(tmp_path, text=EIGHT_MISTAKES)
    schedulers = found[7].partition("expected ")[2].partition(". Did")[0]
    assert found == [
        f"x.yaml:6: quantization_config.bnb_4bit_quant_typ = 'nf4': BitsAndBytesConfig ({transformers}) has no field "
        "'bnb_4bit_quant_typ'. Did you mean 'bnb_4bit_quant_type'?",
        f"x.yaml:9: peft_config.lora_alfa = 16: LoraConfig ({peft}) has no field 'lora_alfa'. "
        "Did you mean 'lora_alpha'?",
        "x.yaml:10: peft_config.use_dora = 'no': expected true or false. YAML 1.2 reads no as text: write false",
        "x.yaml:12: dataset.data_files.validation = 'dve.csv': there is no such file. Did you mean 'dev.csv'?",
        "x.yaml:13: dataset.columns.label = 'sentiment': train.csv has no column 'sentiment'. Its columns: text, "
        "label, review, stars, pair",
        "x.yaml:16: training_args.learning_rate = '1e-4': expected a number. YAML read this as text: remove the quotes",
        "x.yaml:18: training_args.seed: the key is written twice (first in line 17). Remove one of them",
        f"x.yaml:19: training_args.lr_scheduler_type = 'cosin': expected {schedulers}. Did you mean 'cosine'?",
    ]


def test_a_small_recipe_gets_every_default(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    filled = {"peft_config": recipe.peft_config, "training_args": recipe.training_args}
    for default in DEFAULTS:
        assert filled[default.section][default.key] == default.value, default.key
    assert set(recipe.peft_config) | set(recipe.training_args) == {one.key for one in DEFAULTS} | {"output_dir"}


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda one: one.key)
def test_a_default_is_a_right_value_of_a_field_of_the_installed_class(default: Default) -> None:
    struct = section_struct(default.section, task=None, peft_type="LORA")
    assert struct is not None
    assert problems(default.value, struct.fields[default.key].accepts) == []


def test_without_validation_rows_nothing_is_evaluated(tmp_path: Path) -> None:
    arguments = read(tmp_path, "dataset.data_files=train.csv").training_args
    assert not {"eval_strategy", "load_best_model_at_end", "metric_for_best_model"} & set(arguments)
    assert arguments["save_strategy"] == "epoch"


@pytest.mark.parametrize(
    "source",
    ["dataset={data_files: train.csv, validation: 0.1}", "dataset={path: imdb}",
     "dataset={path: imdb, split: {train: train, validation: test}}"],
)  # fmt: skip
def test_any_validation_split_is_evaluated(tmp_path: Path, source: str) -> None:
    assert read(tmp_path, source).training_args["load_best_model_at_end"] is True


def test_a_hub_dataset_with_only_a_training_split_is_not_evaluated(tmp_path: Path) -> None:
    assert "eval_strategy" not in read(tmp_path, "dataset={path: imdb, split: {train: train}}").training_args


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"eval_strategy": "steps"}, {"eval_strategy": "steps", "save_strategy": "steps"}),
        ({"save_strategy": "steps", "save_steps": 50}, {"eval_strategy": "steps", "eval_steps": 50}),
        ({"eval_strategy": "steps", "eval_steps": 20}, {"save_strategy": "steps", "save_steps": 20}),
        ({"save_strategy": "best"}, {"eval_strategy": "epoch", "load_best_model_at_end": True}),
        ({"eval_strategy": "no"}, {"save_strategy": "epoch", "load_best_model_at_end": None}),
        ({"save_strategy": "no"}, {"eval_strategy": "epoch", "load_best_model_at_end": None}),
        ({"load_best_model_at_end": False}, {"eval_strategy": "epoch", "save_strategy": "epoch"}),
    ],
)
def test_evaluation_and_checkpoints_follow_each_other(
    tmp_path: Path, given: dict[str, object], expected: dict[str, object]
) -> None:
    arguments = read(tmp_path, *(f"training_args.{key}={json.dumps(value)}" for key, value in given.items()))
    assert {key: arguments.training_args.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("problem", "metric", "greater"),
    [(PROBLEMS[0], "f1_macro", True), (PROBLEMS[1], "f1_macro", True), (PROBLEMS[2], "pearsonr", True)],
)
def test_the_metric_of_the_best_model_follows_the_problem(
    tmp_path: Path, problem: str, metric: str, greater: bool
) -> None:
    arguments = read(tmp_path, f"model.problem_type={problem}").training_args
    assert (arguments["metric_for_best_model"], arguments["greater_is_better"]) == (metric, greater)


def test_the_direction_follows_a_metric_that_falls(tmp_path: Path) -> None:
    arguments = read(tmp_path, "training_args.metric_for_best_model=eval_mse", "model.problem_type=regression")
    assert arguments.training_args["greater_is_better"] is False
    assert read(tmp_path, "training_args.metric_for_best_model=loss").training_args["greater_is_better"] is False


def test_defaults_of_lora_are_not_given_to_other_methods(tmp_path: Path) -> None:
    assert read(tmp_path, "peft_config={peft_type: IA3}").peft_config == {"peft_type": "IA3"}
    recipe = read(tmp_path, "peft_config={target_parameters: [a.weight]}")
    assert "target_modules" not in recipe.peft_config


def test_paths_start_at_the_recipe_and_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    (tmp_path / "ds.json").write_text("{}")
    recipe = read(tmp_path, "model.pretrained_model_name_or_path=bert", "training_args.deepspeed=ds.json")
    assert recipe.model.pretrained_model_name_or_path == str(tmp_path / "bert")
    assert recipe.training_args["output_dir"] == str(tmp_path / "runs" / "shop")
    assert recipe.training_args["deepspeed"] == str(tmp_path / "ds.json")
    assert recipe.dataset.data_files == {
        "train": (str(tmp_path / "train.csv"),),
        "validation": (str(tmp_path / "dev.csv"),),
    }


def test_paths_do_not_depend_on_the_folder_that_the_command_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    here = read_recipe(Path("x.yaml"), tasks=TASKS)
    monkeypatch.chdir("/")
    assert replace(here, file=file) == read_recipe(file, tasks=TASKS)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("train.csv", {"train": ["train.csv"]}),
        ("[train.csv, more/b.tsv]", {"train": ["train.csv", "more/b.tsv"]}),
        ("more/*", {"train": ["more/a.csv", "more/b.tsv"]}),
        (
            "{train: ['more/*.csv', more/a.csv], test: 'dev.c[s]v'}",
            {"train": ["more/a.csv"], "test": ["dev.csv"]},
        ),
        ("'**/a.csv'", {"train": ["more/a.csv"]}),
    ],
)
def test_data_files_may_be_a_file_a_list_a_pattern_or_splits(
    tmp_path: Path, files: str, expected: dict[str, list[str]]
) -> None:
    (tmp_path / "more").mkdir()
    for name, between in (("a.csv", ","), ("b.tsv", "\t")):
        (tmp_path / "more" / name).write_text(f"text{between}label\nx{between}y\n")
    found = read(tmp_path, f"dataset={{data_files: {files}}}").dataset.data_files
    assert found == {split: tuple(str(tmp_path / one) for one in names) for split, names in expected.items()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pretrained_model_name_or_path=./brt", "there is no such folder. Did you mean './bert'?"),
        (
            "model.pretrained_model_name_or_path=a/b/c",
            "it is neither a folder beside the recipe nor a hub id",
        ),
        ("model.pretrained_model_name_or_path=''", "expected a path"),
        (
            "model.pretrained_model_name_or_path=empty",
            "this folder has no config.json. Expected the folder of a base",
        ),
        (
            "model.pretrained_model_name_or_path=adapter",
            "this folder holds an adapter. Expected the folder of a base",
        ),
        ("dataset.data_files.train=trian.csv", "there is no such file. Did you mean 'train.csv'?"),
        ("dataset.data_files.train=dta/x.csv", "there is no such file. The folder "),
        ("dataset.data_files.train=x*.csv", "no file matches this pattern in "),
        ("dataset.data_files.train=empty", "it is a folder. Expected files: write empty/*.csv"),
        (
            "dataset.data_files.train=notes.pdf",
            "notes.pdf is no kind of file that can be read. Expected .csv, .tsv",
        ),
        ("dataset.data_files.train=cat.jpg", "cat.jpg is one image or sound. Expected the folder whose subfolders are"),
        ("dataset.media_dir=mdia", "there is no such folder. Nothing in "),
        ("dataset.media_dir=train.csv", "it is a file. Expected a folder"),
        ("dataset.data_files.train=[]", "expected at least one file"),
        (
            "training_args.output_dir=train.csv",
            "it is a file. Expected a folder, which is made if it does not exist",
        ),
        (
            "training_args.output_dir=bert/runs",
            "it lies in the folder of the base model, which a run never writes to",
        ),
        ("training_args.deepspeed=dss.json", "there is no such file. Nothing in "),
    ],
)
def test_a_wrong_path_says_what_is_there(tmp_path: Path, override: str, message: str) -> None:
    for folder, name in (("bert", "config.json"), ("empty", "x"), ("adapter", "adapter_config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{}")
    (tmp_path / "notes.pdf").write_text("")
    (tmp_path / "cat.jpg").write_text("")
    base = () if "model" in override else ("model.pretrained_model_name_or_path=./bert",)
    assert fault(tmp_path, *base, override).startswith(f"override {override}: {message}")


def test_an_output_below_a_file_is_a_fault(tmp_path: Path) -> None:
    assert "train.csv is a file. Expected a folder" in fault(tmp_path, "training_args.output_dir=train.csv/runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    assert "it cannot be read: Permission denied" in fault(tmp_path, "dataset.data_files.train=shut/x.csv")


def test_a_path_too_long_for_the_system_is_a_fault(tmp_path: Path) -> None:
    assert "it cannot be read: File name too long" in fault(tmp_path, f"training_args.output_dir={'x' * 300}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "task: text-clasification",
            "x.yaml:1: task = 'text-clasification': there is no such task. Did you mean 'text-",
        ),
        ("task: [a]", f"x.yaml:1: task = ['a']: there is no such task. Known: {', '.join(sorted(TASKS))}"),
        ("", "x.yaml:1: task: it is missing. Write one of the tasks of `lora-ft tasks`"),
    ],
)
def test_a_recipe_needs_a_known_task(tmp_path: Path, line: str, message: str) -> None:
    assert fault(tmp_path, text=GOOD.replace("task: text-classification", line)).startswith(message)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "task: text-classification\n",
            [
                "x.yaml:1: model: it is missing. Write `model: {pretrained_model_name_or_path: NAME_OR_FOLDER}`",
                "x.yaml:1: dataset: it is missing. Write `dataset: {data_files: {train: FILE}}`",
                "x.yaml:1: training_args: it is missing. Write `training_args: {output_dir: FOLDER}`",
            ],
        ),
        (
            GOOD.replace("  output_dir: runs/shop", "  seed: 1"),
            ["x.yaml:8: training_args.output_dir: it is missing. Write the folder for the adapter"],
        ),
        (
            GOOD.replace("training_args:", "trainig_args:"),
            ["x.yaml:8: trainig_args = {output_dir: 'runs/shop'}: a recipe has no section 'trainig_args'. Did you mean "
             "'training_args'?"],
        ),
        (
            GOOD.replace("output_dir", "output_dri"),
            [f"x.yaml:9: training_args.output_dri = 'runs/shop': TrainingArguments (transformers "
             f"{version('transformers')}) has no field 'output_dri'. Did you mean 'output_dir'?"],
        ),
        (
            GOOD.replace("  peft_type: LORA\n", ""),
            ["x.yaml:4: peft_config = null: a run always trains an adapter on a frozen base. Write `peft_config: "
             "{peft_type: LORA}`; what it leaves out has defaults"],
        ),
        (
            GOOD.replace("peft_type: LORA", "peft_type: null"),
            ["x.yaml:5: peft_config.peft_type = null: a run always trains an adapter on a frozen base. Leave the key "
             "out (LORA), or name a method"],
        ),
        (
            GOOD.replace("peft_type: LORA", "peft_type: lora"),
            ["x.yaml:5: peft_config.peft_type = 'lora': peft has no such method. Did you mean 'LORA'?"],
        ),
        (
            GOOD.replace("peft_type: LORA", "{}"),
            [],
        ),
        (
            GOOD + "loss: []\n",
            ["x.yaml:10: loss = []: expected a mapping. Leave the section out, or give it keys"],
        ),
        (
            GOOD.replace("pretrained_model_name_or_path: bert-base-chinese", "pretrained_model_name_or_path: null"),
            ["x.yaml:3: model.pretrained_model_name_or_path = null: expected text. Leave the key out, or give it a "
             "value"],
        ),
        (
            GOOD + "  eval_strategy: null\n",
            ["x.yaml:10: training_args.eval_strategy = null: expected one of 'no', 'steps', 'epoch'. Leave the key "
             "out, or give it a value"],
        ),
    ],
)  # fmt: skip
def test_what_is_missing_or_null_has_a_remedy(tmp_path: Path, text: str, expected: list[str]) -> None:
    if expected:
        assert faults(tmp_path, text=text) == expected
    else:
        read(tmp_path, text=text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "peft_config.task_type=SEQ_CLS",
            "a recipe does not write task_type: the task decides it. It follows from",
        ),
        (
            "peft_config.inference_mode=true",
            "a recipe does not write inference_mode: it is set when the adapter is",
        ),
        (
            "peft_config.revision=main",
            "a recipe does not write revision: the base's revision is model.revision.",
        ),
        (
            "training_args.remove_unused_columns=false",
            "a recipe does not write remove_unused_columns: the task",
        ),
        (
            "training_args.label_names=[labels]",
            "a recipe does not write label_names: the task names the label tensors",
        ),
        (
            "training_args.resume_from_checkpoint=x",
            "a recipe does not write resume_from_checkpoint: going on is said",
        ),
        (
            "training_args.overwrite_output_dir=true",
            "a recipe does not write overwrite_output_dir: a finished adapter is",
        ),
    ],
)
def test_what_we_derive_is_not_written_by_hand(tmp_path: Path, override: str, message: str) -> None:
    assert fault(tmp_path, override).startswith(f"override {override}: {message}")


def test_modules_to_save_and_flags_of_the_launcher_may_be_written(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, "peft_config.modules_to_save=[pooler]", "training_args.do_train=true",
        "training_args.push_to_hub=false",
    )  # fmt: skip
    assert recipe.peft_config["modules_to_save"] == ["pooler"]


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("training_args.evaluation_strategy=epoch", "'. It is called eval_strategy now"),
        (
            "training_args.warmup_ratio=0.1",
            "'. Write warmup_steps, which takes a fraction of all steps below 1",
        ),
        ("model.torch_dtype=bfloat16", "'. It is called dtype now"),
        ("peft_config.learning_rate=1", "'. It belongs in training_args: move it there"),
        ("training_args.r=8", "'. It belongs in peft_config: move it there"),
        ("training_args.max_length=8", "'. It belongs in processor: move it there"),
        ("model.early_stopping_patience=8", "'. It belongs in early_stopping: move it there"),
        ("dataset.colums={}", "'. Did you mean 'columns'?"),
        ("processor.max_len=8", "'. Did you mean 'max_length'?"),
        ("dataset.columns.txt=a", "'. Did you mean 'text'?"),
        ("dataset.data_files.dev=dev.csv", " Known: train, validation, test"),
    ],
)
def test_an_unknown_key_says_where_it_belongs(tmp_path: Path, override: str, remedy: str) -> None:
    assert fault(tmp_path, override).endswith(remedy)


def test_a_key_of_a_nested_upstream_class_is_checked(tmp_path: Path) -> None:
    found = fault(tmp_path, "peft_config={init_lora_weights: eva, eva_config: {roh: 2.0}}")
    assert "peft_config.eva_config.roh = 2.0: EvaConfig (peft " in found
    assert "has no field 'roh'. Did you mean 'rho'?" in found


def test_a_whole_number_becomes_a_float_where_bitsandbytes_wants_one(tmp_path: Path) -> None:
    quantized = read(tmp_path, "quantization_config={load_in_8bit: true, llm_int8_threshold: 6}").quantization_config
    assert quantized is not None and type(quantized["llm_int8_threshold"]) is float


def test_labels_are_text(tmp_path: Path) -> None:
    recipe = read(tmp_path, "dataset.label_names=[0, 1, true, no]", "loss.class_weight={0: 1, 1: 2.5, true: 1}")
    assert recipe.dataset.label_names == ("0", "1", "true", "no")
    assert recipe.loss.class_weight == {"0": 1, "1": 2.5, "true": 1}


EVERYTHING = """\
task: text-classification
offline: true
model: {pretrained_model_name_or_path: a/b, revision: v1, trust_remote_code: true, attn_implementation: sdpa,
        dtype: float32, problem_type: multi_label_classification, dropout: keep}
quantization_config: {load_in_4bit: true, bnb_4bit_quant_type: nf4}
peft_config: {r: 4, target_modules: [query, "no", "1e-4"], rank_pattern: {query: 2}, init_lora_weights: false}
dataset: {data_files: {train: '*.csv'}, columns: {text: review, label: [label, stars]}, validation: 0.25, test: 0.5}
processor: {max_length: 64, truncation: longest_first}
loss: {class_weight: {label: 1.5, stars: 2}}
optimizer: {name: loraplus, loraplus_lr_ratio: 8}
early_stopping: {early_stopping_patience: 2, early_stopping_threshold: 0.01}
training_args: {output_dir: "übung: #1", learning_rate: 1e-7, save_total_limit: null, run_name: "no", logging_steps: 0.5,
                lr_scheduler_kwargs: {a: [1, "2", null]}}
"""


@pytest.mark.parametrize("text", [GOOD, EVERYTHING])
def test_a_resolved_recipe_reads_back_as_the_same_recipe(tmp_path: Path, text: str) -> None:
    recipe = read(tmp_path, text=text)
    file = tmp_path / "elsewhere.yaml"
    file.write_text(resolved_yaml(recipe), encoding="utf-8")
    again = read_recipe(file, tasks=TASKS)
    assert replace(again, file=recipe.file) == recipe
    assert resolved_yaml(again) == resolved_yaml(recipe)


def test_a_resolved_recipe_shows_every_section_that_says_something(tmp_path: Path) -> None:
    text = resolved_yaml(read(tmp_path, text=EVERYTHING))
    assert [line.partition(":")[0] for line in text.splitlines() if not line.startswith((" ", "-"))] == [
        "task", "offline", "model", "quantization_config", "peft_config", "dataset", "processor", "loss", "optimizer",
        "early_stopping", "training_args",
    ]  # fmt: skip


CHECK = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from lora_ft.recipe.read import read_recipe
from lora_ft.recipe.schema import Column, TaskFacts
task = TaskFacts("text-classification", (Column("text", "text", True, ""), Column("label", "label", True, "")), {{}},
                 frozenset(), {{"max_length": (int,)}})
try:
    read_recipe(Path(sys.argv[1]), tasks={{task.name: task}})
except Exception as error:
    print(len(error.faults))
print(sorted({{"torch", "transformers", "peft", "datasets", "numpy", "pyarrow"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(("text", "said"), [(GOOD, "[]\n"), (EIGHT_MISTAKES, "8\n[]\n")])
def test_a_check_is_done_in_half_a_second_without_importing_anything_heavy(
    tmp_path: Path, text: str, said: str
) -> None:
    file = write(tmp_path, text)
    code = CHECK.format(root=str(Path(__file__).parents[2]))
    seconds = []
    for _ in range(3):
        # CPU seconds of the process: on an idle machine its wall time, on a shared one still the same number.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout == said
    assert min(seconds) < 0.5, seconds


def test_half_a_recipe_never_raises_anything_but_a_recipe_error(tmp_path: Path) -> None:
    lines = EVERYTHING.splitlines()
    for cut in range(len(lines)):
        for text in ("\n".join(lines[:cut]), "\n".join(lines[:cut] + lines[cut + 1 :])):
            file = write(tmp_path, text)
            try:
                read_recipe(file, tasks=TASKS)
            except RecipeError as error:
                assert error.faults
