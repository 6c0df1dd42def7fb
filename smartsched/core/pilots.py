"""How many pilots are wanted: jobs in Slurm's queue that bring us GPUs for a while.

A pilot costs colleagues GPUs from when it begins to when it ends, so there are only as many as
waiting jobs have use for, and none outlives its use. What Slurm says of them comes in as news; what
should be done comes out as a plan. A pilot that Slurm calls ended may still run, on a node that
Slurm has lost sight of: nothing here is proof that a job has ended.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from smartsched.core import slurm, words
from smartsched.core.model import Timestamp
from smartsched.core.pilot_news import (
    Answers,
    Ended,
    Ends,
    PilotNews,
    Refused,
    Runs,
    Silent,
    Submitted,
    Waits,
)
from smartsched.core.slurm import Phase, PilotId

# A job that is retried, or the next line of the input, comes within this; what waits in Slurm's
# queue has earned its place there.
SURPLUS_SECONDS = 30.0
# How long a pilot with nothing to do is kept where more may come.
IDLE_SECONDS = 300.0
# How long a pilot that was told to end may take.
ENDING_PATIENCE_SECONDS = 120.0
# An agent that was told to end, and is out of sight since, is about to be gone for so long.
GOES_WITHIN_SECONDS = 10.0
MOST_FAILURES = 3
_FIRST_REFUSAL_BACKOFF_SECONDS = 30.0
_FIRST_FAILURE_BACKOFF_SECONDS = 10.0
_LONGEST_BACKOFF_SECONDS = 600.0


class PilotHost(Struct, frozen=True):
    """A pilot whose agent has joined."""

    gpus: int  # granted to it
    open_gpus: int  # on which a job can start now or soon: not in use by a run, nor by strangers
    is_idle: bool  # no run of ours is there
    is_ending: bool = False  # it takes no new work: it was told to end, or warned of its limit


class Demand(Struct, frozen=True):
    """What there is to do, and who is there to do it."""

    needs: Sequence[int]  # how many GPUs each waiting job takes; the first few hundred will do
    more_to_come: bool  # the input has not ended
    has_runs: bool  # something of ours runs, or may run, anywhere
    joined: Mapping[PilotId, PilotHost] = field(default_factory=dict)
    elsewhere: Sequence[int] = ()  # open GPUs of each host that is no pilot

    @property
    def is_over(self) -> bool:
        return not self.needs and not self.more_to_come and not self.has_runs


class Plan(Struct, frozen=True):
    submit: bool  # one more
    withdraw: tuple[PilotId, ...]  # if they still wait in Slurm's queue
    cancel: tuple[PilotId, ...]  # whatever they do
    tell_to_end: tuple[PilotId, ...]  # through their agents; said again until they have ended
    wake_at: Timestamp  # plan again then, if nothing happens before


class _Pilot(Struct):
    phase: Phase = "waits"
    reason: str = ""
    ends_at: Timestamp | None = None
    warn_seconds: float = 0.0  # before that, it takes no more work
    has_joined: bool = False
    has_worked: bool = False
    idle_since: Timestamp | None = None  # None: it works, or is not there
    told_at: Timestamp | None = None  # when it was told to end; None: it was not
    takes_no_work: bool = False  # its agent says so
    was_in_vain: bool = False  # it was told though there was work, and has done none
    given_up: bool = False  # it was withdrawn or cancelled

    @property
    def has_failed(self) -> bool:
        """If it ends now."""
        was_dismissed = self.told_at is not None and not self.was_in_vain
        return not (self.has_worked or self.given_up or was_dismissed)


class Pilots:
    """All pilots of a run. `most`: at once; `gpus_per_pilot`: as submitted."""

    def __init__(
        self, *, most: int, gpus_per_pilot: int, warn_seconds: float, resumed: bool
    ) -> None:
        """`warn_seconds`: how long before its time limit a pilot takes no more work. `resumed`:
        there may be some of an earlier dispatcher, of which Slurm has to tell first."""
        self._most = most
        self._gpus = gpus_per_pilot
        self._warn_seconds = warn_seconds
        self._pilots: dict[PilotId, _Pilot] = {}
        self._is_known = not resumed
        self._is_submitting = False
        self._surplus_since: Timestamp | None = None
        self._not_before: Timestamp = float("-inf")
        self._refusals = 0  # in a row
        self._refused: str | None = None
        self._failures = 0  # pilots in a row that never joined, or did nothing
        self._any_worked = False
        self._silent: str | None = None
        self.gave_up: str | None = None  # why none is submitted any more; None: they are

    def hear(self, news: PilotNews, now: Timestamp) -> None:
        """Pilots may be unknown here: Slurm goes on to speak of those that are long forgotten."""
        match news:
            case Submitted(pilot):
                self._is_submitting, self._refusals, self._refused = False, 0, None
                self._pilots.setdefault(pilot, _Pilot())
            case Refused(why):
                self._is_submitting, self._refused = False, why
                self._refusals += 1
                self._put_off(_FIRST_REFUSAL_BACKOFF_SECONDS, self._refusals, now)
            case Silent(why):
                self._silent = why
            case Answers():
                self._silent, self._is_known = None, True
            case Ended(pilot, how):
                self._bury(pilot, how, now)
            case Waits() | Runs() | Ends() if news.pilot in self._pilots:
                self._note(self._pilots[news.pilot], news, now)
            case _:
                pass

    def joined(self, pilot: PilotId) -> None:
        """Its agent has said so."""
        if pilot in self._pilots:
            self._pilots[pilot].has_joined = True

    def plan(self, demand: Demand, now: Timestamp) -> Plan:
        self._look_at(demand, now)
        wanted, surplus = self._compare(demand, now)
        submit = self._submit(wanted, now)
        withdraw = self._withdraw(surplus, demand, now)
        told = self._tell(demand, now)
        return Plan(submit, withdraw, self._cancel(demand, now), told, self._wake_at(wanted, now))

    def is_about_to_end(self, pilot: PilotId, now: Timestamp) -> bool:
        """Whether no job should be started there any more."""
        known = self._pilots.get(pilot)
        return known is not None and self._is_leaving(known, now)

    def has_ended(self, pilot: PilotId) -> bool:
        """By Slurm's word; whether what ran there has ended is another question."""
        return self._is_known and pilot not in self._pilots

    def is_of_use(self, pilot: PilotId) -> bool:
        """Whether its end is no surprise: it has done something, or there was nothing to do."""
        known = self._pilots.get(pilot)
        return known is None or not known.has_failed

    def left(self) -> int:
        """How many Slurm has, or is being given."""
        return len(self._pilots) + self._is_submitting

    def may_bring_more(self) -> bool:
        """Whether it is of interest to those who wait how pilots stand."""
        coming = any(
            not p.has_joined and p.phase in ("waits", "runs") for p in self._pilots.values()
        )
        return bool(coming or self._is_submitting or self.gave_up or self._silent or self._refused)

    def summary(self) -> str:
        """ "2 pilots run, 1 waits (Resources)": what there is, and why there are not more."""
        parts = [self._counted("runs", "run")]
        reasons = {p.reason for p in self._pilots.values() if p.phase == "waits" and p.reason}
        why = f" ({', '.join(sorted(reasons))})" if reasons else ""
        if waiting := self._counted("waits", "wait"):
            parts.append(waiting + why)
        text = ", ".join(part for part in parts if part) or "no pilots"
        trouble = self.gave_up or (self._silent and f"Slurm does not answer: {self._silent}")
        trouble = trouble or (self._refused and f"the last was refused: {self._refused}")
        return f"{text}; {trouble}" if trouble else text

    def _counted(self, phase: Phase, verb: str) -> str:
        number = sum(1 for pilot in self._pilots.values() if pilot.phase == phase)
        return f"{words.count(number, 'pilot')} {verb}{'s' if number == 1 else ''}" * bool(number)

    def _bury(self, pilot: PilotId, how: str, now: Timestamp) -> None:
        known = self._pilots.pop(pilot, None)
        if known is None or not known.has_failed:
            return
        self._failures += 1
        self._put_off(_FIRST_FAILURE_BACKOFF_SECONDS, self._failures, now)
        if self._failures >= MOST_FAILURES and not self._any_worked:
            number = words.count(self._failures, "pilot")
            without = "run a job" if known.has_joined else "joined"
            self.gave_up = (
                f"no more pilots are submitted: {number} in a row ended without having {without},"
                f" the last one, {pilot}: {how}"
            )

    def _put_off(self, first: float, times: int, now: Timestamp) -> None:
        self._not_before = now + min(first * 2 ** min(times - 1, 16), _LONGEST_BACKOFF_SECONDS)

    def _look_at(self, demand: Demand, now: Timestamp) -> None:
        for number in demand.joined:
            if number in self._pilots and not self._pilots[number].has_joined:
                self.joined(number)
        for number, pilot in self._pilots.items():
            host = demand.joined.get(number)
            if host is not None and host.is_ending:
                pilot.takes_no_work = True
            if host is not None and not host.is_idle:
                pilot.has_worked = self._any_worked = True
                self._failures = 0
            if host is None or not host.is_idle:
                pilot.idle_since = None
            elif pilot.idle_since is None:
                pilot.idle_since = now

    def _compare(self, demand: Demand, now: Timestamp) -> tuple[int, int]:
        """How many more have something to do; how many that wait in Slurm's queue have not."""
        there = [
            host.open_gpus
            for number, host in demand.joined.items()
            if not host.is_ending and not self.is_about_to_end(number, now)
        ]
        coming = [p for p in self._pilots.values() if self._is_coming(p, now)]
        waiting = sum(1 for pilot in coming if pilot.phase == "waits")
        expected = len(coming) + self._is_submitting
        used = _pilots_for(
            demand.needs, [*there, *demand.elsewhere], self._gpus, max(expected, self._most)
        )
        return max(used - expected, 0), min(max(expected - used, 0), waiting)

    def _submit(self, wanted: int, now: Timestamp) -> bool:
        """One after the other: if one is refused, so is the next."""
        may = self._is_known and not self._is_submitting and self.gave_up is None
        if not wanted or not may or now < self._not_before or self._live(now) >= self._most:
            return False
        self._is_submitting = True
        return True

    def _withdraw(self, surplus: int, demand: Demand, now: Timestamp) -> tuple[PilotId, ...]:
        """The latest first; the others will begin earlier."""
        if not surplus:
            self._surplus_since = None
        elif self._surplus_since is None:
            self._surplus_since = now
        is_lasting = (
            self._surplus_since is not None and now >= self._surplus_since + SURPLUS_SECONDS
        )
        too_many = max(self._live(now) - self._most, 0)
        number = max(surplus if is_lasting or demand.is_over else 0, too_many)
        waiting = [n for n, p in self._pilots.items() if p.phase == "waits" and not p.given_up]
        return self._give_up(waiting[len(waiting) - min(number, len(waiting)) :])

    def _tell(self, demand: Demand, now: Timestamp) -> tuple[PilotId, ...]:
        for number, host in demand.joined.items():
            pilot = self._pilots.get(number)
            if (
                pilot is not None
                and pilot.told_at is None
                and self._is_of_no_use(pilot, host, demand, now)
            ):
                pilot.told_at = now
                pilot.was_in_vain = bool(demand.needs) and not pilot.has_worked
        return tuple(
            number
            for number, pilot in self._pilots.items()
            if pilot.told_at is not None and number in demand.joined
        )

    def _is_of_no_use(self, pilot: _Pilot, host: PilotHost, demand: Demand, now: Timestamp) -> bool:
        if pilot.idle_since is None:
            return False
        if self._is_leaving(pilot, now):
            return True
        if any(need <= host.gpus for need in demand.needs):
            return False
        return not demand.more_to_come or now >= pilot.idle_since + IDLE_SECONDS

    def _cancel(self, demand: Demand, now: Timestamp) -> tuple[PilotId, ...]:
        """Those that do not end though they were told to; and when all is over, those that nobody
        can tell."""
        chosen = []
        for number, pilot in self._pilots.items():
            is_stuck = (
                pilot.told_at is not None
                and now >= pilot.told_at + ENDING_PATIENCE_SECONDS
                and (number not in demand.joined or pilot.idle_since is not None)
            )
            goes = pilot.told_at is not None and now < pilot.told_at + GOES_WITHIN_SECONDS
            is_left_over = demand.is_over and number not in demand.joined and not goes
            is_there = pilot.phase == "runs" and not pilot.given_up
            if is_there and (is_stuck or is_left_over):
                chosen.append(number)
        return self._give_up(chosen)

    def _give_up(self, pilots: Sequence[PilotId]) -> tuple[PilotId, ...]:
        for pilot in pilots:
            self._pilots[pilot].given_up = True
        return tuple(pilots)

    def _live(self, now: Timestamp) -> int:
        """Of those that count as one of the most: one whose end is near may be replaced."""
        staying = (pilot for pilot in self._pilots.values() if not self._is_leaving(pilot, now))
        return sum(1 for _ in staying) + self._is_submitting

    def _is_coming(self, pilot: _Pilot, now: Timestamp) -> bool:
        return not pilot.has_joined and not self._is_leaving(pilot, now)

    def _is_leaving(self, pilot: _Pilot, now: Timestamp) -> bool:
        is_near = pilot.ends_at is not None and now >= pilot.ends_at - pilot.warn_seconds
        is_told = pilot.told_at is not None or pilot.given_up or pilot.takes_no_work
        return is_near or is_told or pilot.phase in ("ends", "ended")

    def _wake_at(self, wanted: int, now: Timestamp) -> Timestamp:
        times = [self._not_before] if wanted and self.gave_up is None else []
        if self._surplus_since is not None:
            times.append(self._surplus_since + SURPLUS_SECONDS)
        for pilot in self._pilots.values():
            if pilot.ends_at is not None:
                times.append(pilot.ends_at - pilot.warn_seconds)
            if pilot.idle_since is not None:
                times.append(pilot.idle_since + IDLE_SECONDS)
            if pilot.told_at is not None:
                times.append(pilot.told_at + ENDING_PATIENCE_SECONDS)
        return min((at for at in times if at > now), default=float("inf"))

    def _note(self, pilot: _Pilot, news: Waits | Runs | Ends, now: Timestamp) -> None:
        match news:
            case Waits(reason=reason):
                pilot.phase, pilot.reason = "waits", reason
            case Runs(ends_at=ends_at):
                if pilot.phase == "waits":
                    pilot.given_up = False  # it had begun before it could be withdrawn
                if pilot.ends_at is None and ends_at is not None:
                    left = max(ends_at - now, 0.0)
                    pilot.warn_seconds = slurm.warn_seconds(self._warn_seconds, left)
                pilot.phase, pilot.reason, pilot.ends_at = "runs", "", ends_at
            case Ends():
                pilot.phase = "ends"


def _pilots_for(needs: Sequence[int], open_gpus: Sequence[int], gpus: int, most: int) -> int:
    """How many pilots of so many GPUs it takes, up to `most`, for the jobs that find no room on
    open GPUs. A job that takes more than a pilot has is no reason for any."""
    room = sorted(open_gpus)
    pilots: list[int] = []
    for need in sorted(needs, reverse=True):
        fitting = next((n for n, free in enumerate(room) if free >= need), None)
        if fitting is not None:
            room[fitting] -= need
        elif need <= gpus:
            fitting = next((n for n, free in enumerate(pilots) if free >= need), None)
            if fitting is not None:
                pilots[fitting] -= need
            elif len(pilots) < most:
                pilots.append(gpus - need)
    return len(pilots)
