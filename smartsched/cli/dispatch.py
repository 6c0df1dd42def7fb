"""How a run is dispatched: the edges are put together, the loop runs, and what is left is tidied
up."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from msgspec import Struct

from smartsched import __version__
from smartsched.agent import Agent, InProcess
from smartsched.cli.claiming import claims_for
from smartsched.cli.desk import Desk
from smartsched.cli.host import this_host
from smartsched.cli.sampling import Ahead, SamplerProcess
from smartsched.cli.session import Session, lost_after_seconds, state_folder
from smartsched.cli.wiring import first_snapshot, start_sampler
from smartsched.config import Config, keep_from_children
from smartsched.core import words
from smartsched.core.decide import Decision
from smartsched.core.events import Event, RunResumed
from smartsched.core.impossible import why_no_job_can_start
from smartsched.core.messages import Came, Hello
from smartsched.core.model import Timestamp
from smartsched.core.sight import see
from smartsched.core.state import Closing, State
from smartsched.edges.attempts import WRAPPER, Attempts
from smartsched.edges.beside import Bell, Beside
from smartsched.edges.clock import SteadyClock
from smartsched.edges.family import Family
from smartsched.edges.footprints import FootprintFile
from smartsched.edges.history import HistoryFile
from smartsched.edges.hooks import Hooks, NoHooks
from smartsched.edges.inbox import FOLDER as REQUESTS
from smartsched.edges.inbox import FileInbox
from smartsched.edges.journal import FileJournal
from smartsched.edges.logs import JobLog, JsonLog, open_log
from smartsched.edges.narrator import Narrator, View
from smartsched.edges.notify import NoNotices, Notices
from smartsched.edges.notify import check as check_notify
from smartsched.edges.outputs import LogFiles, Untouched, tail
from smartsched.edges.patient import PatientStream
from smartsched.edges.plain import PlainView
from smartsched.edges.processes import Processes
from smartsched.edges.remarks import Remarks
from smartsched.edges.requests import SignalRequests
from smartsched.edges.runs import JOBS, open_own_file
from smartsched.edges.sampler import Sampler
from smartsched.edges.spawning import Spawner
from smartsched.edges.tagged import Tagged
from smartsched.edges.waiter import Waiter
from smartsched.errors import SmartschedError, UsageError
from smartsched.fleet.claims import FleetClaims
from smartsched.fleet.gpus import FleetGpus
from smartsched.fleet.hosts import Hosts
from smartsched.fleet.launcher import FleetLauncher
from smartsched.loop import Loop, World
from smartsched.ports import Observer

if TYPE_CHECKING:
    from smartsched.cli.cluster import ClusterSite

# How long the user's own commands for finished jobs may take after the last of them.
_HOOKS_PATIENCE_SECONDS = 60.0
# How long the end waits for notices to be sent; those that take longer go on by themselves.
_NOTICES_PATIENCE_SECONDS = 5.0
Warn = Callable[[str], None]
Output = LogFiles | Tagged | Untouched


class _Parts(Struct):
    """What the loop is given, and has to be seen to when it is over."""

    world: World
    narrator: Narrator
    remarks: Remarks
    view: View
    output: Output
    hooks: Hooks | NoHooks
    notices: Notices | NoNotices
    finish: Callable[[], None]  # leave nobody behind where the jobs were


def dispatch(
    stack: ExitStack,
    session: Session,
    clock: SteadyClock,
    waiter: Waiter,
    ahead: Ahead,
    *,
    adopt: bool,
) -> State:
    """Run it to its end; what it came to. `adopt`: see Loop.resume."""
    config, state = session.config, session.state
    keep_from_children()
    if config.notify:
        check_notify(config.notify)
    if config.cluster is not None:
        return _dispatch_to_hosts(stack, session, clock, waiter, adopt=adopt)
    if config.working_directory is not None:
        _change_to(config.working_directory)
    process = SamplerProcess(config.sampler_arguments, ahead)
    patience, run_id = config.policy.stale_after_seconds, config.policy.run_id
    sampler = start_sampler(waiter, clock, process, patience, run_id=run_id)
    stack.callback(sampler.close)
    if session.resumed is not None:
        return _go_on(stack, session, session.resumed, clock, waiter, sampler, adopt=adopt)
    if config.progress:
        import smartsched.edges.screen  # noqa: F401  # takes as long as the driver takes to answer
    snapshot, state.policy = first_snapshot(sampler, waiter, clock, config.policy)
    parts = _assemble(stack, session, clock, waiter, sampler)
    loop = Loop(parts.world, state, session.window)
    see(state, snapshot, clock.now())
    if (why := why_no_job_can_start(state)) is not None:
        raise UsageError(f"no job can ever start: {why}")
    _run(loop, parts, session, clock)
    _finish(parts, loop, clock, waiter)
    return state


def _dispatch_to_hosts(
    stack: ExitStack, session: Session, clock: SteadyClock, waiter: Waiter, *, adopt: bool
) -> State:
    """What there is to run on shows when agents join."""
    state = session.state
    state.policy = session.config.policy
    parts = _assemble(stack, session, clock, waiter, None)
    loop = Loop(parts.world, state, session.window)
    if session.resumed is not None:
        parts.narrator.resumed(state, clock.now())
        loop.resume(session.resumed, session.replaced, adopt=adopt)
    _run(loop, parts, session, clock)
    _finish(parts, loop, clock, waiter)
    return state


def _go_on(
    stack: ExitStack,
    session: Session,
    resumed: RunResumed,
    clock: SteadyClock,
    waiter: Waiter,
    sampler: Sampler,
    *,
    adopt: bool,
) -> State:
    """First of all, what runs is looked after, whatever may be wrong with the driver by now."""
    state = session.state
    state.policy = session.config.policy
    parts = _assemble(stack, session, clock, waiter, sampler)
    loop = Loop(parts.world, state, session.window)
    parts.narrator.resumed(state, clock.now())
    loop.resume(resumed, session.replaced, adopt=adopt)
    try:
        snapshot, state.policy = first_snapshot(sampler, waiter, clock, state.policy)
        see(state, snapshot, clock.now())
    except SmartschedError as error:
        if not state.runs:
            raise
        parts.narrator.warn(f"nothing new is started: {error}", clock.now())
    _run(loop, parts, session, clock)
    _finish(parts, loop, clock, waiter)
    if session.reminder is not None:
        print(f"smartsched: {session.reminder}", file=sys.stderr)
    return state


def _run(loop: Loop, parts: _Parts, session: Session, clock: SteadyClock) -> None:
    try:
        loop.run()
    except BaseException:  # whatever it is, it is no reason to stop anybody's training
        if loop.state.runs:
            text = f"the running jobs go on: {session.how_to_go_on}"
            parts.narrator.warn(text, clock.now())
        raise


def _assemble(
    stack: ExitStack, session: Session, clock: SteadyClock, waiter: Waiter, sampler: Sampler | None
) -> _Parts:
    """`sampler`: of this box; None: jobs run on hosts that have agents."""
    config = session.config
    stderr = PatientStream(2)
    stack.callback(stderr.finish)
    view = _view(config, session.expected_commands, stderr, waiter)
    stack.callback(view.close)
    narrator = _narrator(session, view)

    def warn(text: str) -> None:
        narrator.warn(text, clock.now())

    remarks = Remarks(narrator.warn)
    for note in (*config.notes, *session.notes):
        warn(note)
    hooks = _hooks(config, warn)
    notices = _notices(stack, session, clock, warn)
    if sampler is None:
        output: Output = Untouched()
        site = _cluster(stack, session, clock, waiter, hooks, notices, warn)
        hosts, finish, logs = site.hosts, site.finish, site.logs
        recruiters = [] if site.pilots is None else [site.pilots]
    else:
        output = _output(config, session, waiter, warn)
        stack.callback(output.close)
        claims = claims_for(config, warn)
        stack.callback(claims.close)
        processes = _processes(stack, session, waiter, output, hooks, notices, sampler)
        hosts = _this_host_alone(Agent(this_host(), sampler, processes, claims), session.state)
        finish, logs, recruiters = processes.close, None, []
    desk = _desk(stack, session, waiter)
    stack.callback(session.bookmark.close)
    _sync_beside(stack, session.journal, waiter)
    world = World(
        clock=clock,
        waiter=waiter,
        gpus=FleetGpus(hosts),
        launcher=FleetLauncher(hosts, session.state, logs),
        intake=session.intake,
        claims=FleetClaims(hosts),
        requests=SignalRequests(waiter, single=session.single),
        inbox=desk,
        journal=session.journal,
        teller=hooks,
        observer=_Observers(
            [
                *recruiters,
                narrator,
                remarks,
                *_logs(stack, config, session, warn),
                *_memory(stack, session, warn),
                _history(stack, session, clock, warn),
                session.bookmark,
                *([notices] if isinstance(notices, Notices) else []),
            ]
        ),
    )
    return _Parts(world, narrator, remarks, view, output, hooks, notices, finish)


def _sync_beside(stack: ExitStack, journal: FileJournal, waiter: Waiter) -> None:
    """The loop does not wait for the disk, and is woken when it has done what it was given."""
    bell = Bell(waiter)
    stack.callback(bell.close)
    journal.sync_by(partial(Beside, bell=bell))
    stack.callback(journal.rest)


def _cluster(
    stack: ExitStack,
    session: Session,
    clock: SteadyClock,
    waiter: Waiter,
    hooks: Hooks | NoHooks,
    notices: Notices | NoNotices,
    warn: Warn,
) -> "ClusterSite":
    from smartsched.cli.cluster import ClusterSite

    site = ClusterSite(
        stack,
        session.args,
        session.config,
        session.folder,
        session.state,
        clock,
        waiter,
        warn,
        began_in=os.getcwd(),
        lost_after_seconds=session.terms.longer(lost_after_seconds(session.config)),
        resumed=session.resumed is not None,
    )
    site.on_child_end += [hooks.ended, notices.ended]
    return site


def _this_host_alone(agent: Agent, state: State) -> Hosts:
    hello = Hello(__version__, "here", agent.host, os.cpu_count() or 1)
    return Hosts(InProcess(agent, Came(agent.host, hello)), state, only=agent.host)


def _desk(stack: ExitStack, session: Session, waiter: Waiter) -> Desk:
    folder = session.folder.make_folder(REQUESTS)
    inbox = FileInbox(folder, open_own_file, waiter, session.terms.requests)
    stack.callback(inbox.close)
    return Desk(inbox, session.args, session.state, session.config.run_name)


def _processes(
    stack: ExitStack,
    session: Session,
    waiter: Waiter,
    output: Output,
    hooks: Hooks | NoHooks,
    notices: Notices | NoNotices,
    sampler: Sampler,
) -> Processes:
    def ended(pid: int) -> None:
        hooks.ended(pid)
        notices.ended(pid)

    attempts = Attempts(session.folder.make_folder(JOBS))
    # that they are over, the journal may say without being on the disk
    if session.over and session.journal.write([]) is None:
        for run in session.over:
            attempts.remove(run)
    spawner = Spawner(
        shell=session.config.shell,
        environment=os.environb,
        run_name=session.folder.name,
        run_id=session.config.policy.run_id,
        wrapper=WRAPPER,
        nice=session.config.nice,
    )
    stack.callback(spawner.close)
    return Processes(
        waiter,
        run_id=session.config.policy.run_id,
        spawner=spawner,
        output=output,
        attempts=attempts,
        family=Family(lambda: [*sampler.pids(), *hooks.pids(), *notices.pids()]),
        on_other_end=ended,
        checkpoint_signal=session.config.checkpoint_signal or signal.SIGTERM,
    )


def _finish(parts: _Parts, loop: Loop, clock: SteadyClock, waiter: Waiter) -> None:
    parts.finish()
    _settle(parts, waiter, clock, loop.state)
    if left := parts.hooks.left():
        text = f"{words.count(left, '--on-finish command')} did not end, or did not begin"
        parts.narrator.warn(text, clock.now())
    if (why := loop.close(clock.now())) is not None:
        text = f"how the last jobs ended is not on record: {why}"
        parts.narrator.warn(text, clock.now())
    parts.view.close()
    parts.narrator.finish(loop.state, clock.now())
    parts.remarks.finish(loop.state, clock.now())
    parts.notices.finish(loop.state, clock.now())
    _wait_for_notices(parts, waiter, clock)


def _settle(parts: _Parts, waiter: Waiter, clock: SteadyClock, state: State) -> None:
    """Let whoever reads the jobs' output take the rest of it, and the user's commands for finished
    jobs end, unless the user wants no more."""
    stopped = state.closing >= Closing.STOP and not state.halted
    until = clock.now() + state.policy.grace_seconds if stopped else float("inf")
    hooks_until = min(until, clock.now() + _HOOKS_PATIENCE_SECONDS)
    while not parts.world.requests.take(clock.now()):
        now = clock.now()
        waits_for_hooks = not parts.hooks.is_settled() and now < hooks_until
        if not waits_for_hooks and (parts.output.is_settled() or now >= until):
            break
        waiter.wait(hooks_until if waits_for_hooks else until)


def _wait_for_notices(parts: _Parts, waiter: Waiter, clock: SteadyClock) -> None:
    """For a moment, unless the user wants no more."""
    until = clock.now() + _NOTICES_PATIENCE_SECONDS
    while not parts.notices.is_settled() and clock.now() < until:
        waiter.wait(until)
        if parts.world.requests.take(clock.now()):
            break
    parts.notices.close()


class _Observers:
    """Several Observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        for observer in self._observers:
            observer.recorded(event, state, now)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        for observer in self._observers:
            observer.decided(decision, state, now)

    def wake_at(self) -> Timestamp:
        return min(observer.wake_at() for observer in self._observers)


