"""Which driver there is, asked of a process of its own: a call into the driver may never return."""

import ctypes
import subprocess
from collections.abc import Sequence

_LIBRARY = "libnvidia-ml.so.1"


def has_library() -> bool:
    """Whether there is a driver to be asked, without asking it."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


def first_line(argv: Sequence[str], patience_seconds: float) -> str | None:
    """What a program says; None: nothing in this time, or it has failed."""
    with open("/dev/null", "wb") as nowhere:
        child = subprocess.Popen(  # noqa: S603  # ourselves
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=nowhere, text=True
        )
    try:
        said, _ = child.communicate(timeout=patience_seconds)
    except subprocess.TimeoutExpired:
        child.kill()  # its end is not awaited: a call that hangs in the driver delays even that
        return None
    return said.strip() if child.returncode == 0 and said.strip() else None
