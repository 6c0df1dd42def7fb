"""A real Slurm for tests: munged, slurmctld and a few slurmd on this machine, with pretend GPUs.

Everything is below a folder of its own and listens on ports of its own; what Slurm is installed or
runs here besides is left alone. It takes root, as slurmd does.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
_STOP_PATIENCE_SECONDS = 10.0
_BACKLOG_OF_A_COMMAND_SECONDS = 60.0
# GPUs are links to /dev/null: Slurm wants a device, and takes its number from the link's name.
# The accounting, cgroups and task plugins that are left out would need more than a test may do.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
OverTimeLimit=0
MessageTimeout=10
GresTypes=gpu
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs=16 \
RealMemory=1000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """A Slurm that runs. Its programs find it by SLURM_CONF."""

    def __init__(self, folder: Path, *, nodes: int, gpus_per_node: int) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**_without_slurm(os.environ), "SLURM_CONF": str(self.conf)}
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._controller: subprocess.Popen[bytes] | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._write_settings(gpus_per_node)

    def start(self) -> None:
        self._start_munged()
        self.start_controller()
        for node in self.nodes:
            (self.folder / f"spool-{node}").mkdir()
            self._daemons.append(self._spawn("slurmd", "-D", "-N", node))
        wait_until(self._all_idle, "all nodes are idle", self.logs)

    def start_controller(self) -> None:
        """It answers when this returns."""
        self._controller = self._spawn("slurmctld", "-D")
        wait_until(lambda: self.ask("scontrol", "ping").returncode == 0, "it answers", self.logs)

    def stop_controller(self) -> None:
        """Nobody answers any more; what runs goes on."""
        if self._controller is not None:
            _stop(self._controller)
            self._controller = None

    def ask(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's programs."""
        return subprocess.run(
            argv,
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_BACKLOG_OF_A_COMMAND_SECONDS,
            check=False,
        )

    def tell(self, *argv: str, stdin: str = "") -> str:
        """Likewise: what it says, which has to be good news."""
        done = self.ask(*argv, stdin=stdin)
        assert done.returncode == 0, f"{argv}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def jobs(self, *options: str) -> dict[str, str]:
        """The states of those that have not ended, by their ids."""
        lines = self.tell("squeue", "-h", "-o", "%A %T", *options).splitlines()
        return dict(line.split() for line in lines)

    def cancel_all(self) -> None:
        """No job is left when this returns."""
        if jobs := self.jobs():
            self.ask("scancel", *jobs)
            wait_until(lambda: not self.jobs(), "all jobs are gone", self.logs)

    def stop(self) -> None:
        """Nothing is left running, whatever state it is in."""
        if self._controller is not None and self.ask("scontrol", "ping").returncode == 0:
            with suppress(AssertionError, subprocess.SubprocessError):
                self.cancel_all()
        self.stop_controller()
        for daemon in reversed(self._daemons):
            _stop(daemon)
        self._kill_what_is_left()

    def logs(self) -> str:
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}:\n{_last_lines(file)}" for file in files)

    def _start_munged(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(0o755)
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        paths = {name: folder / name for name in ("socket", "pid", "log", "seed")}
        self._daemons.append(
            self._spawn(
                "munged",
                "--foreground",
                "--force",  # the folder need not be root's in all of its parents
                "--num-threads=2",
                f"--key-file={key}",
                f"--socket={paths['socket']}",
                f"--pid-file={paths['pid']}",
                f"--log-file={paths['log']}",
                f"--seed-file={paths['seed']}",
            )
        )
        wait_until(paths["socket"].exists, "munged listens", self.logs)

    def _write_settings(self, gpus_per_node: int) -> None:
        controller_port, *node_ports = _free_ports(1 + len(self.nodes))
        for gpu in range(gpus_per_node):
            (self.folder / f"gpu{gpu}").symlink_to(os.devnull)
        (self.folder / "state").mkdir()
        (self.folder / "gres.conf").write_text(
            f"NodeName=node[1-{len(self.nodes)}] Name=gpu"
            f" File={self.folder}/gpu[0-{gpus_per_node - 1}]\n"
        )
        self.conf.write_text(
            _CONF.format(
                folder=self.folder,
                host=socket.gethostname().partition(".")[0],
                controller_port=controller_port,
                node_ports=",".join(map(str, node_ports)),
                nodes=len(self.nodes),
                gpus=gpus_per_node,
            )
        )

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}-output.log").open("ab") as output:
            return subprocess.Popen(
                [_where(program), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _all_idle(self) -> bool:
        states = self.ask("sinfo", "-h", "-N", "-o", "%T").stdout.split()
        return states == ["idle"] * len(self.nodes)

    def _kill_what_is_left(self) -> None:
        """Each job has a slurmstepd, which is nobody's child; it has our settings all the same."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if (
                    process.environ().get("SLURM_CONF") == str(self.conf)
                    and process.pid != os.getpid()
                ):
                    process.kill()


@contextmanager
def a_cluster(*, nodes: int = 2, gpus_per_node: int = 4) -> Iterator[SlurmCluster]:
    """Skips where there can be none; in CI, as root, that is a failure."""
    _require_slurm()
    with ExitStack() as stack:
        # not below pytest's folders, into which only their owner may look
        folder = Path(tempfile.mkdtemp(prefix="smartsched-slurm-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        cluster = SlurmCluster(folder, nodes=nodes, gpus_per_node=gpus_per_node)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Two nodes of four GPUs, brought up once."""
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """It is the one that this test's programs talk to, and it has no jobs; nor has it after."""
    for name in os.environ.keys() - _without_slurm(os.environ).keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.conf))
    yield slurm_cluster
    slurm_cluster.cancel_all()


def _require_slurm() -> None:
    if os.geteuid() != 0:
        pytest.skip("a Slurm of our own takes root")
    missing = [program for program in _PROGRAMS if shutil.which(_where(program)) is None]
    if missing:
        what = f"no {', '.join(missing)}: slurmctld, slurmd, slurm-client and munge are needed"
        if os.environ.get("CI"):
            pytest.fail(what)
        pytest.skip(what)


def _where(program: str) -> str:
    """Daemons are where a PATH need not look."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(program, path=path) or program


def _without_slurm(environment: "os._Environ[str]") -> dict[str, str]:
    ours = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_")
    return {name: value for name, value in environment.items() if not name.startswith(ours)}


def _free_ports(count: int) -> Sequence[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(_STOP_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _last_lines(file: Path, most: int = 30) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-most:])
