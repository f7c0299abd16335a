"""A search tries each combination once, measures it on every domain, and keeps the best mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from lora_ft.adapters.merge_plan import Plan, read_sources
from lora_ft.assemble.combined import OpenSources, asking, open_sources, save_combined
from lora_ft.assemble.saved import OpenOptions, SavedAdapter
from lora_ft.errors import InputError, RunError
from lora_ft.evaluate import merge_search as room
from lora_ft.evaluate.merge_search import (
    Domain,
    Score,
    best,
    finish,
    methods_to_search,
    open_domains,
    search,
    tries,
    weight_sets,
)
from lora_ft.screen import combined_tables
from lora_ft.tasks.base import load_task, task_names
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe

TASKS = {name: load_task(name).facts() for name in task_names()}
OFFLINE = OpenOptions(offline=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("domains")
    found = []
    for index, epochs in enumerate((1, 3)):
        recipe = write_recipe(
            root / f"run{index}", tiny_bert, training_args={"num_train_epochs": epochs, "seed": index}
        )
        found.append(train(read(recipe), RunOptions()).folder)
    return found


@pytest.fixture
def opened(folders: list[Path]) -> OpenSources:
    return open_sources(read_sources(folders), OFFLINE)


def domains_of(opened: OpenSources) -> list[Domain]:
    return open_domains(opened, tasks=TASKS, batch_size=32, needed=True)


def test_each_adapter_is_measured_as_its_manifest_says(opened: OpenSources) -> None:
    for domain, source in zip(domains_of(opened), opened.sources, strict=True):
        assert domain.own["f1_macro"] == pytest.approx(source.manifest.metrics["validation"]["f1_macro"])


def test_a_search_keeps_the_best_mean_and_encodes_each_set_once(
    opened: OpenSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = SavedAdapter.encode
    monkeypatch.setattr(SavedAdapter, "encode", lambda self, rows: encoded.append(len(rows)) or encode(self, rows))
    domains = domains_of(opened)
    done: list[int] = []
    tried = search(
        opened, domains, methods=("cat", "ties"), density=None, seed=0, rank=None, batch_size=32, advance=done.append
    )
    assert encoded == [32, 32]
    assert len(tried) == len(done) == tries(2, 2)
    kept = best(tried, opened.views[0].task, "single_label_classification")
    assert kept.mean == max(one.mean for one in tried)
    single = {one.plan.weights: one.main for one in tried if one.kind == "single"}
    for index, domain in enumerate(domains):
        weights = tuple(float(index == one) for one in range(2))
        assert single[weights][domain.name] == pytest.approx(domain.own["f1_macro"])


def test_the_report_has_each_domain_before_and_after_and_goes_into_the_manifest(
    opened: OpenSources, tmp_path: Path
) -> None:
    domains = domains_of(opened)
    report, new = finish(opened, Plan("cat", (0.0, 1.0)), domains, batch_size=32)
    told = report.to_mapping()
    assert told["domains"]["run1"]["after"] == pytest.approx(told["domains"]["run1"]["before"])
    assert told["domains"]["run1"]["drift"]["validation"]["max"] < 1e-5
    assert told["domains"]["run0"]["drift"]["validation"]["max"] > 0.1
    mean = report.mean_metrics()
    after = [one["after"]["accuracy"] for one in told["domains"].values()]
    assert mean["validation"]["accuracy"] == pytest.approx(sum(after) / 2)
    manifest = save_combined(
        tmp_path / "merged", opened=opened, new=new, merge=told, metrics=mean, command="", overwrite=False
    )
    assert manifest.run["merge"]["domains"]["run0"]["before"] == domains[0].own


def test_rows_that_are_gone_are_an_error_for_a_search_alone(
    opened: OpenSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "validation_rows", lambda adapter, tasks: (None, "dev.csv: no such file"))
    with pytest.raises(InputError, match=r"--search: the validation rows of run0 cannot be read: dev\.csv"):
        open_domains(opened, tasks=TASKS, batch_size=32, needed=True)
    domains = open_domains(opened, tasks=TASKS, batch_size=32, needed=False)
    report, _ = finish(opened, Plan("cat", (0.5, 0.5)), domains, batch_size=32)
    assert report.mean_metrics() == {}
    assert report.domains["run0"]["why"] == "dev.csv: no such file"
    assert set(report.domains["run0"]["drift"]) == {"probe"}
    with asking(opened, 0) as adapter:
        assert adapter.manifest.labels == ("negative", "positive")


@pytest.mark.parametrize("count", [2, 3, 4, 5, 16])
def test_no_weights_are_tried_twice_and_the_named_ones_are_among_them(count: int) -> None:
    found = list(weight_sets(count))
    assert len({weights for weights, _ in found}) == len(found)
    assert ((1 / count,) * count, "uniform") in found
    assert ((1.0,) * count, "sum") in found
    kinds = [kind for _, kind in found]
    assert kinds.count("leave one out") == (count if count > 2 else 0)
    assert ("grid" in kinds) == (count <= 4)
    assert not any(sum(one > 0 for one in weights) == 1 for weights, _ in found), "those are tried once for all methods"


def test_a_greedy_soup_keeps_what_does_not_lower_the_mean(opened: OpenSources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five adapters whose worth is made up: 3 and 1 together are best, each other one spoils them."""
    worth = {3: 0.9, 1: 0.8, 0: 0.5, 2: 0.4, 4: 0.3}
    asked: list[Plan] = []

    class Nothing:
        def __init__(self, plan: Plan) -> None:
            asked.append(plan)

        def __enter__(self) -> tuple[Plan, None]:
            return asked[-1], None

        def __exit__(self, *error: object) -> None:
            return None

    def measured(adapter: Plan, *ignored: object, batch_size: int) -> dict[str, float]:
        members = [index for index, weight in enumerate(adapter.weights) if weight]
        mean = sum(worth[one] for one in members) / len(members)
        return {"f1_macro": 0.95 if members == [1, 3] else mean}

    domain = domains_of(opened)[0]
    monkeypatch.setattr(room, "asking_combined", lambda opened, plan: Nothing(plan))
    monkeypatch.setattr(room, "measure", measured)
    tried = search(opened, [domain] * 5, methods=("cat",), density=None, seed=0, rank=None, batch_size=32)
    soups = [[i for i, weight in enumerate(one.plan.weights) if weight] for one in tried if one.kind == "soup"]
    assert soups == [[3], [1, 3], [0, 1, 3], [1, 2, 3], [1, 3, 4]]
    assert len(tried) == tries(5, 1)
    kept = best(tried, opened.views[0].task, "single_label_classification")
    assert [i for i, weight in enumerate(kept.plan.weights) if weight] == [1, 3]


