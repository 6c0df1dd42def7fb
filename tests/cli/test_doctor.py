"""`smartsched doctor` on boxes that are in order and on others."""

import json
import os
import resource
from pathlib import Path

import pytest

from smartsched.edges import checkup
from tests.cli.harness import MOMENT, Box
from tests.stub_nvml import GIB, stranger_process

TOPICS = [
    "settings", "packages", "driver", "GPUs", "MIG", "attribution", "container", "state", "logs",
    "claims", "dispatchers", "hosts", "limits", "boot",
]  # fmt: skip


def findings(box: Box, **env: str) -> dict[str, tuple[bool, str]]:
    done = box.run("doctor", "--json", **env)
    rows = json.loads(done.out)["findings"]
    assert done.status == (0 if all(row["ok"] for row in rows) else 1)
    return {row["topic"]: (row["ok"], row["text"]) for row in rows}


def trouble(box: Box, topic: str, **env: str) -> str:
    ok, text = findings(box, **env)[topic]
    assert not ok
    return text


def test_a_box_in_order_is_ok_line_by_line(box: Box):
    done = box.run("doctor")

    lines = [line.split(maxsplit=2) for line in done.out.splitlines()]
    assert [topic for _, topic, _ in lines] == TOPICS
    wrong = {topic for verdict, topic, _ in lines if verdict != "ok"}
    assert wrong <= {"container", "limits"}  # which are as they are where tests run
    assert done.status == (1 if wrong else 0)
    assert done.err == ""


def test_no_driver_is_said_with_what_to_do_and_the_rest_is_looked_at(box: Box):
    box.machine.init_error(9)

    found = findings(box)

    assert not found["driver"][0]
    assert "no NVIDIA driver here" in found["driver"][1]
    assert "GPUs" not in found
    assert found["state"][0]


def test_gpus_that_take_no_work_are_named(box: Box):
    box.machine.set(1, error=15)
    box.machine.set(2, compute_mode=2)
    box.machine.set(3, recovery=1)

    done = box.run("doctor")

    wrong = [line for line in done.out.splitlines() if line.startswith("FIX  GPUs")]
    assert "GPU 1: the driver says: GPU is lost: it takes a reset" in wrong[0]
    assert "GPU 2 may not compute: sudo nvidia-smi -i 2 -c DEFAULT" in wrong[1]
    assert "GPU 3: the driver wants a reset" in wrong[2]
    assert done.status == 1


def test_mig_without_instances_is_said(box: Box):
    box.machine.set(0, mig=1)

    assert "GPU 0: MIG is on but has no instances: make some" in trouble(box, "MIG")


def test_mig_instances_are_counted(box: Box):
    box.machine.add_mig(0, 1)
    box.machine.add_mig(0, 3)

    assert findings(box)["MIG"] == (True, "2 instances")


def test_whether_the_driver_says_whose_memory_is_whose(box: Box):
    with stranger_process() as process:
        box.machine.add_stranger(0, GIB, process.pid)
        assert findings(box)["attribution"][0]

        box.machine.add_stranger(0, GIB, process.pid, mem_visible=False)
        assert "does not say how much memory" in trouble(box, "attribution")

        box.machine.add_stranger(0, GIB, process.pid, shown_pid=4_100_000)
        assert "start it with --pid=host" in trouble(box, "attribution")


