"""The rules across sections: each with a recipe that breaks it, and the one that does not."""

# ruff: noqa: E501 - a message is compared on the line that it is

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ft.errors import RecipeError
from lora_ft.recipe import device
from lora_ft.recipe.defaults import fill_defaults
from lora_ft.recipe.draft import Draft
from lora_ft.recipe.overrides import lay_over
from lora_ft.recipe.paths import resolve_paths
from lora_ft.recipe.read import _settle, read_recipe
from lora_ft.recipe.reader import read_document
from lora_ft.recipe.rules import RULES
from lora_ft.recipe.sections import check_sections
from tests.recipe.prepared_wrong import PREPARED_WRONG
from tests.recipe.stub import (
    GOOD,
    TASKS,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    fault,
    faults,
    of_task,
    read,
    write,
)

NO_BF16 = "flags\t\t: fpu sse avx2 avx512f\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without accelerator whose CPU has no bf16; the border of the process is where it is mocked."""
    root = tmp_path / "machine"
    (root / "proc").mkdir(parents=True)
    (root / "dev").mkdir()
    (root / "proc" / "cpuinfo").write_text(NO_BF16)
    monkeypatch.setattr(device, "ROOT", root)
    yield root


TRAIN = "training_args."
PEFT = "peft_config."
SCHEDULE = "training_args={output_dir: a, eval_strategy: steps, save_strategy: steps, "

