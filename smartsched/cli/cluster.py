"""The dispatcher of several hosts: it waits for their agents on one port, and has them started."""

import argparse
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from smartsched import __version__
from smartsched.cli.departed import Departed
from smartsched.cli.hub_transport import HubTransport
from smartsched.cli.piloting import PilotRecruiter
from smartsched.cli.recruiting import Part, Recruiters, SshRecruiter
from smartsched.cli.session import state_folder
from smartsched.cli.standing_in import StandIns
from smartsched.config import Config
from smartsched.core import join as joins
from smartsched.core import slurm, wire, words
from smartsched.core.host_list import HostSpec
from smartsched.core.join import Join
from smartsched.core.pilots import Pilots
from smartsched.core.state import State
from smartsched.edges.authority import Authority
from smartsched.edges.clock import SteadyClock
from smartsched.edges.engine.hub import Hub
from smartsched.edges.outputs import log_name
from smartsched.edges.runs import RunFolder
from smartsched.edges.shipping import LogStore
from smartsched.edges.slurm.asking import check
from smartsched.edges.slurm.pilots import Slurm
from smartsched.edges.starter import SshStarter
from smartsched.edges.waiter import Waiter
from smartsched.errors import StateError
from smartsched.fleet.host import Patience
from smartsched.fleet.hosts import Hosts
from smartsched.fleet.launcher import keep_logs

JOIN = "join"  # in the run's folder: for agents that are started by hand
_PORT = "port"
_PILOTS = "pilots"  # likewise: what pilots have said
_USUAL_COMMAND = "smartsched"
# Agents that live join again within this, or ssh has told them where we are.
_GONE_FOR_SURE_SECONDS = 30.0
_GOODBYE_SECONDS = 5.0
# As long as logs come, their ends are waited for; but no longer than that.
_LAST_LOGS_SECONDS = 60.0
_PILOTS_GOODBYE_SECONDS = 30.0
# As Slurm's warnings may be, and then there is all that has to be said to and fro.
_WARNING_IS_LATE_SECONDS = 60.0
_IS_MARK = re.compile(r"\.[0-9a-f]{16}")
Warn = Callable[[str], None]


