"""A whole box in virtual time behind the loop's ports: days pass in moments, nothing real is
touched.

It keeps its own account of who runs where, so that it can tell when a run is launched twice. What
would be on disk is kept too: a dispatcher may die at any moment (`die_at`), and another one go on.

`box.clock.time` is the box's own time, by which all in it happens. What dispatchers see is the wall
clock, which may be set between two of them.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from msgspec import Struct, field

from smartsched.core import bookmark
from smartsched.core.actions import Launch, Tell
from smartsched.core.apply import replay
from smartsched.core.close_look import EVERY_SECONDS, CloseLooks
from smartsched.core.decide import Decision
from smartsched.core.directives import wishes_in
from smartsched.core.events import (
    DrainRequested,
    Event,
    InputRead,
    RunAdopted,
    RunBegan,
    RunCleared,
    RunExited,
    RunLaunched,
    RunPlaced,
    RunPostponed,
    RunResumed,
    RunRevoked,
    StopRequested,
    is_end_of_all,
)
from smartsched.core.model import (
    ClaimAnswer,
    ClaimGranted,
    ClaimRefused,
    Ending,
    Exited,
    GpuKey,
    GpuProcess,
    GpuReading,
    GpuSample,
    GpuUuid,
    HostName,
    JobSpec,
    Killed,
    Lingering,
    Lost,
    Position,
    ProcessId,
    Run,
    RunKey,
    Running,
    SamplerTrouble,
    Snapshot,
    Starting,
    Stopping,
    Timestamp,
)
from smartsched.core.policy import Policy
from smartsched.core.records import decode_line, encode
from smartsched.core.requests import Answer
from smartsched.core.selection import without_host
from smartsched.core.state import State, over
from smartsched.core.terms import Past, Terms, began
from smartsched.loop import Loop, World
from smartsched.ports import Arrived, Request
from smartsched.simulation.colleagues import GIB, Visit, pretend_uuid, process_of

HOST = HostName("box")
_SIGTERM, _SIGKILL = 15, 9
_LOOK_TAKES_SECONDS = 0.001
_FOREVER = float("inf")
NO_GPU = -1  # in place of an index


class DispatcherDied(BaseException):  # what happens to it, not an error of its own
    """As by kill -9: nothing is tidied up."""


class VirtualClock(Struct):
    time: float = 1_000_000.0
    ahead_seconds: float = 0.0  # how far the wall clock is; to be set while no dispatcher lives

    def now(self) -> Timestamp:
        return self.time + self.ahead_seconds

    def local_offset(self) -> float:
        return 0.0


class PretendJob(Struct, frozen=True):
    """What a command does once it runs."""

    seconds: float
    memory_bytes: int = 0
    ending: Ending = Exited(0)
    memory_lingers_seconds: float = 0.0  # after its last process
    leaves_behind_seconds: float = 0.0  # how long something in the background outlives the shell
    ignores_sigterm: bool = False
    ending_when_asked: Ending = Killed(_SIGTERM)  # Exited(0): it saves its state
    seen_by_driver: bool = True  # False: as in a container, its pid means nothing
    utilization_percent: int = 100
    saves_when_told: bool = False  # the checkpoint signal makes it save its state and end
    out_of_memory: str = ""  # what its log says when it fails


class LivingRun(Struct):
    launch: Launch
    gpu_indices: list[int]
    job: PretendJob
    pid: int
    shell_ends_at: Timestamp
    last_ends_at: Timestamp
    ending: Ending
    has_ended: bool = False  # its shell
    exit_told: bool = False  # to the present dispatcher
    is_adopted: bool = False  # no child of the present dispatcher: how it ends only the record says
    was_killed: bool = False  # its wrapper as well: no record of its end


def indices_of(launch: Launch) -> list[int]:
    """Of its GPUs, on their host."""
    return [int(without_host(gpu.label)) for gpu in launch.placement.gpus]


class AttemptRecord(Struct):
    """What an attempt itself leaves on disk."""

    pid: int
    end: tuple[Timestamp, Ending] | None = None  # None: no more than that it began


class PretendBox(Struct):
    """`jobs` says what a command does, `commands` when (seconds from now) which ones arrive."""

    gpu_count: int
    jobs: Callable[[str], PretendJob]
    commands: Sequence[tuple[float, str]] = ()
    memory_bytes: int = 24 * GIB
    interval_seconds: float = 1.0
    host: HostName = HOST
    first_uuid: int = 0  # where there are several boxes, no two GPUs have the same
    keys: dict[int, GpuKey] = field(default_factory=dict)  # of its GPUs, as they are asked for
    clock: VirtualClock = field(default_factory=VirtualClock)
    visits: dict[int, list[Visit]] = field(default_factory=dict)
    driver_hangs: list[tuple[Timestamp, Timestamp]] = field(default_factory=list)
    requests: list[tuple[Timestamp, type[DrainRequested | StopRequested]]] = field(
        default_factory=list
    )
    asked: list[tuple[Timestamp, Request]] = field(default_factory=list)  # on disk until answered
    answers: dict[str, Answer] = field(default_factory=dict)
    start_fails: Callable[[str], str | None] = lambda _: None
    broken: dict[int, PretendJob] = field(default_factory=dict)  # GPUs where all commands do this
    living: dict[RunKey, LivingRun] = field(default_factory=dict)
    # What is on disk: the journal, and of attempts what the journal does not know yet.
    journal: list[bytes] = field(default_factory=list)
    durable_records: int = 0  # of the journal; the others a loss of power may take
    sync_seconds: float = 0.02  # what the disk takes when nobody waits for it
    syncing: int | None = None  # so many are being made durable
    synced_at: Timestamp = _FOREVER  # that will be done
    was_rebooted: bool = False  # since the last dispatcher
    bookmark_file: bytes = b""
    records: dict[RunKey, AttemptRecord] = field(default_factory=dict)
    revoked: set[RunKey] = field(default_factory=set)
    disk_is_full: list[tuple[Timestamp, Timestamp]] = field(default_factory=list)
    told: list[Tell] = field(default_factory=list)
    # At which of its moments the dispatcher dies: before and after each record that it writes, and
    # before and after each thing that it does.
    die_at: int | None = None
    dies_when: Callable[[], bool] | None = None
    moments: int = 0
    moments_in_sync: list[int] = field(default_factory=list)  # while nobody waits for the disk
    dispatchers: int = 0
    bookmark_every: int | None = None  # so many records; None: there is none
    bookmarked: int = 0  # records
    launched_by_others: int = 0  # how many runs, before the present dispatcher
    began_at: Timestamp | None = None
    last_pid: int = 1000
    lingering_memory: list[tuple[Timestamp, int, int]] = field(default_factory=list)
    launched: list[tuple[Timestamp, RunKey, str, int]] = field(default_factory=list)
    placed: set[RunKey] = field(default_factory=set)  # by the journal
    begun: set[RunKey] = field(default_factory=set)
    # How attempts ended that could still say so, whether or not anybody knows.
    ended: dict[RunKey, tuple[Timestamp, Ending]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)  # as the present dispatcher knows them
    observers: list[Callable[[State, Timestamp], None]] = field(default_factory=list)
    claimed: set[GpuKey] = field(default_factory=set)  # by the present dispatcher
    claimed_by_others: dict[int, list[tuple[Timestamp, Timestamp]]] = field(default_factory=dict)
    checkpoints: list[RunKey] = field(default_factory=list)  # that were asked to save their state

    def run(self, policy: Policy, seconds: float = 1e7) -> Loop:
        """Until all is over, or so much time has passed."""
        began = RunBegan(self.clock.now(), policy.run_id, self.host, "/", ("list",), None, "{}")
        self.append(began)
        self.durable_records = 1
        self.events = [began]
        loop = Loop(self.world(None), replay(policy, [began]))
        return self._go_on(loop, seconds)

    def resume(self, policy: Policy, seconds: float = 1e7, *, adopt: bool = True) -> Loop:
        """What another dispatcher makes of it."""
        self.events = [decode_line(line[:-1], n) for n, line in enumerate(self.journal, start=1)]
        resumed = RunResumed(self.clock.now(), self.host, "{}")
        state = self._recalled(policy, resumed)
        if attempts := over(state, self.records, rebooted=self.was_rebooted):
            self.moment()
            self.durable_records = len(self.journal)
            for key in attempts:
                del self.records[key]
        self.was_rebooted = False
        loop = Loop(self.world(state.read_to), state)
        loop.resume(resumed, None, adopt=adopt)
        return self._go_on(loop, seconds)

    def _recalled(self, policy: Policy, resumed: RunResumed) -> State:
        """By the bookmark, if there is one: it says what the journal says."""
        if not self.bookmark_file:
            return replay(policy, self.events)
        whole = _past(self.events)
        whole.take(resumed)
        short = self._by_bookmark()
        short.take(resumed)
        end = self._mark()
        assert bookmark.encode(end, short, "") == bookmark.encode(end, whole, "")
        state = self._by_bookmark().state
        state.policy = policy
        return state

    def _by_bookmark(self) -> Past:
        first = self.events[0]
        assert isinstance(first, RunBegan)
        found = bookmark.decode(self.bookmark_file, "", first.name)
        assert found is not None
        for event in self.events[found.mark.seq :]:
            found.past.take(event)
        return found.past

    def put_bookmark(self, state: State) -> None:
        """If it is time, and what the dispatcher believes is what is on disk."""
        written = len(self.journal) - self.bookmarked
        if self.bookmark_every is None or written < self.bookmark_every:
            return
        if len(self.events) == len(self.journal) and not self.has_no_room():
            self.moment()
            past = Past(_terms(self.events), state)
            self.bookmark_file = bookmark.encode(self._mark(), past, "")
            self.bookmarked = len(self.journal)
            self.moment()

    def _mark(self) -> bookmark.Mark:
        return bookmark.Mark(len(self.journal), sum(map(len, self.journal)), 0)

    def pass_time(self, seconds: float) -> None:
        """While no dispatcher lives."""
        self.clock.time += seconds
        self.let_end()

    def reboot(self, loses: int = 0) -> None:
        """The machine loses power: whatever still ran is gone, and left no record of its end.
        `loses`: so many of the journal's last records, if they were not durable."""
        self.let_end()
        self.living.clear()
        self.lingering_memory.clear()
        self.was_rebooted = True
        kept = max(self.durable_records, len(self.journal) - loses)
        for seq in range(kept, len(self.journal)):
            event = decode_line(self.journal[seq][:-1], seq + 1)
            if isinstance(event, RunPlaced):  # only its own record, if it began, knows of it
                self.placed.discard(event.run)
                self.begun.discard(event.run)
                self.revoked.discard(event.run)
                self.ended.pop(event.run, None)
        del self.journal[kept:]
        if self.bookmarked > kept:  # it is not of this journal any more
            self.bookmark_file, self.bookmarked = b"", 0

    def let_end(self) -> None:
        """Shells whose time has come end, watched or not, and their wrappers say how."""
        for key, run in self.living.items():
            if not run.has_ended and run.shell_ends_at <= self.clock.time:
                run.has_ended = True
                if not run.was_killed:
                    self.ended[key] = (run.shell_ends_at, run.ending)
                    at = run.shell_ends_at + self.clock.ahead_seconds
                    self.records[key].end = (at, run.ending)

    def append(self, event: Event) -> None:
        self.journal.append(encode(event, len(self.journal) + 1))
        if isinstance(event, RunPlaced):
            self.placed.add(event.run)

    def driver_hangs_at(self, at: Timestamp) -> bool:
        return any(begin <= at < end for begin, end in self.driver_hangs)

    def has_no_room(self, at: Timestamp | None = None) -> bool:
        """`at`: None: now."""
        at = self.clock.time if at is None else at
        return any(begin <= at < end for begin, end in self.disk_is_full)

    def forget_sync(self) -> None:
        self.syncing, self.synced_at = None, _FOREVER

    def moment(self) -> None:
        """One at which a dispatcher may die."""
        self.moments += 1
        if self.syncing is not None:
            self.moments_in_sync.append(self.moments)
        if self.moments == self.die_at or (self.dies_when is not None and self.dies_when()):
            raise DispatcherDied

    def _go_on(self, loop: Loop, seconds: float) -> Loop:
        deadline = self.clock.time + seconds
        waiter = loop.world.waiter
        while not (decision := loop.tick()).over and self.clock.time < deadline:
            waiter.wait(loop.wake_at(decision))
        if decision.over:
            loop.close(self.clock.now())
        return loop

    def edges(self) -> tuple["_Gpus", "_Launcher", "_Claims"]:
        """For whoever looks after this box from now on."""
        self.dispatchers += 1
        self.claimed.clear()  # with a dispatcher its claims go
        self.forget_sync()
        self.launched_by_others = len(self.launched)
        close_looks = CloseLooks(lambda p: any(r.pid == p.pid for r in self.living.values()))
        return _Gpus(self, self.clock.now(), close_looks), _Launcher(self), _Claims(self)

    def world(self, read_to: Position | None) -> World:
        gpus, launcher, claims = self.edges()
        gpus.wakes_for_looks = False  # whoever waits sees to them
        self.began_at = self.clock.time if self.began_at is None else self.began_at
        arrivals = [(self.began_at + at, command) for at, command in self.commands]
        return World(
            self.clock,
            _Waiter(self, gpus),
            gpus,
            launcher,
            _Intake(self, arrivals, 0 if read_to is None else read_to.line),
            _Requests(self),
            _Inbox(self),
            claims,
            _Journal(self),
            _Teller(self),
            _Recorder(self),
        )

    def visit(self, gpu: int, begins: float, ends: float, gib: float, percent: int = 50) -> None:
        """A colleague uses a GPU from and to so many seconds after now."""
        now, number = self.clock.time, len(self.visits.get(gpu, ()))
        pid = 7_000_000 + gpu * 1000 + number
        visit = Visit(
            now + begins, now + ends, int(gib * GIB), percent, "alice", "python train.py", pid
        )
        self.visits.setdefault(gpu, []).append(visit)

    def is_claimed(self, gpu: GpuKey) -> bool:
        """By somebody else, at this moment."""
        now = self.clock.time
        claims = {self.key(index): spans for index, spans in self.claimed_by_others.items()}
        return any(begin <= now < end for begin, end in claims.get(gpu, ()))

    def key(self, index: int) -> GpuKey:
        if index not in self.keys:
            self.keys[index] = GpuKey(self.host, GpuUuid(pretend_uuid(self.first_uuid + index)))
        return self.keys[index]

    def strangers_at(self, gpu: int, at: Timestamp) -> list[Visit]:
        return [visit for visit in self.visits.get(gpu, ()) if visit.begins <= at < visit.ends]

    def readings(self, only: Collection[str] | None) -> tuple[GpuReading, ...]:
        indices = range(self.gpu_count)
        return tuple(self._sample(i) for i in indices if only is None or self.key(i).uuid in only)

    def _sample(self, index: int) -> GpuSample:
        now = self.clock.time
        visits = self.strangers_at(index, now)
        ours = [run for run in self.living.values() if index in run.gpu_indices]
        processes = [process_of(visit) for visit in visits]
        processes += [_our_process(run) for run in ours if run.job.seen_by_driver]
        used = sum(visit.memory_bytes for visit in visits)
        used += sum(run.job.memory_bytes for run in ours)
        used += sum(held for end, gpu, held in self.lingering_memory if gpu == index and now < end)
        busy = [visit.utilization_percent for visit in visits]
        busy += [run.job.utilization_percent for run in ours]
        return GpuSample(
            key=self.key(index),
            index=index,
            slot=None,
            name="Pretend GPU",
            memory_total_bytes=self.memory_bytes,
            memory_used_bytes=used,
            memory_free_bytes=max(0, self.memory_bytes - used),
            utilization_percent=min(100, sum(busy)),
            utilization_history=None,
            compute_mode="default",
            ailment=None,
            processes=tuple(processes),
        )