BROKEN = [
    # precision and quantization
    (["training_args.fp16=true"], "training_args.fp16", "float16 is for GPUs, and this run is on a CPU. Leave it out"),
    (["training_args.bf16=true"], "training_args.bf16", "this machine has no GPU, and its CPU does not compute in bf"),
    (["training_args.bf16_full_eval=true"], "training_args.bf16_full_eval", "this machine has no GPU, and its CPU"),
    (["training_args.tf32=true"], "training_args.tf32", "TF32 is for NVIDIA GPUs, and this machine has none. Leave"),
    (
        ["quantization_config={load_in_4bit: true, load_in_8bit: true}"],
        "quantization_config.load_in_8bit = true",
        "load_in_4bit and load_in_8bit exclude each other. Keep one of them",
    ),
    (["quantization_config={}"], "quantization_config", "nothing is quantized: neither load_in_4bit nor load_in_8bit"),
    (
        ["quantization_config={load_in_8bit: true, bnb_4bit_quant_type: nf4}"],
        "quantization_config.bnb_4bit_quant_type = 'nf4'",
        "it has no effect without load_in_4bit: true. Leave it out",
    ),
    # adapter and optimizer
    (["optimizer.name=lorafa", "peft_config={peft_type: IA3}"], "optimizer.name", "lorafa works on the matrices A and"),
    (["optimizer.name=loraplus", "training_args.optim=adamw_torch"], "training_args.optim", "optimizer.name = loraplus"),
    (["optimizer.loraplus_lr_ratio=8"], "optimizer.loraplus_lr_ratio", "it has no effect without optimizer.name: lora"),
    (
        ["peft_config={target_modules: '.*query', layers_to_transform: [1]}"],
        "peft_config.layers_to_transform = [1]",
        "it needs target_modules as a list",
    ),
    (["peft_config.layers_pattern=h"], "peft_config.layers_pattern", "it needs layers_to_transform. Write both"),
    (["peft_config.target_modules=[]"], "peft_config.target_modules", "no module gets an adapter. Write module names"),
    (["peft_config.init_lora_weights=loftq"], "peft_config.init_lora_weights", "it needs loftq_config. Write loftq_con"),
    (
        ["peft_config={init_lora_weights: loftq, loftq_config: {loftq_bits: 4}}", "quantization_config.load_in_4bit=true"],
        "peft_config.init_lora_weights = 'loftq'",
        "LoftQ quantizes the base itself and starts from full weights. Leave quantization_config out",
    ),
    (["peft_config.eva_config={rho: 2.0}"], "peft_config.eva_config", "it has no effect without init_lora_weights: eva"),
    (
        ["peft_config={lora_bias: true, init_lora_weights: olora}"],
        "peft_config.lora_bias = true",
        "it needs init_lora_weights: true. Leave one of the two out",
    ),
    (["peft_config={lora_bias: true, use_dora: true}"], "peft_config.lora_bias = true", "DoRA has no bias. Leave"),
    (
        ["peft_config={use_dora: true, megatron_config: {a: 1}}"],
        "peft_config.use_dora = true",
        "DoRA does not support megatron_config. Leave one of the two out",
    ),
    # training
    (
        ["training_args.metric_for_best_model=f1_makro"],
        "training_args.metric_for_best_model",
        "text-classification has no such metric. Did you mean 'f1_macro'?",
    ),
    (
        ["training_args.metric_for_best_model=eval_accuracy", "model.problem_type=regression"],
        "training_args.metric_for_best_model",
        "the problem type regression has no such metric. Known: pearsonr, spearmanr, mse, loss",
    ),
    (
        ["training_args.metric_for_best_model=mse", "training_args.greater_is_better=true"],
        "training_args.greater_is_better",
        "mse is better when lower. Leave it out: it follows the metric",
    ),
    (
        ["training_args.metric_for_best_model=accuracy", "training_args.greater_is_better=false"],
        "training_args.greater_is_better",
        "accuracy is better when higher. Leave it out: it follows the metric",
    ),
    (["training_args.greater_is_better=true"], "training_args.greater_is_better", "it says nothing without metric_for"),
    (
        ["dataset.data_files=train.csv", "training_args.eval_strategy=epoch"],
        "training_args.eval_strategy",
        "there is no validation split to evaluate. Give dataset.data_files.validation, or dataset.validation: 0.1",
    ),
    (
        ["dataset.data_files=train.csv", "training_args.load_best_model_at_end=true"],
        "training_args.load_best_model_at_end",
        "there is no validation split to evaluate. Give dataset.data_files.validation",
    ),
    (
        ["dataset.data_files=train.csv", "early_stopping.early_stopping_patience=2"],
        "early_stopping.early_stopping_patience",
        "there is no validation split to watch. Give dataset.data_files.validation",
    ),
    (
        ["training_args.eval_strategy='no'", "training_args.load_best_model_at_end=true"],
        "training_args.load_best_model_at_end",
        "eval_strategy is 'no', so there is no best model. Write eval_strategy: epoch",
    ),
    (
        ["training_args={output_dir: a, eval_strategy: steps, save_strategy: epoch, load_best_model_at_end: true}"],
        "training_args.load_best_model_at_end = true",
        "the best model must be saved when it is evaluated, and eval_strategy is 'steps' but save_strategy 'epoch'",
    ),
    (
        [SCHEDULE + "eval_steps: 20, save_steps: 50}"],
        "training_args.save_steps = 50",
        "load_best_model_at_end needs save_steps to be a multiple of eval_steps (20). Write save_steps: 20",
    ),
    (
        [SCHEDULE + "eval_steps: 0.1, save_steps: 50}"],
        "training_args.save_steps = 50",
        "load_best_model_at_end needs save_steps to be a multiple of eval_steps (0.1)",
    ),
    (
        ["training_args.load_best_model_at_end=false", "early_stopping.early_stopping_patience=2"],
        "early_stopping.early_stopping_patience",
        "early stopping goes back to the best model. Write training_args.load_best_model_at_end: true",
    ),
    (
        ["early_stopping.early_stopping_threshold=0.1"],
        "early_stopping.early_stopping_threshold",
        "it has no effect without early_stopping_patience. Write early_stopping_patience: 2",
    ),
    (
        ["training_args={output_dir: a, eval_strategy: 'no', lr_scheduler_type: reduce_lr_on_plateau}"],
        "training_args.lr_scheduler_type = 'reduce_lr_on_plateau'",
        "it follows the evaluation. Write eval_strategy: epoch",
    ),
    (["training_args.dataloader_prefetch_factor=2"], "training_args.dataloader_prefetch_factor", "it needs dataloader_"),
    (
        ["training_args={output_dir: a, gradient_checkpointing: true, activation_checkpointing: false}"],
        "training_args.gradient_checkpointing = true",
        "activation_checkpointing is its new name and says the opposite. Keep activation_checkpointing",
    ),
    (
        ["training_args={output_dir: a, gradient_checkpointing: true}", "lean.activation_limit_gb=2"],
        "lean.activation_limit_gb = 2",
        "training_args.gradient_checkpointing: true computes all layers again, and a limit as many as it takes. Keep",
    ),
    (["lean.activation_limit_gb=0"], "lean.activation_limit_gb = 0", "expected a number above 0"),
    (
        ["training_args.gradient_checkpointing_kwargs={use_reentrant: true}"],
        "training_args.gradient_checkpointing_kwargs",
        "with use_reentrant: true adapters get no gradients, or wrong ones, below a frozen embedding. Leave it out",
    ),
    # batches by tokens
    (["lean.max_tokens_per_batch=0"], "lean.max_tokens_per_batch = 0", "expected a number at least 1"),
    (
        ["training_args.dataloader_drop_last=true", "lean.max_tokens_per_batch=64"],
        "training_args.dataloader_drop_last",
        "a batch under lean.max_tokens_per_batch is never incomplete. Leave it out",
    ),
    (
        ["training_args.auto_find_batch_size=true", "lean.max_tokens_per_batch=64"],
        "training_args.auto_find_batch_size",
        "lean.max_tokens_per_batch says how large batches are, and the worst of them is tried before the first step. L",
    ),
    (
        ["training_args.train_sampling_strategy=batch_rebalance", "lean.max_tokens_per_batch=64"],
        "training_args.train_sampling_strategy",
        "it cuts batches of its own, and so does lean.max_tokens_per_batch. Write group_by_length or random",
    ),
    # rows
    (["dataset.path=imdb"], "dataset.path", "path and data_files exclude each other. Keep one of them"),
    (["dataset={columns: {}}"], "dataset", "there are no rows. Write data_files: {train: FILE}, or path: with a hub id"),
    (["dataset.name=a"], "dataset.name", "it needs dataset.path, and the rows come from data_files: leave it out"),
    (["dataset.split={train: a}"], "dataset.split", "it needs dataset.path, and the rows come from data_files: name the"),
    (["dataset={data_files: {test: dev.csv}}"], "dataset.data_files = {test: 'dev.csv'}", "there is nothing to train on"),
    (["dataset={path: imdb, split: {test: test}}"], "dataset.split = {test: 'test'}", "there is nothing to train on. Wri"),
    (
        ["dataset.validation=0.1"],
        "dataset.validation",
        "dataset.data_files.validation already gives the validation split. Keep one of them",
    ),
    (
        ["dataset={path: imdb, split: {train: train, test: test}, test: 0.1}"],
        "dataset.test = 0.1",
        "dataset.split.test already gives the test split. Keep one of them",
    ),
    (
        ["dataset={data_files: train.csv, validation: 0.5, test: 0.5}"],
        "dataset.test = 0.5",
        "validation and test take 1 of the rows and leave none to train on",
    ),
    (
        ["dataset.data_files.validation=train.csv"],
        "dataset.data_files.validation",
        "train.csv is in the train split too. Give each split files of its own",
    ),
    (
        ["dataset.columns={text: review, text_pair: review}"],
        "dataset.columns.text_pair = 'review'",
        "the column 'review' is already read as 'text'",
    ),
    (["dataset.sample_by=paragraph"], "dataset.sample_by", "it says how .txt files become rows, and there is none. Leav"),
    (["dataset.media_dir=."], "dataset.media_dir", "the task text-classification reads no images or sounds. Leave it out"),
    # labels
    (
        ["dataset.label_names=[a, b, a]"],
        "dataset.label_names[2] = 'a'",
        "the label 'a' is named twice. Remove one of them",
    ),
    (["dataset.label_names=[a]"], "dataset.label_names", "expected at least 2 labels. Name them all, or leave it out"),
    (
        ["dataset.label_names=[a, b]", "model.problem_type=regression"],
        "dataset.label_names",
        "a regression has no labels. Leave it out",
    ),
    (["dataset.label_delimiter=''"], "dataset.label_delimiter", "expected at least one character. Leave it out for one"),
    (["dataset.columns.label=[]"], "dataset.columns.label", "expected at least one column"),
    (
        ["dataset.columns.label=[label, stars]", "dataset.label_delimiter=;"],
        "dataset.label_delimiter",
        "it splits the text of one label column, and several are given. Keep one of the two",
    ),
    (
        ["dataset.columns.label=[label, stars]", "dataset.label_names=[a, b]"],
        "dataset.label_names",
        "the labels are the label columns: label, stars. Leave it out",
    ),
    (
        ["dataset.label_delimiter=;", "model.problem_type=regression"],
        "model.problem_type",
        "dataset.label_delimiter gives each row several labels, which is a multi_label_classification. Leave",
    ),
    (
        ["loss.class_weight=balanced", "model.problem_type=regression"],
        "loss.class_weight",
        "a regression has no classes to weigh. Leave it out",
    ),
    (
        ["dataset.label_names=[pos, neg]", "loss.class_weight={poz: 2.0}"],
        "loss.class_weight.poz = 2.0",
        "dataset.label_names has no label 'poz'. Did you mean 'pos'?",
    ),
    (["loss.class_weight={a: -1}"], "loss.class_weight.a = -1", "expected a weight of at least 0"),
    (["loss.class_weight={}"], "loss.class_weight", "no class has a weight. Write 'balanced', or a weight for each"),
    (
        ["training_args.label_smoothing_factor=0.1", "dataset.label_delimiter=;"],
        "training_args.label_smoothing_factor",
        "smoothing spreads one label over all, and this is a multi_label_classification. Leave it out",
    ),
    # classes of unequal size
    (
        ["loss.focal_gamma=2", "model.problem_type=regression"],
        "loss.focal_gamma",
        "a regression has no classes that a focal loss is about. Leave it out",
    ),
    (
        ["loss.class_weight=balanced", "balancing.strategy=oversample"],
        "balancing.strategy",
        "loss.class_weight is written too. Each makes up for the unequal classes, both together count the rare ones",
    ),
    (["balancing.ratio=0.5"], "balancing.ratio", "it has no effect without balancing.strategy. Write strategy: overs"),
    (
        ["balancing.strategy=balanced", "training_args.train_sampling_strategy=sequential"],
        "training_args.train_sampling_strategy",
        "balancing draws the rows anew in each epoch. Write group_by_length or random",
    ),
    (["decision.threshold=1.5"], "decision.threshold", "expected a number above 0 and below 1"),
    (["decision.threshold={a: 1.5}"], "decision.threshold.a = 1.5", "expected a number above 0 and below 1"),
    (["decision.threshold={}"], "decision.threshold", "no label has a threshold. Write 'tuned', a number, or a number"),
    (
        ["dataset.label_names=[pos, neg]", "decision.threshold={poz: 0.5}"],
        "decision.threshold.poz = 0.5",
        "dataset.label_names has no label 'poz'. Did you mean 'pos'?",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "where", "message"), BROKEN, ids=lambda one: one if isinstance(one, str) else "")