def test_a_module_that_shadows_the_drivers_is_named(box: Box, tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/pynvml.py").touch()
    path = os.pathsep.join([str(tmp_path / "old"), box.env["PYTHONPATH"]])

    found = findings(box, PYTHONPATH=path)

    assert found["packages"] == (
        False,
        f"{tmp_path}/old/pynvml.py shadows NVIDIA's module: take it away, or out of PYTHONPATH",
    )
    assert "is not NVIDIA's pynvml but shadows it" in found["driver"][1]


@pytest.mark.parametrize(
    ("name", "version", "ok"),
    [("nvidia_ml_py3", "7.352.0", False), ("pynvml", "11.5.3", False), ("pynvml", "13.0.1", True)],
)
def test_packages_that_get_in_the_way_are_named(
    box: Box, tmp_path: Path, name: str, version: str, ok: bool
):
    folder = tmp_path / f"old/{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    dashed = name.replace("_", "-")
    metadata = f"Metadata-Version: 2.1\nName: {dashed}\nVersion: {version}\n"
    (folder / "METADATA").write_text(metadata)
    path = os.pathsep.join([str(tmp_path / "old"), box.env["PYTHONPATH"]])

    found = findings(box, PYTHONPATH=path)["packages"]

    assert found[0] is ok
    assert ok or f"{dashed} {version} writes over NVIDIA's own module: pip uninstall" in found[1]


def test_a_wrong_setting_is_named_and_the_rest_is_looked_at(box: Box):
    (box.folder / "smartsched.toml").write_text("polite = 1\n")

    assert trouble(box, "settings").startswith("./smartsched.toml:1: polite is either")


def test_a_state_folder_that_others_may_write_is_named(box: Box):
    box.state.mkdir(parents=True)
    box.state.chmod(0o777)

    assert trouble(box, "state") == f"others may write in {box.state}: chmod go-w {box.state}"


def test_a_state_folder_that_cannot_be_made_is_named(box: Box):
    box.state.touch()

    assert "name another place with --state DIR" in trouble(box, "state")


def test_claims_of_living_dispatchers_are_told(box: Box):
    wait = "until test -e go; do sleep 0.01; done"
    listing = str(box.list_of([wait]))
    session = box.start(*MOMENT, "--gpus", "0", "--name", "mine", listing)
    session.says("job 1 started")

    found = findings(box)

    assert "1 GPU claimed by " in found["claims"][1]
    assert found["dispatchers"] == (True, "yours: mine")
    (box.folder / "go").touch()
    assert session.end().status == 0
    assert findings(box)["dispatchers"] == (True, "none of yours runs")


def test_a_claims_folder_that_is_worth_nothing_is_named(box: Box):
    folder = Path(box.env["SMARTSCHED_CLAIMS"])
    folder.mkdir()
    folder.chmod(0o777)

    assert "chmod +t it" in trouble(box, "claims")


def test_nothing_is_changed(box: Box):
    before = {path for path in box.folder.parent.rglob("*") if "machine" not in str(path)}

    box.run("doctor")

    after = {path for path in box.folder.parent.rglob("*") if "machine" not in str(path)}
    assert {path.name for path in after - before} == {"out-0", "err-0"}


# --- of the machine


def test_a_container_is_known_by_its_marks(tmp_path: Path):
    assert checkup.container(tmp_path) is None
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/kubepods/besteffort/pod1\n")
    assert checkup.container(tmp_path) == "kubepods in /proc/1/cgroup"
    (tmp_path / ".dockerenv").touch()
    assert checkup.container(tmp_path) == "/.dockerenv"


def test_processes_with_numbers_of_their_own_are_known_by_the_namespace(tmp_path: Path):
    (tmp_path / "self/ns").mkdir(parents=True)
    link = tmp_path / "self/ns/pid"
    link.symlink_to("pid:[4026532198]")
    assert not checkup.sees_the_hosts_processes(tmp_path)
    link.unlink()
    link.symlink_to("pid:[4026531836]")
    assert checkup.sees_the_hosts_processes(tmp_path)


def test_limits_of_the_shell_are_named_with_what_to_type():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
    try:
        found = [text for text in checkup.tight_limits() if "ulimit -f" in text]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert found == [
        "checkpoints that are larger are cut off (ulimit -f: 1073741824): ulimit -f unlimited"
    ]


def test_keys_for_other_hosts_that_others_may_read_are_said(box: Box):
    authority = box.state / "authority"
    authority.mkdir(mode=0o700, parents=True)
    (authority / "authority.pem").touch(0o600)

    assert findings(box)["hosts"] == (True, "others can be used (--hosts, --slurm)")
    (authority / "authority.pem").chmod(0o640)

    assert "others may enter or read" in trouble(box, "hosts")


def test_what_other_hosts_need_is_no_trouble_where_nobody_uses_any(box: Box):
    ok, text = findings(box, PATH="/nowhere")["hosts"]

    assert ok
    assert text == "to use others (--hosts): install ssh (--slurm and --listen do without)"