def _terms(events: Sequence[Event]) -> Terms:
    first, *others = events
    assert isinstance(first, RunBegan)
    terms = Terms(first, first.options, first.inputs)
    for event in others:
        terms.take(event)
    return terms


def _past(events: Sequence[Event]) -> Past:
    first, *others = events
    assert isinstance(first, RunBegan)
    past = began(first, first.name)
    for event in others:
        past.take(event)
    return past


def _our_process(run: LivingRun) -> GpuProcess:
    command = run.launch.spec.command
    return GpuProcess(run.pid, "compute", run.job.memory_bytes, "me", command, None, run.pid)


class _Waiter(Struct):
    box: PretendBox
    gpus: "_Gpus"

    def wait(self, until: Timestamp) -> None:
        """Time passes to what happens first. Nobody's clock ever stands still. Of looks that show
        nothing new nobody is told."""
        clock = self.box.clock
        first = min(until - clock.ahead_seconds, self._next_happening())
        while (due := self.gpus.close_looks.due_at()) < first:
            clock.time = max(clock.time, due)
            if self.gpus.look_closely():
                return
            self.gpus.close_looks.skip(min(first, self._next_change()))
        clock.time = max(clock.time, first)

    def _next_change(self) -> Timestamp:
        """Until then GPUs show the same, but for what our own runs do."""
        now, box = self.box.clock.time, self.box
        times = [at for visits in box.visits.values() for v in visits for at in (v.begins, v.ends)]
        times += [at for at, _, _ in box.lingering_memory]
        times += [at for span in box.driver_hangs for at in span]
        return min((at for at in times if at > now), default=_FOREVER)

    def _next_happening(self) -> Timestamp:
        now = self.box.clock.time
        times = [self.box.synced_at, *(at for at, _ in self.box.requests)]
        times += [at for at, _ in self.box.asked if at > now]
        times += [
            run.last_ends_at if run.has_ended else run.shell_ends_at
            for run in self.box.living.values()
        ]
        return min(times, default=_FOREVER)


