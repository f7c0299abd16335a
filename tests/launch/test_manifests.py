"""Kubernetes, Kubeflow, SkyPilot and Docker files: held to the published schemas as far as these are installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kubeflow_trainer_api import models

from lora_ft.cli.main import cli

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
JOB = [one for one in yaml.safe_load_all((LAUNCH / "kubernetes" / "job.yaml").read_text(encoding="utf-8")) if one]
TRAINJOB = yaml.safe_load((LAUNCH / "kubernetes" / "trainjob.yaml").read_text(encoding="utf-8"))
SKY = yaml.safe_load((LAUNCH / "sky" / "train.yaml").read_text(encoding="utf-8"))
MODELS = {
    "Service": models.IoK8sApiCoreV1Service,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "Job": models.IoK8sApiBatchV1Job,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}
SHELLCHECK = str(Path(sys.executable).with_name("shellcheck"))
DOCKERFILES = sorted((LAUNCH / "docker").glob("Dockerfile.*"))


def of_kind(kind: str) -> dict[str, Any]:
    return next(one for one in [*JOB, TRAINJOB] if one["kind"] == kind)


def lost(given: Any, made: Any, where: str = "") -> list[str]:
    """What the API's models dropped, or read otherwise; they add defaults, which is no loss."""
    if isinstance(given, dict) and isinstance(made, dict):
        return [one for key, value in given.items() for one in lost(value, made.get(key), f"{where}.{key}")]
    if isinstance(given, list) and isinstance(made, list) and len(given) == len(made):
        return [one for index, value in enumerate(given) for one in lost(value, made[index], f"{where}[{index}]")]
    return [] if given == made else [f"{where}: {given!r} became {made!r}"]


@pytest.mark.parametrize("kind", MODELS)
def test_the_published_api_has_every_key_with_its_type(kind: str) -> None:
    given = of_kind(kind)
    assert lost(given, MODELS[kind].from_dict(given).to_dict()) == []


@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="108 MB of schemas: not in `dev`")
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_own_schemas_take_the_job(version: str) -> None:
    import kubernetes_validate

    for one in JOB:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_pods_of_the_job_find_the_first_one_and_have_time_to_save() -> None:
    job, service = of_kind("Job"), of_kind("Service")
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    words = pod["containers"][0]["args"]
    port = service["spec"]["ports"][0]["port"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert words[words.index("--head") + 1] == f"{name}-0.{pod['subdomain']}:{port}"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert int(words[words.index("--nodes") + 1]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"] == [
        {"type": "DisruptionTarget", "status": "True"}
    ]
    claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    assert of_kind("PersistentVolumeClaim")["metadata"]["name"] in claims


@pytest.mark.parametrize("kind", ["Job", "TrainJob"])
def test_the_words_of_a_pod_are_a_command_line_of_ours(kind: str) -> None:
    spec = of_kind(kind)["spec"]
    words = spec["trainer"]["args"] if kind == "TrainJob" else spec["template"]["spec"]["containers"][0]["args"]
    filled = [re.sub(r"\$\(\w+_(PORT|INDEX|RANK|NNODES)\)|\$\(PET_NNODES\)", "1", word) for word in words]
    filled = [re.sub(r"\$\(\w+\)", "host", word) for word in filled]
    done = CliRunner().invoke(cli, filled)
    assert "/data/my.yaml" in str(done.exception), "all words were understood; the recipe is not here"


def test_the_volume_of_the_trainjob_is_that_of_the_job() -> None:
    patch = TRAINJOB["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = patch["template"]["spec"]["template"]["spec"]
    assert patch["name"] == "node", "as Kubeflow's torch-distributed calls it"
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert (
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == of_kind("PersistentVolumeClaim")["metadata"]["name"]
    )


def test_skypilot_has_every_key_and_the_bucket_can_rename() -> None:
    # get_task_schema, and what is used of the schemas below it, in skypilot 0.14 (sky/utils/schemas.py)
    assert set(SKY) <= {"name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    assert set(SKY["resources"]) <= {"accelerators", "use_spot", "disk_size"}
    (bucket,) = SKY["file_mounts"].values()
    assert set(bucket) == {"name", "mode"}
    assert bucket["mode"] == "MOUNT_CACHED"
    assert "/runs/runs/" in SKY["run"]
    assert all(isinstance(value, str) for value in SKY["envs"].values())


def test_what_sky_runs_hands_recipe_and_overrides_on_untouched(tmp_path: Path) -> None:
    program = tmp_path / "lora_ft" / "bin" / "lora-ft"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RECIPE": "my runs/a.yaml",
        "OVERRIDES": "training_args.seed=7 'dataset.label_delimiter=\"|\"'", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.9",
        "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
    }  # fmt: skip
    done = subprocess.run(["bash", "-ec", SKY["run"]], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "launch", "my runs/a.yaml", "training_args.output_dir=/runs/runs/a", "training_args.seed=7",
        'dataset.label_delimiter="|"', "--auto-resume", "--nodes", "2", "--node-rank", "1", "--head", "10.0.0.4:29500",
    ]  # fmt: skip


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_copies_what_there_is_is_pinned_and_runs_as_nobody_special(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    for words in lines:
        if words[0] == "COPY":
            assert all((ROOT / source).exists() for source in words[1:-1]), words
    users = [words[1] for words in lines if words[0] == "USER"]
    assert users[-1] == "trainer"
    assert "-c constraints.txt" in text
    assert "--mount=type=cache" in text
    assert 'ENTRYPOINT ["tini", "--", "lora-ft"]' in text
    copied = {source for words in lines if words[0] == "COPY" for source in words[1:-1]}
    assert not copied & {"recipes", "runs", "."}, "no base, no data, no adapter"
    (extras,) = re.findall(r"ARG EXTRAS=(\S+)", text)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))


@pytest.mark.parametrize("file", sorted(LAUNCH.rglob("*.sbatch")), ids=lambda file: file.name)
def test_shellcheck_has_nothing_to_say(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    done = subprocess.run([SHELLCHECK, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_has_nothing_to_say_of_what_sky_runs() -> None:
    for part in ("setup", "run"):
        words = [SHELLCHECK, "--shell=bash", "--exclude=SC2154", "-"]
        done = subprocess.run(words, input=SKY[part], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