def test_a_metric_that_improves_downwards_is_searched_downwards() -> None:
    task = load_task("fill-mask")
    (problem_type,) = task.metrics
    low, high = (Score(Plan("cat", (1.0,)), {}, mean, "single") for mean in (2.0, 3.0))
    wanted = low if task.metrics[problem_type][0] in task.lower_is_better else high
    assert best([low, high], task, problem_type) is wanted
    assert best([high, low], task, problem_type) is wanted


@pytest.mark.parametrize("name", ["text-classification", "fill-mask"])
def test_what_is_not_finite_is_worst_and_alone_an_error(name: str) -> None:
    task = load_task(name)
    problem_type = next(iter(task.metrics))
    lost, infinite, good = (
        Score(Plan("cat", (1.0,)), {"books": mean}, mean, "single") for mean in (float("nan"), float("inf"), 0.5)
    )
    for tried in ([lost, infinite, good], [good, lost, infinite], [infinite, good, lost]):
        assert best(tried, task, problem_type) is good
    with pytest.raises(RunError, match=r"--search: none of 2 combinations has a finite .* Evaluate each adapter"):
        best([lost, infinite], task, problem_type)
    told = lost.to_mapping()
    assert (told["mean"], told["main"]) == (None, {"books": None})


def test_the_table_shows_what_is_not_finite() -> None:
    plan = Plan("cat", (1.0,))
    lost = Score(plan, {"books": float("nan")}, float("nan"), "single")
    none = {"max": 0.0, "mean": 0.0, "scale": 1.0}
    domain = {"before": {"f1": 0.5}, "after": {"f1": 0.5}, "why": None, "drift": {"probe": none}}
    report = room.MergeReport(plan, "f1", {"books": domain}, (lost,)).to_mapping()
    console = Console(width=200)
    with console.capture() as found:
        console.print(combined_tables({"sources": [{"name": "books"}], **report}, Path("merged"))[1])
    assert found.get().count("not finite") == 2


def test_adapters_of_different_ranks_are_searched_by_methods_that_can(folders: list[Path]) -> None:
    from dataclasses import replace

    first, second = read_sources(folders)
    assert "linear" in methods_to_search((), [first, second])
    other = replace(second, ranks=dict.fromkeys(second.ranks, 8))
    assert methods_to_search((), [first, other]) == ("cat", "ties_svd", "dare_linear_svd", "magnitude_prune_svd")
    assert methods_to_search(("svd", "svd"), [first, other]) == ("svd",)
