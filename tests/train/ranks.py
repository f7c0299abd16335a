"""Ranks without a launcher: plain processes with the variables of one, that do several jobs after one import."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
Job = Mapping[str, Any]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, world: int, *, port: int) -> dict[str, str]:
    """What a launcher would set for one of the processes of a machine."""
    told = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": 1, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ROOT,
    }  # fmt: skip
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def run_ranks(
    jobs: Sequence[Job],
    *,
    world: int,
    folder: Path,
    module: str = "tests.train.ranks",
    variables: Mapping[str, str] | None = None,
) -> list[list[dict[str, Any]]]:
    """What each rank says of each job.

    Args:
        jobs: `{"do": "train", "recipe": file}` and others, see `DOES`; a list of recipes has one for each rank.
        world: How many ranks.
        folder: Where they write it down.
        module: What they run.
        variables: What a launcher sets beside the usual.
    """
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str), encoding="utf-8")
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            env={**environment(rank, world, port=port), **(variables or {})}, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [one.communicate(timeout=TIMEOUT_S)[0].decode() for one in started]
    finally:
        for one in started:
            one.kill()
    assert all(one.returncode == 0 for one in started), "\n\n".join(said)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


def train_job(job: Job) -> dict[str, Any]:
    """Trains; the metrics, and where chance stands afterwards."""
    import numpy as np
    import torch

    from lora_ft.errors import LoraFtError
    from lora_ft.train.run import RunOptions, train
    from tests.toy import read

    try:
        result = train(read(_own_recipe(job)), RunOptions())
    except LoraFtError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    draws = [float(torch.rand(())), float(np.random.random())]
    return {"metrics": result.metrics, "draws": draws}


def prepare_job(job: Job) -> dict[str, Any]:
    """Prepares rows; how many of them were encoded here, and the digest of what came out."""
    from lora_ft.assemble.prepare import prepare
    from lora_ft.tasks.text_classification import TextClassification
    from lora_ft.train.world import data_digest
    from tests.toy import read

    encode, encoded = TextClassification.encode, 0

    def counted(task: Any, rows: Any, problem: Any, *, training: bool = False) -> Any:
        nonlocal encoded
        encoded += len(rows["text"])
        return encode(task, rows, problem, training=training)

    TextClassification.encode = counted  # type: ignore[method-assign]
    folders = {name: Path(job[name]) for name in ("features_dir", "shared_dir") if name in job}
    prepared = prepare(read(_own_recipe(job)), **folders)
    TextClassification.encode = encode  # type: ignore[method-assign]
    return {"encoded": encoded, "digest": data_digest(prepared)}


def stop_and_go_on_job(job: Job) -> dict[str, Any]:
    """Trains until one rank gets a signal in a step, and goes on; how the first part ended."""
    import signal

    from lora_ft.errors import Interrupted
    from lora_ft.train.resumable import ResumableTrainer
    from lora_ft.train.run import RunOptions, train
    from tests.toy import read

    whole_step = ResumableTrainer.training_step

    def training_step(trainer: ResumableTrainer, *arguments: Any) -> Any:
        if trainer.state.global_step == job["step"] and os.environ["RANK"] == str(job["rank"]):
            signal.raise_signal(signal.SIGTERM)
        return whole_step(trainer, *arguments)

    ResumableTrainer.training_step = training_step  # type: ignore[method-assign]
    try:
        train(read(_own_recipe(job)), RunOptions())
        told = "never ended"
    except Interrupted as error:
        told = f"{error.exit_code} {error}"
    ResumableTrainer.training_step = whole_step  # type: ignore[method-assign]
    train(read(_own_recipe(job)), RunOptions(resume=True))
    return {"told": told}


def tell_job(job: Job) -> dict[str, Any]:
    """What all ranks say of themselves, without a collective."""
    from lora_ft.train.world import told_by_all

    return {"heard": told_by_all((f"machine of {os.environ['RANK']}", job["device"]))}


DOES = {"stop and go on": stop_and_go_on_job, "train": train_job, "prepare": prepare_job, "tell": tell_job}


def _own_recipe(job: Job) -> Path:
    given = job["recipe"]
    return Path(given if isinstance(given, str) else given[int(os.environ["RANK"])])


def main(folder: Path) -> None:
    """Does all jobs."""
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    said = [DOES[job["do"]](job) for job in jobs]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
