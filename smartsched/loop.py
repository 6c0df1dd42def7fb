"""One tick: observe, decide, record, act. Knows the order; knows no device or file.

What was observed is true whether or not it is written; what was decided happens only once it is.
The disk is waited for where what happens outlives this machine: what people were told, and runs on
other hosts. A run on this one is lost with it, and begun anew whether or not its start was on disk.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from smartsched.core.actions import (
    Action,
    Checkpoint,
    Claim,
    Kill,
    Launch,
    Refresh,
    Release,
    Tell,
    Terminate,
)
from smartsched.core.apply import apply
from smartsched.core.decide import Decision, decide
from smartsched.core.events import (
    Event,
    InputEnded,
    JobAccepted,
    JobFinished,
    JobRecalled,
    LineRejected,
    ListReplaced,
    OptionsSet,
    RunClosed,
    RunLaunched,
    RunPlaced,
    RunResumed,
    RunStopping,
)
from smartsched.core.model import (
    BadLine,
    JobSpec,
    Lingering,
    Running,
    Snapshot,
    Stopping,
    Timestamp,
    Wait,
)
from smartsched.core.requests import Answer, Ask
from smartsched.core.settle import settle
from smartsched.core.sight import hear, judge_again, let_go, see
from smartsched.core.state import EVERYWHERE, Closing, State, postpone, unsettled
from smartsched.core.status import status
from smartsched.core.steering import steer
from smartsched.ports import (
    Arrived,
    Claims,
    Clock,
    GpuSource,
    Inbox,
    Intake,
    Journal,
    Launcher,
    NewOptions,
    Observer,
    Recall,
    Request,
    Requests,
    Teller,
    Waiter,
)

# Commands read ahead of their start. Enough to fill every GPU of a large box at once; the rest of
# the list stays where it is, so that its length costs nothing.
QUEUE_WINDOW = 64
# Lines looked at in one tick, commands or not: bad ones must not keep us from everything else.
LINES_A_TICK = 256


class World(Struct, frozen=True):
    clock: Clock
    waiter: Waiter
    gpus: GpuSource
    launcher: Launcher
    intake: Intake
    requests: Requests
    inbox: Inbox
    claims: Claims
    journal: Journal
    teller: Teller
    observer: Observer


# Later than that we were stopped (SIGSTOP), or the machine was.
OVERSLEPT_SECONDS = 1.0
# What nothing follows from that would outlive this machine is in the journal at once, and given to
# the disk after this at the latest, for which nobody waits: where others write much, that may take
# seconds. A job whose end a loss of power takes with it is run again.
DURABLE_WITHIN_SECONDS = 0.05
# When it takes longer than that, nothing is started until it is done.
DISK_PATIENCE_SECONDS = 10.0
_NO_ANSWER = "the disk with the run's journal does not answer"
# What it refused is given to it again after that.
TO_THE_DISK_AGAIN_SECONDS = 1.0


class Loop:
    def __init__(self, world: World, state: State, window: int = QUEUE_WINDOW) -> None:
        """`state`: what the journal says so far. `window`: how many commands are read ahead."""
        self.world = world
        self.state = state
        self._window = window
        self._slept_until: Timestamp = float("inf")
        self._more_input = False
        self._unwritten: list[Event] = []  # true, but not in the journal yet
        self._untold: list[Tell] = []
        self._answers: list[tuple[str, Answer]] = []  # to be given once all of it is on record
        self._asked: list[str] = []  # requests that want to know how the run stands
        self._behind = False  # the journal could not be written
        # By when it is to be given to the disk; inf: it has been given all that is in the journal.
        self._durable_by: Timestamp = float("inf")
        self._refused = ""  # why what was given could not be made durable
        self._syncing_since: Timestamp = float("inf")  # what was given is being made durable

    def resume(self, resumed: RunResumed, replaced: ListReplaced | None, *, adopt: bool) -> None:
        """Go on where an earlier dispatcher ended or died. `adopt`: whether what it left running
        may go on; else it is stopped and started anew."""
        now, launcher = resumed.at, self.world.launcher
        self._record([resumed], now)
        for run in list(self.state.runs.values()):
            self._record(launcher.adopt(run, now), now)
        self._record(launcher.take(now), now)  # what ended meanwhile did not outlive anybody
        self._claim_again(now)
        if not adopt:
            runs = self.state.runs.items()
            survivors = [key for key, run in runs if isinstance(run.status, Running)]
            self._record([RunStopping(now, key, "survivor") for key in survivors], now)
        self._untold += self._settle(now)
        if replaced is not None:
            self._record([replaced], now)
            self._record(self.world.intake.finished(now), now)
        self._write([])
        self._ask_again()

    def _claim_again(self, now: Timestamp) -> None:
        """Where runs of ours are, other dispatchers are to know; with our predecessor its claims
        went. Whoever came before us stays there beside us."""
        for gpu in self.state.holds:
            self.world.claims.ask([(gpu, 0)], now)

    def _ask_again(self) -> None:
        """That runs were told to end is on record; whether it was done before our predecessor died,
        nobody knows."""
        for key, run in self.state.runs.items():
            match run.status:
                case Stopping(killed_at=float()) | Lingering(killed_at=float()):
                    self.world.launcher.kill(key)
                case Stopping(why="contention" | "leaving") if (
                    self.state.policy.asks_for_checkpoints
                ):
                    self.world.launcher.checkpoint(key)
                case Stopping() | Lingering(asked=True):
                    self.world.launcher.terminate(key)
                case _:
                    pass

    def run(self) -> State:
        """Tick until every command has its end or the user wants no more. The state at the end."""
        while not (decision := self.tick()).over:
            self._slept_until = self.wake_at(decision)
            self.world.waiter.wait(self._slept_until)
        return self.state

    def close(self, now: Timestamp) -> str | None:
        """The last record. Why it cannot be written, if it cannot."""
        state = self.state
        left = state.queue or state.input_open or state.runs or state.interrupted
        totals = state.totals
        undone = len(state.queue) + len(state.interrupted) + len(unsettled(state))
        closed = RunClosed(now, not left, totals.failed, totals.ok, totals.cancelled, left=undone)
        self._record([closed], now)
        why = self._write([])
        if why is None:
            self._act(self._untold, now)
        return why

    def tick(self) -> Decision:
        now = self.world.clock.now()
        self._observe(now)
        self._untold += self._settle(now)
        decision = decide(self.state, now)
        claims = any(isinstance(action, Claim) for action in decision.actions)
        if not claims:  # the sampler answers while the disk does; what is claimed is seen after
            self._look(decision.actions, now)
        self._put_on_record(decision, now)
        told, self._untold = ([], self._untold) if self._behind else (self._untold, [])
        for event in decision.events:
            self._apply(event, now)
            if isinstance(event, RunPlaced):
                decision.wake_by(now)  # its own deadlines begin now
        if not self._act([*told, *decision.actions], now):
            decision.wake_by(now)
        if claims:
            self._look(decision.actions, now)
        if self._unwritten and not self._behind:
            self._note_launches(now)
        self._give_to_the_disk(now)
        self._answer(decision, now)
        self.world.observer.decided(decision, self.state, now)
        return decision

    def _observe(self, now: Timestamp) -> None:
        world = self.world
        self.state.local_offset = world.clock.local_offset()
        self._hear_of_the_disk(now)
        self._record(world.requests.take(now), now)
        for request in world.inbox.take(now):
            self._hear(request, now)
        self._record(world.launcher.take(now), now)
        for answer in world.claims.take(now):
            hear(self.state, answer)
        overslept = now > self._slept_until + OVERSLEPT_SECONDS
        for observation in world.gpus.take(now):
            heard_at = now
            if isinstance(observation, Snapshot):
                if observation.arrived_at is not None:
                    heard_at = observation.arrived_at
                if overslept:
                    heard_at = observation.taken_at  # it lay about while we were stopped
            see(self.state, observation, heard_at)
        self._more_input = False
        if self.state.closing is Closing.NO and self.state.input_open and not self._behind:
            self._accept(now)

    def _hear(self, request: Request | NewOptions, now: Timestamp) -> None:
        match request:
            case Ask(asked):
                self._asked.append(asked)
                return
            case NewOptions(number, options, policy, text):
                event: Event = OptionsSet(now, number, options)
                answer = Answer(True, text)
                self.state.policy = policy
                judge_again(self.state)
            case _:
                event, answer = steer(self.state, request, now)
        self._record([event], now)
        self._answers.append((request.id, answer))

    def _answer(self, decision: Decision, now: Timestamp) -> None:
        """Whoever has asked for something learns of it once it cannot be lost any more."""
        if self._asked:
            facts = status(self.state, decision.waiting, now)
            for asked in self._asked:
                self.world.inbox.answer(asked, Answer(True, "", facts))
            self._asked.clear()
        if not self._behind:
            for number, answer in self._answers:
                self.world.inbox.answer(number, answer)
            self._answers.clear()

    def _accept(self, now: Timestamp) -> None:
        intake = self.world.intake
        budget = LINES_A_TICK
        while (room := min(self._window - len(self.state.queue), budget)) > 0:
            arrived = intake.take(room)
            if not arrived:
                break
            budget -= len(arrived)
            for each in arrived:
                self._record([self._arrival(each, now)], now)
        self._more_input = budget == 0 or intake.has_more()
        self._record(intake.finished(now), now)
        if intake.ended():
            self._record([InputEnded(now)], now)

    def _arrival(self, arrived: Arrived, now: Timestamp) -> Event:
        match arrived.what:
            case JobSpec() as spec:
                return JobAccepted(now, self.state.next_job(), spec, arrived.read_to)
            case BadLine(source, why):
                return LineRejected(now, source, why, arrived.read_to)
            case Recall(job, spec, attempts):
                return JobRecalled(now, job, spec, attempts, arrived.read_to)

    def _settle(self, now: Timestamp) -> list[Tell]:
        """What becomes of the jobs whose runs have ended; whom the user's command is to be told."""
        told = []
        for event in settle(self.state, now):
            if isinstance(event, JobFinished) and self.state.policy.tells:
                told.append(Tell(self.state.ended[event.run], event.outcome))
            self._record([event], now)
        return told

    def _put_on_record(self, decision: Decision, now: Timestamp) -> None:
        durable, was_held = self._is_to_be_durable(decision), self.state.held
        if (why := self._write(decision.events, now, durable=durable)) is not None:
            self._hold(decision, why, now)
        elif was_held and not self.state.held:
            decision.wake_by(now)

    def _is_to_be_durable(self, decision: Decision) -> bool:
        """Before anything more is done."""
        reaches_others = self.state.policy.spans_hosts and any(
            not isinstance(action, Refresh) for action in decision.actions
        )
        return bool(decision.over or self._untold or self._answers or reaches_others)

    def _write(
        self, events: Sequence[Event], now: Timestamp = float("inf"), *, durable: bool = True
    ) -> str | None:
        """Note them with what is true already, and make all of it durable, or see to it that it
        soon is. Why not, if not."""
        everything = [*self._unwritten, *events]
        is_due = durable and min(self._durable_by, self._syncing_since) < float("inf")
        why = None
        if everything or is_due:
            why = self.world.journal.write(everything, durable=durable)
            if durable:
                self._syncing_since = float("inf")
                if why is not None:
                    self._durable_by = self.world.clock.now() + TO_THE_DISK_AGAIN_SECONDS
        self._behind = why is not None
        if why is not None:
            return why
        self._unwritten.clear()
        if durable:
            self.world.launcher.noted()
            self.world.launcher.kept()
            self._durable_by = float("inf")
            self._refused = self.state.held = ""
        elif everything:
            self._durable_by = min(self._durable_by, now + DURABLE_WITHIN_SECONDS)
        return None

    def _give_to_the_disk(self, now: Timestamp) -> None:
        """What is due, and not waited for."""
        if self._is_syncing() or now < self._durable_by:
            return
        if not self._unwritten:
            self.world.launcher.noted()
        self.world.journal.begin_sync()
        self._durable_by, self._syncing_since = float("inf"), now

    def _is_syncing(self) -> bool:
        return self._syncing_since < float("inf")

    def _hear_of_the_disk(self, now: Timestamp) -> None:
        """Of what was given to it. While it refuses that, or does not answer at all, nothing new is
        begun of which nobody may know later."""
        why_not = self.world.journal.synced()
        if why_not is not None:
            self._syncing_since, self._refused = float("inf"), why_not
            if why_not:
                self._durable_by = now + TO_THE_DISK_AGAIN_SECONDS
            else:
                self.world.launcher.kept()
        is_silent = now > self._syncing_since + DISK_PATIENCE_SECONDS
        self.state.held = self._refused or (_NO_ANSWER if is_silent else "")

    def _note_launches(self, now: Timestamp) -> None:
        """So that another dispatcher knows them. It need not be durable yet: the end of this
        machine would be theirs too, and agents elsewhere tell of them again until it is."""
        if self.world.journal.write(self._unwritten, durable=False) is None:
            self._unwritten = []
            self._durable_by = min(self._durable_by, now + DURABLE_WITHIN_SECONDS)

    def _hold(self, decision: Decision, why: str, now: Timestamp) -> None:
        """Nothing is started that is not on record; all else that was decided is done."""
        unstarted = {e.run for e in decision.events if isinstance(e, RunPlaced)}
        decision.events = [e for e in decision.events if getattr(e, "run", None) not in unstarted]
        decision.actions = [a for a in decision.actions if not isinstance(a, Launch)]
        self._unwritten += decision.events
        postpone(self.state, EVERYWHERE, now, why)
        decision.waiting = Wait(f"nothing is started: {why}")
        decision.wake_by(self.state.postponed[EVERYWHERE].until)

    def _act(self, actions: Iterable[Action], now: Timestamp) -> bool:
        """Whether all of it went as decided; if not, there is something new to decide."""
        world, as_decided = self.world, True
        for action in actions:
            match action:
                case Launch():
                    if (outcome := world.launcher.launch(action, now)) is not None:
                        as_decided = as_decided and isinstance(outcome, RunLaunched)
                        self._record([outcome], now)
                case Refresh():
                    pass  # see _look
                case _:
                    self._do(action, now)
        return as_decided

    def _look(self, actions: Iterable[Action], now: Timestamp) -> None:
        looks = [(a.gpu, a.after) for a in actions if isinstance(a, Refresh)]
        if looks:
            self.world.gpus.refresh(looks, now)

    def _do(
        self, action: Terminate | Checkpoint | Kill | Claim | Release | Tell, now: Timestamp
    ) -> None:
        world = self.world
        match action:
            case Terminate(run):
                world.launcher.terminate(run)
            case Checkpoint(run):
                world.launcher.checkpoint(run)
            case Kill(run):
                world.launcher.kill(run)
            case Claim(gpus):
                world.claims.ask(gpus, now)
            case Release(gpus):
                world.claims.release(gpus, now)
                let_go(self.state, gpus)
            case Tell():
                world.teller.tell(action)

    def _record(self, events: Iterable[Event], now: Timestamp) -> None:
        """Take in what is true whatever we do; the next write has it."""
        for event in events:
            self._unwritten.append(event)
            self._apply(event, now)

    def _apply(self, event: Event, now: Timestamp) -> None:
        apply(self.state, event)
        self.world.observer.recorded(event, self.state, now)

    def wake_at(self, decision: Decision) -> Timestamp:
        """How long it may sleep if nothing happens."""
        if self._more_input and len(self.state.queue) < self._window:
            return self.world.clock.now()
        world = self.world
        return min(
            decision.wake_at,
            float("inf") if self._is_syncing() else self._durable_by,
            world.gpus.wake_at(),
            world.launcher.wake_at(),
            world.claims.wake_at(),
            world.observer.wake_at(),
        )