def test_a_broken_rule_says_where_and_what_to_do(
    tmp_path: Path, machine: Path, overrides: list[str], where: str, message: str
) -> None:
    found = fault(tmp_path, *overrides)
    place, _, rest = found.partition(": " + message)
    assert rest or found.endswith(message), found
    set_by = [one for one in overrides if place.startswith(f"override {one}")]
    assert set_by, found
    assert place == f"override {set_by[0]}" or place == f"override {set_by[0]}: {where}"
    assert where.partition(" = ")[0] in place.replace("={", ".")


def test_each_rule_is_broken_by_some_recipe(tmp_path: Path, machine: Path) -> None:
    chat, tags = of_task(TEXT_GENERATION, "plain.txt"), of_task(TOKEN_CLASSIFICATION, "words.conll")
    with_families = f"# of a task that says its auto classes\n{GOOD}"
    facts = replace(TEXT_CLASSIFICATION, auto_classes=("AutoModelForSequenceClassification",), least_tokens=8)
    others = [
        (GOOD, ["peft_config.r=0"]),
        (GOOD, ["training_args={output_dir: a, fp16: true, bf16: true}"]),
        (GOOD, ["model={pretrained_model_name_or_path: ./base, revision: main}"]),
        (GOOD, ["model={pretrained_model_name_or_path: ./base}", "training_args.output_dir=base/runs"]),
        (GOOD, ["model={pretrained_model_name_or_path: ./base}", "processor.max_length=1000"]),
        (GOOD, ["dataset.columns.label=sentiment"]),
        (GOOD, ["model.problem_type=regresion"]),
        (GOOD, ["loss.loss_type=ipo"]),
        (with_families, ["model={pretrained_model_name_or_path: ./base}", "processor.max_length=4"]),
        (chat, ["generation_config={do_sample: false, temperature: 0.5}"]),
        (chat, ["dataset.label_names=[a, b]"]),
        (tags, ["dataset.columns={tags: a, spans: b}"]),
        *PREPARED_WRONG,
        (chat, ["augmentation.variants=2"]),
        (chat, ["augmentation.synonym_replacement=0.1"]),
        (chat, ["augmentation.back_translation=translate"]),
        (chat, ["dataset.columns={text: a}", "augmentation.random_deletion=0.1"]),
    ]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "vit", "max_position_embeddings": 512}')
    unbroken = set(RULES)
    for text, overrides in [*((GOOD, one[0]) for one in BROKEN), *others]:
        file = write(tmp_path, text)
        draft = Draft(lay_over(read_document(file), overrides), file.parent)
        check_sections(draft, TASKS if text is not with_families else {TEXT_CLASSIFICATION.name: facts})
        _settle(draft)
        resolve_paths(draft)
        fill_defaults(draft)
        unbroken -= {rule for rule in unbroken if list(rule(draft))}
    assert {rule.__name__ for rule in unbroken} == set()