class _Gpus(Struct):
    box: PretendBox
    due: Timestamp
    close_looks: CloseLooks
    looks: dict[str, Timestamp] = field(default_factory=dict)
    news: list[Snapshot] = field(default_factory=list)
    wakes_for_looks: bool = True

    def take(self, now: Timestamp) -> Sequence[Snapshot | SamplerTrouble]:
        self._watch_over_runs()
        if self.box.clock.time >= self.close_looks.due_at():
            self.look_closely()
        news, self.news = self.news, []
        return [*news, *self._answers(now)]

    def look_closely(self) -> bool:
        """Whether there is something new to be told."""
        now = self.box.clock.time
        if self.box.driver_hangs_at(now):
            self.close_looks.failed(now)
            return False
        news = self.close_looks.news(self.box.readings(self.close_looks.watched), now)
        if news:
            at = self.box.clock.now()
            self.news.append(Snapshot(self.box.host, at, news, whole=False))
        return bool(news)

    def _watch_over_runs(self) -> None:
        if self.box.interval_seconds <= EVERY_SECONDS:
            return
        runs = self.box.living.values()
        self.close_looks.watch({self.box.key(i).uuid for run in runs for i in run.gpu_indices})

    def _answers(self, now: Timestamp) -> Sequence[Snapshot | SamplerTrouble]:
        whole = now >= self.due
        if whole:
            self.due = now + self.box.interval_seconds
        if self.box.driver_hangs_at(self.box.clock.time):
            self.looks = {uuid: max(at, self.due) for uuid, at in self.looks.items()}
            trouble = SamplerTrouble(self.box.host, "the driver has not answered")
            return [trouble] if whole else []
        looks = [uuid for uuid, at in self.looks.items() if at <= now]
        for uuid in looks:
            del self.looks[uuid]
        if not whole and not looks:
            return []
        readings = self.box.readings(None if whole else looks)
        self.close_looks.told(readings, self.box.clock.time, whole=whole)
        return [Snapshot(self.box.host, now, readings, whole=whole)]

    def refresh(self, gpus: Sequence[tuple[GpuKey, Timestamp]], now: Timestamp) -> None:
        for gpu, _ in gpus:
            self.looks.setdefault(gpu.uuid, now + _LOOK_TAKES_SECONDS)

    def watch(self, gpus: Collection[GpuKey]) -> None:
        """The box knows itself where runs are."""

    def wake_at(self) -> Timestamp:
        looks = self.close_looks.due_at() + self.box.clock.ahead_seconds
        return min(
            self.due, *self.looks.values(), looks if self.wakes_for_looks else _FOREVER, _FOREVER
        )