def _narrator(session: Session, view: View) -> Narrator:
    config = session.config
    return Narrator(
        view,
        tail=tail,
        quiet=config.quiet,
        verbose=config.verbose,
        single=session.single,
        logs=_log_folder(session),
        run_name=config.run_name,
        how_to_go_on=session.how_to_go_on,
        here=session.here,
    )


def _logs(stack: ExitStack, config: Config, session: Session, warn: Warn) -> list[Observer]:
    logs: list[Observer] = []
    resumed = session.resumed is not None
    if config.joblog is not None:
        append = resumed or config.joblog.startswith("+")
        fd = open_log(config.joblog.removeprefix("+"), append=append, option="--joblog")
        before = session.finished() if resumed else ()
        joblog = JobLog(
            fd,
            session.state,
            before,
            lambda why: warn(f"--joblog is behind: {why}"),
            is_behind=lambda: session.journal.is_failing,
        )
        stack.callback(joblog.close)
        logs.append(joblog)
    if config.json_log is not None:
        append = resumed or config.json_log.startswith("+")
        fd = open_log(config.json_log.removeprefix("+"), append=append, option="--json-log")
        jsonlog = JsonLog(
            fd,
            session.folder.name,
            session.history(),
            lambda why: warn(f"--json-log is behind: {why}"),
            is_written=lambda seq: seq <= session.journal.seq,
        )
        stack.callback(jsonlog.close)
        logs.append(jsonlog)
    return logs


