"""Every failure smartsched expects, with the exit status it ends in."""

EXIT_NONE_PICKED = 1
EXIT_USAGE = 2
EXIT_NONE_FREE = 3
EXIT_WAIT_TIMED_OUT = 124
EXIT_NOT_STARTED = 126  # as shells say of what they cannot execute
EXIT_INTERRUPTED = 130
EXIT_OTHER = 255


class SmartschedError(Exception):
    """Base of all expected failures; the command line prints it as one line, no traceback."""

    exit_code = EXIT_OTHER


class UsageError(SmartschedError):
    """What the user asked for cannot be: a wrong flag, value, file or GPU."""

    exit_code = EXIT_USAGE


class DriverError(SmartschedError):
    """The driver cannot tell us anything about this host's GPUs."""


class BadSnapshotError(SmartschedError):
    """A line of the sample stream that is not a snapshot."""


class BadMessageError(SmartschedError):
    """What the other end of a connection said is no message."""


class StateError(SmartschedError):
    """The folder in which runs are remembered cannot be used, or not now."""


class JournalDamagedError(SmartschedError):
    """A run's journal says something that cannot be."""


class IllegalTransitionError(SmartschedError):
    """An event that cannot follow from where the job stands: our bug, so be loud."""

    def __init__(self, event: object, status: object) -> None:
        super().__init__(f"internal error, please report it: {event!r} cannot follow {status!r}")