class _Launcher(Struct):
    box: PretendBox
    leaders: set[RunKey] = field(default_factory=set)  # whom it looks after
    may_be_killed: set[RunKey] = field(default_factory=set)
    gone: list[RunExited | RunCleared] = field(default_factory=list)  # while nobody watched
    taken: list[RunExited | RunCleared] = field(default_factory=list)  # and may not be noted
    noted_ends: list[RunExited | RunCleared] = field(default_factory=list)  # and may not be kept

    def launch(self, launch: Launch, now: Timestamp) -> RunLaunched | RunPostponed | RunExited:
        box, key = self.box, launch.run
        if why := box.start_fails(launch.spec.command):
            return RunPostponed(now, key, why)
        if box.has_no_room():
            return RunPostponed(now, key, "No space left on device")
        assert key in box.placed, "launched though its start is not on record"
        assert key not in box.begun, "launched twice"
        assert key not in box.revoked, "launched though revoked"
        assert key not in box.records, "its record is in the way"
        box.moment()
        run = self._begin(launch)
        box.moment()
        self.leaders.add(key)
        return RunLaunched(now, key, ProcessId(run.pid, int(now), "boot"), None)

    def _begin(self, launch: Launch) -> LivingRun:
        box, key, command = self.box, launch.run, launch.spec.command
        box.last_pid += 1
        indices = indices_of(launch)
        broken = [box.broken[index] for index in indices if index in box.broken]
        job = broken[0] if broken else box.jobs(command)
        ends = box.clock.time + job.seconds
        last_ends = ends + job.leaves_behind_seconds
        run = LivingRun(launch, indices, job, box.last_pid, ends, last_ends, job.ending)
        box.launched.append((box.clock.time, key, command, indices[0] if indices else NO_GPU))
        box.begun.add(key)
        box.living[key] = run
        box.records[key] = AttemptRecord(run.pid)
        return run

    def adopt(self, run: Run, now: Timestamp) -> list[RunLaunched | RunRevoked | RunAdopted]:
        box, key, since = self.box, run.key, run.status.since
        match run.status:
            case Starting():
                if key not in box.records:
                    box.revoked.add(key)
                    return [RunRevoked(now, key)]
                process = ProcessId(box.records[key].pid, 0, "boot")
                launched = RunLaunched(since, key, process, None)
                return [launched, *self._look_after(key, since, now)]
            case Lingering():
                self.leaders.add(key)
                if key not in box.living:
                    self.gone.append(RunCleared(now, key))
            case Stopping(started_at=started_at, killed_at=killed_at):
                if killed_at is not None:
                    self.may_be_killed.add(key)
                return self._look_after(key, started_at, now)
            case Running():
                return self._look_after(key, since, now)
        return []

    def _look_after(
        self, key: RunKey, since: Timestamp, now: Timestamp
    ) -> list[RunLaunched | RunRevoked | RunAdopted]:
        self.leaders.add(key)
        if key in self.box.living:
            run = self.box.living[key]
            run.is_adopted, run.exit_told = True, False
            return [RunAdopted(now, key, since)]
        at, ending = self._end_by_record(key, now)
        self.gone.append(RunExited(at, key, ending, leftovers=0))
        return []

    def _end_by_record(self, key: RunKey, now: Timestamp) -> tuple[Timestamp, Ending]:
        record = self.box.records.get(key)
        if record is not None and record.end is not None:
            at, ending = record.end
            return min(at, now), ending
        return now, Killed(_SIGKILL) if key in self.may_be_killed else Lost()

    def terminate(self, run: RunKey) -> None:
        assert run in self.leaders
        self.box.moment()
        if run in self.box.living and not self.box.living[run].job.ignores_sigterm:
            self._end(run, _SIGTERM)
        self.box.moment()

    def checkpoint(self, run: RunKey) -> None:
        living = self.box.living.get(run)
        if living is None or not living.job.saves_when_told:
            self.terminate(run)
            return
        self.box.moment()
        self.box.checkpoints.append(run)
        self._end(run, _SIGTERM)
        self.box.moment()

    def kill(self, run: RunKey) -> None:
        assert run in self.leaders
        self.may_be_killed.add(run)
        self.box.moment()
        if run in self.box.living:
            self._end(run, _SIGKILL)
        self.box.moment()

    def take(self, now: Timestamp) -> Sequence[RunExited | RunCleared]:
        box = self.box
        box.let_end()
        told, self.gone = self.gone, []
        for key, run in list(box.living.items()):
            if key not in self.leaders:
                continue
            lives_on = run.last_ends_at > box.clock.time
            if run.has_ended and not run.exit_told:
                run.exit_told = True
                at, ending = self._end_by_record(key, now) if run.is_adopted else (now, run.ending)
                failed = run.job.out_of_memory if ending == run.job.ending else ""
                told.append(RunExited(at, key, ending, int(lives_on), failed))
            elif run.exit_told and not lives_on:
                told.append(RunCleared(now, key))
            if run.exit_told and not lives_on:
                self._bury(key, run)
        self.leaders -= {event.run for event in told if is_end_of_all(event)}
        self.taken += told
        return told

    def noted(self) -> None:
        self.noted_ends += self.taken
        self.taken = []

    def kept(self) -> None:
        kept, self.noted_ends = self.noted_ends, []
        self.written(kept)

    def written(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, RunExited | RunCleared) and is_end_of_all(event):
                self.box.records.pop(event.run, None)

    def living(self) -> Collection[RunKey]:
        return self.leaders

    def wake_at(self) -> Timestamp:
        return self.box.clock.now() if self.gone else _FOREVER

    def _end(self, key: RunKey, signum: int) -> None:
        now, run = self.box.clock.time, self.box.living[key]
        if run.shell_ends_at > now:
            run.shell_ends_at, run.was_killed = now, signum == _SIGKILL
            run.ending = Killed(signum) if run.was_killed else run.job.ending_when_asked
        run.last_ends_at = min(run.last_ends_at, now)

    def _bury(self, key: RunKey, run: LivingRun) -> None:
        del self.box.living[key]
        if run.job.memory_lingers_seconds:
            until = run.last_ends_at + run.job.memory_lingers_seconds
            for index in run.gpu_indices:
                self.box.lingering_memory.append((until, index, run.job.memory_bytes))


