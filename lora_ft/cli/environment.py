"""What every verb needs before it starts: the environment, logging, the recipe, the options that open an adapter."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.errors import InputError
from lora_ft.launch.machine import others_compute, threads_of_a_process, usable_cores

if TYPE_CHECKING:
    import psutil

    from lora_ft.assemble.saved import OpenOptions
    from lora_ft.recipe.schema import Recipe, TaskFacts
    from lora_ft.tasks.base import Task

QUANTIZATIONS = ("as-trained", "none", "nf4", "fp4", "int8")


def opening(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of every verb that puts an adapter on its base."""
    options = (
        click.option("--base", help="Where the base is now, if not where the adapter says."),
        click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="as-trained", show_default=True),
        click.option("--device", help="cpu, cuda, mps; the best there is by default."),
        click.option("--offline", is_flag=True, help="Never ask a hub."),
        click.option("--trust-remote-code", is_flag=True, help="Run code from the base's repository."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_options(where: dict[str, Any], *, debug: bool) -> OpenOptions:
    """How an adapter is to be opened; sets up the libraries first, because this imports them."""
    said = os.environ.get("HF_HUB_OFFLINE", "").upper()
    offline = where.pop("offline") or said in ("1", "ON", "YES", "TRUE")
    quiet_libraries(debug, offline=offline)
    from lora_ft.assemble.saved import OpenOptions

    return OpenOptions(**where, offline=offline, cache_dir=cache_dir())


def refuse_damaged(adapter: Path) -> None:
    """Refuses an adapter folder that is absent or not whole, in less time than torch takes to import."""
    from lora_ft.adapters.verify import resolve_adapter, verify_files

    verify_files(resolve_adapter(adapter))


def needs_rows(task: Task, needed: Sequence[str]) -> bool:
    """Whether an adapter trained with these input columns answers rows of several, and not one input alone."""
    alone = {column.name for column in task.inputs()} & {task.argument}
    return not alone or (len(needed) > 1 and task.argument in needed)


def refuse_contradiction(verb: str, *, overwrite: bool, resume: bool, auto_resume: bool) -> None:
    """Refuses to start anew and to go on at once."""
    if overwrite and (resume or auto_resume):
        raise InputError(f"{verb}: --overwrite starts anew, --resume and --auto-resume go on. Give one of them")


def finished_already(recipe: Recipe, *, overwrite: bool, resume: bool, auto_resume: bool) -> bool:
    """Whether there is nothing to train, which is said once for all processes.

    Refuses an output folder that may not be written to, or resumed from, in less time than torch takes to import.
    """
    from lora_ft.adapters.target import check_target
    from lora_ft.train.checkpoints import finished, where_to_start

    adapter = Path(recipe.training_args["output_dir"]) / "adapter"
    if auto_resume and finished(recipe):
        if os.environ.get("RANK", "0") == "0":
            click.echo(f"finished already: {os.path.relpath(adapter)}")
        return True
    check_target(adapter, overwrite=overwrite)
    where_to_start(recipe, resume=resume, auto_resume=auto_resume, overwrite=overwrite)
    return False


def cache_dir() -> Path:
    """Where fingerprints of bases and verified adapters are remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_ft"


def shared_dir(launcher: psutil.Process | None) -> Path | None:
    """Where the processes of one run on this machine have in common what one of them makes; None: it is alone here.

    Args:
        launcher: The process that started this one.
    """
    if launcher is None or int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1) == 1:
        return None
    from lora_ft.data.shared import run_folder

    return run_folder(cache_dir() / "runs", launcher, port=os.environ.get("MASTER_PORT", ""))


def refuse_lonely_task() -> None:
    """Refuses one of several tasks of Slurm that no launcher has told of the others: each would train alone.

    Raises:
        InputError: So it is.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or "1"
    if int(tasks) > 1 and not os.environ.get("WORLD_SIZE"):
        raise InputError(
            f"train: Slurm has {tasks} tasks (SLURM_NTASKS), and none knows of the others (no WORLD_SIZE): each would "
            "train an adapter by itself and write it to the same folder. Start one task on each machine, and in it a "
            "launcher, as launch/ has it: srun --ntasks-per-node=1 accelerate launch ... -m lora_ft train RECIPE; or, "
            "for a run of one process, srun --ntasks=1"
        )


def quiet_libraries(debug: bool, *, offline: bool) -> None:
    """Sets what the libraries read from the environment; must run before they are imported."""
    threads = threads_of_a_process(os.environ)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        cores = usable_cores(os.environ)
        if sys.platform == "linux" and others_compute(os.getloadavg()[0], threads=threads, cores=cores):
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DATASETS_VERBOSITY", "error")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # forty lines where another process has ended
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line a layer and forward in 8 bits on a CPU
        import warnings

        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)


def log_to_stderr(level: int) -> None:
    """Shows the package's own messages, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("lora_ft")
    ours.addHandler(handler)
    ours.setLevel(level)


def task_facts() -> dict[str, TaskFacts]:
    """What recipes are checked against, of every task."""
    from lora_ft.tasks.base import load_task, task_names

    return {name: load_task(name).facts() for name in task_names()}


def read_checked(recipe: Path, overrides: Iterable[str]) -> Recipe:
    """Reads a recipe with its overrides; all faults in one error."""
    from lora_ft.recipe.read import read_recipe

    return read_recipe(recipe, overrides=tuple(overrides), tasks=task_facts())