@pytest.mark.parametrize(("word", "rows"), [("max_tokens_per_batch", "train"), ("max_tokens_per_eval_batch", "eval")])
def test_a_task_whose_rows_are_no_texts_has_no_budget_of_tokens(
    tmp_path: Path, machine: Path, word: str, rows: str
) -> None:
    tasks = {TEXT_CLASSIFICATION.name: replace(TEXT_CLASSIFICATION, lazy=True)}
    told = f"is not known before it is read. Leave it out: training_args.per_device_{rows}_batch_size says"
    with pytest.raises(RecipeError, match=told):
        read_recipe(write(tmp_path), overrides=[f"lean.{word}=64"], tasks=tasks)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training_args.metric_for_best_model=eval_f1/pos"],
        ["training_args.metric_for_best_model=loss", "training_args.greater_is_better=false"],
        ["quantization_config={load_in_4bit: true, bnb_4bit_compute_dtype: bfloat16}"],
        ["early_stopping.early_stopping_patience=2"],
        [SCHEDULE + "eval_steps: 20, save_steps: 60}"],
        [SCHEDULE + "eval_steps: 0.1, save_steps: 0.2}"],
        ["training_args={output_dir: a, eval_strategy: steps}"],
        ["training_args={output_dir: a, eval_strategy: steps, save_strategy: best}"],
        ["optimizer.name=loraplus", "optimizer.loraplus_lr_ratio=8"],
        ["peft_config={target_modules: [query], layers_to_transform: [0], layers_pattern: layer}"],
        ["peft_config={init_lora_weights: loftq, loftq_config: {loftq_bits: 4}}"],
        ["peft_config={init_lora_weights: pissa_niter_4, use_rslora: true}"],
        ["peft_config={peft_type: ADALORA}"],
        ["peft_config.layers_to_transform=[1]"],
        ["dataset.columns.label=[label, stars]", "dataset.label_names=[stars, label]"],
        ["dataset.columns.label=[label, stars]", "model.problem_type=multi_label_classification"],
        ["dataset.label_delimiter=;", "dataset.label_names=[a]"],
        ["dataset.label_names=[pos, neg]", "loss.class_weight={pos: 2.0, neg: 0}"],
        ["loss={focal_gamma: 2.0, class_weight: balanced}", "decision.threshold=0.3"],
        ["balancing={strategy: undersample, ratio: 0.5}", "loss.logit_adjustment=0"],
        ["dataset.columns={text: review, text_pair: pair, label: stars}", "model.problem_type=regression"],
        ["dataset={path: imdb, revision: v1, name: plain}"],
        ["training_args.num_train_epochs=0.5"],
        ["training_args.max_steps=20"],
        ["training_args.dataloader_num_workers=2", "training_args.dataloader_prefetch_factor=2"],
    ],
    ids=str,
)
def test_what_is_right_passes(tmp_path: Path, machine: Path, overrides: list[str]) -> None:
    read(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("peft_config.r=-1", "expected a number at least 1"),
        ("peft_config.lora_dropout=1.0", "expected a number at least 0 and below 1"),
        ("peft_config.lora_alpha=0", "expected a number above 0"),
        ("training_args.per_device_train_batch_size=0", "expected a number at least 1"),
        ("training_args.learning_rate=0", "expected a number above 0"),
        ("training_args.num_train_epochs=-1", "expected a number above 0"),
        (
            "training_args.logging_steps=1.5",
            "expected a whole number of steps, or below 1 a share of all steps",
        ),
        ("training_args.max_steps=0", "a run of no steps. Expected a number of steps, or -1 to count epochs"),
        ("processor.max_length=0", "expected a number at least 1"),
        ("processor.padding_side=middle", "expected 'left' or 'right'"),
        ("model.dropout=1.5", "expected a number at least 0 and below 1"),
        ("early_stopping.early_stopping_patience=0", "expected a number at least 1"),
    ],
)
def test_a_number_without_meaning_says_its_range(tmp_path: Path, override: str, message: str) -> None:
    assert fault(tmp_path, override) == f"override {override}: {message}"