class _Intake(Struct):
    box: PretendBox
    arrivals: list[tuple[Timestamp, str]]
    taken: int

    def take(self, most: int) -> Sequence[Arrived]:
        now = self.box.clock.time
        arrived: list[Arrived] = []
        while len(arrived) < most and self._is_there(now):
            command = self.arrivals[self.taken][1]
            self.taken += 1
            spec = JobSpec(command, "list", "", wishes_in(command))
            arrived.append(Arrived(spec, Position(0, self.taken, self.taken)))
        return arrived

    def _is_there(self, now: Timestamp) -> bool:
        return self.taken < len(self.arrivals) and self.arrivals[self.taken][0] <= now

    def finished(self, now: Timestamp) -> Sequence[InputRead]:
        return []

    def has_more(self) -> bool:
        return False

    def ended(self) -> bool:
        return self.taken >= len(self.arrivals)

    def close(self) -> None: ...


class _Claims(Struct):
    box: PretendBox
    answers: list[ClaimAnswer] = field(default_factory=list)

    def ask(self, gpus: Sequence[tuple[GpuKey, int]], now: Timestamp) -> None:
        keys = tuple(key for key, _ in gpus)
        others = [self.box.key(index) for index in self.box.claimed_by_others]
        claimed = tuple((key, "claimed by bob") for key in others if self.box.is_claimed(key))
        taken = tuple((key, why) for key, why in claimed if key in keys)
        if taken:
            self.answers.append(ClaimRefused(now, keys, taken, claimed))
        else:
            self.box.claimed |= set(keys)
            self.answers.append(ClaimGranted(now, keys, claimed))

    def release(self, gpus: Collection[GpuKey], now: Timestamp) -> None:
        self.box.claimed -= set(gpus)

    def take(self, now: Timestamp) -> Sequence[ClaimAnswer]:
        answers, self.answers = self.answers, []
        return answers

    def wake_at(self) -> Timestamp:
        return self.box.clock.now() if self.answers else _FOREVER