def _memory(stack: ExitStack, session: Session, warn: Warn) -> list[FootprintFile]:
    """What earlier runs have learned is known in this one, and what this one learns in later ones;
    but pretended GPUs teach nothing. Of a resumed run, whichever has seen more of a shape counts:
    its journal or the file."""
    args, state = session.args, session.state
    if args.simulate is not None or args.replay is not None:
        return []
    file = FootprintFile(state_folder(args), this_host(), open_own_file, warn, Beside)
    known = file.load()
    state.footprints = known | {
        shape: footprint
        for shape, footprint in state.footprints.items()
        if shape not in known or footprint.runs > known[shape].runs
    }
    stack.callback(file.close)
    return [file]


def _history(stack: ExitStack, session: Session, clock: SteadyClock, warn: Warn) -> HistoryFile:
    """What `smartsched report` shows of other people's use, and of why jobs waited."""
    folder = session.folder
    file = HistoryFile(
        folder.fd,
        folder.open_file,
        clock.now,
        lambda why: warn(f"what is seen of the GPUs cannot be kept for a report: {why}"),
    )
    stack.callback(file.close)
    return file


def _notices(
    stack: ExitStack, session: Session, clock: SteadyClock, warn: Warn
) -> Notices | NoNotices:
    config = session.config
    if not config.notify:
        return NoNotices()
    notices = Notices(
        config.notify,
        config.run_name,
        session.state,
        config.notify_stall_seconds,
        clock.now(),
        warn,
    )
    stack.callback(notices.close)
    return notices


