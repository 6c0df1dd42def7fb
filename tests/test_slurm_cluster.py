"""The Slurm that other tests use is a real one, and leaves nothing behind."""

from pathlib import Path

import psutil

from tests import slurm as fixtures
from tests.slurm import SlurmCluster, a_cluster
from tests.waiting import wait_until

slurm_cluster, slurm = fixtures.slurm_cluster, fixtures.slurm

SCRIPT = "#!/bin/sh\nenv > {folder}/env-$SLURM_JOB_ID.part; cd {folder}\n\
mv env-$SLURM_JOB_ID.part env-$SLURM_JOB_ID\n"


def submit(slurm: SlurmCluster, script: str, *options: str) -> str:
    return slurm.tell("sbatch", "--parsable", "--output=/dev/null", *options, stdin=script)


def environment_of(folder: Path, job: str) -> dict[str, str]:
    file = folder / f"env-{job}"
    wait_until(file.exists, "the job has run")
    lines = (line.partition("=") for line in file.read_text().splitlines())
    return {name: value for name, _, value in lines}


def test_a_job_is_granted_gpus_and_says_so(slurm: SlurmCluster, tmp_path: Path):
    job = submit(slurm, SCRIPT.format(folder=tmp_path), "--gres=gpu:2", "--time=5")

    seen = environment_of(tmp_path, job)
    assert seen["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert seen["SLURM_JOB_GPUS"] == "0,1"
    assert seen["SLURM_GPUS_ON_NODE"] == "2"
    assert seen["SLURM_JOB_ID"] == job
    assert seen["SLURMD_NODENAME"] in slurm.nodes


def test_two_jobs_are_never_granted_the_same_gpu(slurm: SlurmCluster, tmp_path: Path):
    script = SCRIPT.format(folder=tmp_path) + "sleep 60\n"

    jobs = [submit(slurm, script, "--gres=gpu:2", "--nodelist=node1") for _ in range(3)]
    seen = [environment_of(tmp_path, job)["CUDA_VISIBLE_DEVICES"] for job in jobs[:2]]

    assert seen == ["0,1", "2,3"]
    assert slurm.jobs()[jobs[2]] == "PENDING"


def test_nothing_is_left_of_it(tmp_path: Path):
    with a_cluster(nodes=1) as cluster:
        stubborn = "#!/bin/bash\ntrap '' TERM\ntouch {folder}/runs\nwhile :; do sleep 0.1; done\n"
        submit(cluster, stubborn.format(folder=tmp_path))
        wait_until((tmp_path / "runs").exists, "the job runs")

    left = [process for process in psutil.process_iter() if belongs_to(process, cluster)]
    assert left == []
    assert not cluster.folder.exists()


def belongs_to(process: psutil.Process, cluster: SlurmCluster) -> bool:
    try:
        text = " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return False
    return str(cluster.folder) in text