class _Journal(Struct):
    box: PretendBox

    def write(self, events: Sequence[Event], *, durable: bool = True) -> str | None:
        """A crash may cut a batch off behind any of its records: then those before it are true."""
        box = self.box
        box.moment()
        if durable:
            self._end_sync()
        if box.has_no_room():
            return "cannot write the journal: No space left on device"
        for event in events:
            box.append(event)
            box.moment()
        if durable:
            box.durable_records = len(box.journal)
        return None

    def begin_sync(self) -> None:
        box = self.box
        assert box.syncing is None
        box.moment()
        box.syncing, box.synced_at = len(box.journal), box.clock.time + box.sync_seconds
        box.moment()

    def synced(self) -> str | None:
        box = self.box
        if box.syncing is None or box.synced_at > box.clock.time:
            return None
        box.moment()
        return self._end_sync()

    def _end_sync(self) -> str:
        box = self.box
        if box.syncing is None:
            return ""
        well = not box.has_no_room(min(box.synced_at, box.clock.time))
        if well:
            box.durable_records = box.syncing
        box.forget_sync()
        return "" if well else "the disk has no room for the journal"


class _Teller(Struct):
    box: PretendBox

    def tell(self, what: Tell) -> None:
        self.box.moment()
        self.box.told.append(what)
        self.box.moment()


