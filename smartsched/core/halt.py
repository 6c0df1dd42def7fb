"""When so many jobs have failed that the rest is not worth starting: GNU parallel's --halt."""

import re

from msgspec import Struct

from smartsched.core import words
from smartsched.core.totals import Totals
from smartsched.errors import UsageError

_FORM = re.compile(r"(soon|now),fail=(\d{1,9})(%?)", re.ASCII)
# One failure of one job is 100 %: a share means something only after a few.
_FEWEST_FINISHED_FOR_A_SHARE = 3


class Halt(Struct, frozen=True):
    """`stop`: what runs is stopped too. Either a number of failures or a share of the finished."""

    stop: bool
    failures: int | None
    percent: int | None

    def reached(self, totals: Totals, before: Totals) -> str | None:
        """Why to halt; None: go on. What an earlier dispatcher saw fail does not count again."""
        failed = totals.failed - before.failed
        finished = failed + totals.ok - before.ok
        if self.failures is not None:
            return f"{words.count(failed, 'job')} failed" if failed >= self.failures else None
        assert self.percent is not None
        if finished < _FEWEST_FINISHED_FOR_A_SHARE or 100 * failed < self.percent * finished:
            return None
        return f"{failed:,} of {words.count(finished, 'finished job')} failed"


def parse_halt(text: str) -> Halt:
    """ "soon,fail=3", "now,fail=10%". Raises UsageError."""
    found = _FORM.fullmatch(text.strip().replace(" ", ""))
    if found is None:
        raise UsageError(f"{text!r} does not say when: write it as soon,fail=3 or now,fail=10%")
    number, is_share = int(found[2]), bool(found[3])
    if number < 1 or (is_share and number > 100):
        raise UsageError(
            f"{text!r} asks for {found[2]}{found[3]}: it takes 1 or more, or 1% to 100%"
        )
    if is_share:
        return Halt(found[1] == "now", None, number)
    return Halt(found[1] == "now", number, None)