class ClusterSite:
    """Where runs are to be: on hosts with agents."""

    def __init__(
        self,
        stack: ExitStack,
        args: argparse.Namespace,
        config: Config,
        folder: RunFolder,
        state: State,
        clock: SteadyClock,
        waiter: Waiter,
        warn: Warn,
        *,
        began_in: str,
        lost_after_seconds: float | None = None,
        resumed: bool = False,
        looks_only: bool = False,
    ) -> None:
        """`folder`: of the run. `began_in`: the folder in which it began. `lost_after_seconds`: see
        RunBegan, of what this and earlier dispatchers have started. `looks_only`: nothing is to be
        run, and no pilot is submitted for it."""
        assert config.cluster is not None
        self._args, self._config, self._cluster = args, config, config.cluster
        self._folder, self._began_in = folder, began_in
        self._clock, self._waiter, self._warn = clock, waiter, warn
        self._authority = Authority(state_folder(args) / "authority")
        self._agents_credentials = self._authority.issue("agent", folder.name)
        self._hub = self._listen(stack)
        self._mark = f".{os.urandom(8).hex()}"
        self._make_mark(stack)
        self._starter = SshStarter(
            waiter,
            self._cluster.hosts,
            remote_command=self._cluster.remote_command or _USUAL_COMMAND,
            local_command=self._cluster.remote_command or _this_program(),
            bundle=lambda spec: joins.encode(self._join(spec)),
        )
        stack.callback(self._starter.close)
        self._write_join_file()
        named = [host.name for host in self._cluster.hosts]
        parts: list[Part] = [SshRecruiter(self._starter, named, self._place())]
        stand_ins = StandIns(config.working_directory or began_in, warn)
        parts.append(stand_ins)
        self.pilots: PilotRecruiter | None = None  # None: there are none
        if self._cluster.slurm is not None and not looks_only:
            self.pilots = self._recruit_pilots(stack, self._cluster.slurm, warn, resumed=resumed)
            parts.append(self.pilots)
        self.hosts = Hosts(
            HubTransport(self._hub, clock, warn),
            state,
            version=__version__,
            patience=self._patience(lost_after_seconds),
            recruiter=Recruiters(parts),
            named=named,
        )
        for part in (stand_ins, self.pilots):
            if part is not None:
                part.serve(self.hosts)
        self.logs = self._store()
        waiter.on_signal(signal.SIGCHLD, self._reap)
        self.on_child_end: list[Callable[[int], None]] = []

    def _store(self) -> LogStore | None:
        """For logs that hosts send."""
        if not self._cluster.syncs_logs:
            return None
        logs = Path(self._config.logs).absolute() / self._folder.name
        return LogStore(logs, log_name)

    def finish(self) -> None:
        """Agents are told that it is over, and those that are here go."""
        if self.pilots is not None:
            self.pilots.end(self._clock.now())
        for host in self.hosts.by_name.values():
            self.hosts.send_off(host)
        self._wait_for_goodbyes()
        if self.pilots is not None:
            self._leave_no_pilot(self.pilots)
        with suppress(OSError):  # it holds a key
            os.unlink(JOIN, dir_fd=self._folder.fd)

    def _wait_for_goodbyes(self) -> None:
        """And for what is left of logs."""
        began = self._clock.now()
        until, latest = began + _GOODBYE_SECONDS, began + _LAST_LOGS_SECONDS
        while any(h.here for h in self.hosts.by_name.values()) and self._clock.now() < until:
            self._waiter.wait(until)
            self.hosts.pump(self._clock.now())
            if keep_logs(self.hosts, self.logs):
                until = min(self._clock.now() + _GOODBYE_SECONDS, latest)
        for host in self.hosts.by_name.values() if self.logs is not None else ():
            if host.has_logs and host.hello is not None:
                where = words.printable(str(host.hello.more.get("logs")))
                self._warn(f"not all logs have come from {host.name}: the rest is there in {where}")

    def _leave_no_pilot(self, pilots: PilotRecruiter) -> None:
        until = self._clock.now() + _PILOTS_GOODBYE_SECONDS
        while (now := self._clock.now()) < until:
            pilots.end(now)
            self.hosts.pump(now)
            if pilots.is_over():
                return
            self._waiter.wait(min(until, pilots.wake_at()))
        name = _name_of_pilots(self._config)
        self._warn(
            f"{pilots.still_there()}: see squeue --name={name}; scancel --name={name} ends it"
        )

    def _recruit_pilots(
        self, stack: ExitStack, options: Sequence[str], warn: Warn, *, resumed: bool
    ) -> PilotRecruiter:
        cluster, logs = self._cluster, self._folder.make_folder(_PILOTS)
        warn_seconds = self._warn_seconds()
        arguments = slurm.sbatch_arguments(
            options,
            os.environb,
            gpus_per_pilot=cluster.gpus_per_pilot,
            name=_name_of_pilots(self._config),
            log_folder=str(logs),
            warn_seconds=warn_seconds,
        )
        script = slurm.script(cluster.remote_command or _this_program(), self._agent_arguments())
        if not resumed and (why := check(arguments, script, os.environb)) is not None:
            warn(f"whether Slurm takes such pilots cannot be told yet: {why}")
        submitter = Slurm(
            self._waiter,
            arguments=arguments,
            script=script,
            name=_name_of_pilots(self._config),
            environment=os.environb,
            resumed=resumed,
        )
        stack.callback(submitter.close)
        return PilotRecruiter(
            submitter,
            Pilots(
                most=cluster.pilots,
                gpus_per_pilot=cluster.gpus_per_pilot,
                warn_seconds=warn_seconds,
                resumed=resumed,
            ),
            departed=Departed(state_folder(self._args) / "agents", self._config.policy.run_id),
            logs=logs,
            place=self._place(),
            others=[host.name for host in cluster.hosts],
            warn=warn,
        )

    def _agent_arguments(self) -> str:
        words = ["agent", "--pilot", "--join", str(self._folder.path / JOIN)]
        return shlex.join([*words, "--state", str(state_folder(self._args))])

    def _warn_seconds(self) -> float:
        """Before a pilot's time is over, its jobs are told."""
        policy = self._config.policy
        wanted = max(policy.grace_seconds, policy.yield_grace_seconds) + _WARNING_IS_LATE_SECONDS
        limit = slurm.time_limit_seconds(self._cluster.slurm or (), os.environb)
        return slurm.warn_seconds(wanted, limit)

    def _patience(self, lost_after_seconds: float | None) -> Patience:
        unheard = _GONE_FOR_SURE_SECONDS if self._args.assume_gone else None
        return Patience(float("inf") if lost_after_seconds is None else lost_after_seconds, unheard)

    def _listen(self, stack: ExitStack) -> Hub:
        """Where the dispatcher before us was, and agents still look for one, if that is free."""
        cluster, run_id = self._cluster, self._config.policy.run_id
        credentials = self._authority.issue("dispatcher", os.uname().nodename)
        before = _read_port(self._folder)

        def open_hub(port: int) -> Hub:
            return Hub(
                self._waiter,
                credentials,
                listen=cluster.listen,
                port=port,
                run_id=run_id,
                can_wait=wire.is_routine,
            )

        try:
            hub = open_hub(cluster.port or before)
        except StateError:
            if cluster.port or not before:
                raise
            hub = open_hub(0)
        stack.callback(hub.close)
        _write(self._folder, _PORT, f"{hub.port}\n".encode())
        return hub

    def _place(self) -> str:
        return f"{self._cluster.listen or os.uname().nodename}:{self._hub.port}"

    def _join(self, spec: HostSpec | None) -> Join:
        config, policy, began_in = self._config, self._config.policy, self._began_in
        directory = config.working_directory or began_in
        return Join(
            version=__version__,
            run_id=policy.run_id,
            run_name=self._folder.name,
            host="" if spec is None else spec.name,
            addresses=tuple(_addresses(self._cluster.listen, self._hub.port)),
            credentials=self._agents_credentials,
            sampler_arguments=config.sampler_arguments,
            directory=directory,
            other_directory=began_in if directory != began_in else "",
            logs=os.path.abspath(config.logs),
            logs_mark=self._mark,
            sends_logs=self._cluster.syncs_logs,
            shell=self._args.shell,
            nice=config.nice,
            checkpoint_signal=config.checkpoint_signal,
            claims=config.claims,
            lease_seconds=self._cluster.lease_seconds,
            grace_seconds=policy.grace_seconds,
            patience_seconds=policy.stale_after_seconds,
            warn_seconds=self._warn_seconds(),
        )

    def _write_join_file(self) -> None:
        _write(self._folder, JOIN, joins.encode(self._join(None)))

    def _make_mark(self, stack: ExitStack) -> None:
        """In the folder of the logs: who sees it there writes logs that can be read here."""
        folder = Path(self._config.logs).absolute() / self._folder.name
        mark = folder / self._mark
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in filter(_IS_MARK.fullmatch, os.listdir(folder)):
                (folder / name).unlink()  # of a dispatcher that died
            mark.touch(0o600)
        except OSError as error:
            raise StateError(
                f"cannot make {folder} for the jobs' logs: {error.strerror}; name another place"
                " with --logs DIR"
            ) from error

        def remove() -> None:
            with suppress(OSError):
                mark.unlink()
            with suppress(OSError):  # those where something came to lie stay
                for empty in made:
                    empty.rmdir()

        stack.callback(remove)

    def _reap(self) -> None:
        """Every child that ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._starter.ended(pid, status)
            if self.pilots is not None:
                self.pilots.ended(pid)
            for tell in self.on_child_end:
                tell(pid)


def _name_of_pilots(config: Config) -> str:
    return f"smartsched-{config.policy.run_id}"


def _this_program() -> str:
    """Here, and where nodes share the file system and a batch job inherits the environment."""
    return shlex.join([sys.executable, "-P", "-m", "smartsched"])


def _addresses(listen: str, port: int) -> Sequence[str]:
    """Where agents may find us, the likeliest first."""
    if listen:
        return [_address(listen, port)]
    import psutil

    found = [os.uname().nodename]
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            is_global = each.family == socket.AF_INET or (
                each.family == socket.AF_INET6 and not each.address.startswith("fe80")
            )
            if is_global and not each.address.startswith("127.") and each.address != "::1":
                found.append(each.address.partition("%")[0])
    return [_address(host, port) for host in [*dict.fromkeys(found), "127.0.0.1"]]


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_port(folder: RunFolder) -> int:
    try:
        with open(folder.open_file(_PORT, os.O_RDONLY), "rb") as file:
            text = file.read(16).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() and int(text) < 65536 else 0


def _write(folder: RunFolder, name: str, data: bytes) -> None:
    try:
        fd = folder.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(fd, "wb") as file:
            file.write(data)
    except OSError as error:
        raise StateError(f"cannot write {folder.path / name}: {error.strerror}") from error