class _Requests(Struct):
    box: PretendBox

    def take(self, now: Timestamp) -> Sequence[DrainRequested | StopRequested]:
        by_now = self.box.clock.time
        due = [kind for at, kind in self.box.requests if at <= by_now]
        self.box.requests = [request for request in self.box.requests if request[0] > by_now]
        return [kind(now, "asked") for kind in due]


class _Inbox(Struct):
    box: PretendBox
    taken: set[str] = field(default_factory=set)  # by the present dispatcher

    def take(self, now: Timestamp) -> Sequence[Request]:
        found = []
        for at, request in self.box.asked:
            if at > self.box.clock.time or request.id in self.taken:
                continue
            self.taken.add(request.id)
            if any(getattr(event, "request", None) == request.id for event in self.box.events):
                self.answer(request.id, Answer(True, "done already"))
            else:
                found.append(request)
        return found

    def answer(self, request: str, answer: Answer) -> None:
        self.box.moment()
        self.box.answers[request] = answer
        self.box.asked = [each for each in self.box.asked if each[1].id != request]


class _Recorder(Struct):
    box: PretendBox

    def recorded(self, event: Event, state: State, now: Timestamp) -> None:
        self.box.events.append(event)

    def decided(self, decision: Decision, state: State, now: Timestamp) -> None:
        for observe in self.box.observers:
            observe(state, now)
        self.box.put_bookmark(state)

    def wake_at(self) -> Timestamp:
        return _FOREVER


def commands_at_once(commands: Iterable[str]) -> list[tuple[float, str]]:
    return [(0.0, command) for command in commands]