def _hooks(config: Config, warn: Warn) -> Hooks | NoHooks:
    if config.on_finish is None:
        return NoHooks()
    return Hooks(
        config.on_finish,
        shell=config.shell,
        environment=os.environb,
        run_name=config.run_name,
        when_failed=lambda why: warn(f"--on-finish could not be started: {why}"),
    )


def _change_to(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(
            f"--wd: cannot go to {folder}: {error.strerror}; name another folder"
        ) from error


def _log_folder(session: Session) -> str | None:
    config = session.config
    if config.output != "log":
        return None
    return os.path.join(config.logs, config.run_name).removeprefix(session.here.rstrip("/") + "/")


def _output(config: Config, session: Session, waiter: Waiter, warn: Warn) -> Output:
    match config.output:
        case "log":
            folder = Path(config.logs) / config.run_name
            return LogFiles(folder, resumed=session.resumed is not None)
        case "tag":
            folder = session.folder.make_folder("output")
            return Tagged(folder, waiter, 1, lambda why: warn(f"jobs' output is dropped: {why}"))
        case "raw":
            return Untouched()


def _view(
    config: Config, expected_commands: int | None, stderr: PatientStream, waiter: Waiter
) -> View:
    stream = cast("TextIO", stderr)  # it is one in all but name
    if not config.progress:
        return PlainView(stream)
    from smartsched.edges.screen import LiveView
    from smartsched.edges.terminal import Canvas

    canvas = Canvas(stderr, whole=False)
    view = LiveView(stream, canvas, color=config.color, expected_commands=expected_commands)
    waiter.on_signal(signal.SIGWINCH, view.resized)
    return view