@pytest.mark.parametrize("share", ["0", "1", "-0.1", "1.5"])
def test_a_share_lies_between_0_and_1(tmp_path: Path, share: str) -> None:
    found = fault(tmp_path, f"dataset={{data_files: train.csv, test: {share}}}")
    assert found.endswith(": expected a number above 0 and below 1")


def test_both_half_precisions_exclude_each_other(tmp_path: Path, machine: Path) -> None:
    (machine / "dev" / "nvidia0").write_text("")
    found = fault(tmp_path, "training_args.fp16=true", "training_args.bf16=true")
    assert found == "override training_args.fp16=true: fp16 and bf16 exclude each other. Leave both out, or keep one"


def test_an_output_folder_that_may_not_be_written_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert "training_args.output_dir = 'runs/shop': " in fault(tmp_path)
    assert fault(tmp_path).endswith(" may not be written to. Give another folder, or the right to write there")
    (tmp_path / "runs").mkdir()
    read(tmp_path)


def test_a_gpu_or_a_newer_cpu_or_no_proc_allows_bf16(tmp_path: Path, machine: Path) -> None:
    (machine / "proc" / "cpuinfo").write_text("flags : fpu avx512_bf16\n")
    read(tmp_path, "training_args.bf16=true")
    (machine / "proc" / "cpuinfo").write_text("Features : fp asimd bf16\n")
    read(tmp_path, "training_args.bf16=true")
    (machine / "proc" / "cpuinfo").unlink()
    read(tmp_path, "training_args.fp16=true")
    (machine / "proc" / "cpuinfo").write_text(NO_BF16)
    (machine / "proc" / "driver" / "nvidia" / "gpus" / "0000:01:00.0").mkdir(parents=True)
    read(tmp_path, "training_args.bf16=true")
    assert "does not compute in bfloat16" in fault(tmp_path, "training_args.bf16=true", "training_args.use_cpu=true")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    found = fault(tmp_path, "model={pretrained_model_name_or_path: ./base, revision: main}")
    assert found.endswith(
        "model.revision = 'main': model.pretrained_model_name_or_path is a folder, which has no revisions. Leave it out"
    )


def test_unknown_keys_and_broken_rules_come_in_one_report(tmp_path: Path, machine: Path) -> None:
    text = GOOD + "  bf16: true\n  sede: 1\n  load_best_model_at_end: true\n  eval_strategy: 'no'\n"
    assert [one.split(" = ")[0] for one in faults(tmp_path, text=text)] == [
        "x.yaml:10: training_args.bf16",
        "x.yaml:11: training_args.sede",
        "x.yaml:12: training_args.load_best_model_at_end",
    ]


def test_a_problem_type_must_be_one_of_the_tasks(tmp_path: Path) -> None:
    task = replace(TEXT_CLASSIFICATION, metrics={"regression": ("mse",)})
    with pytest.raises(RecipeError, match=r"has no such problem type\. Known: regression$"):
        read_recipe(
            write(tmp_path),
            overrides=["model.problem_type=single_label_classification"],
            tasks={task.name: task},
        )
