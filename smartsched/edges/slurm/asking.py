"""Questions to Slurm that are asked once, before there is anything else to do, and waited for."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from smartsched.core import slurm
from smartsched.edges.slurm.programs import NOT_IN_TIME, find, path_in
from smartsched.errors import UsageError

# Slurm's programs themselves wait for 10 to 100 s, as it is set up.
_PATIENCE_SECONDS = 30.0


def check(
    arguments: Sequence[str],
    script: str,
    environment: Mapping[bytes, bytes],
    patience_seconds: float = _PATIENCE_SECONDS,
) -> str | None:
    """Whether Slurm would take such a pilot; nothing is submitted. Raises UsageError if it would
    not. None: it would; else why that cannot be told now."""
    try:
        done = subprocess.run(  # noqa: S603  # the user's own options
            [find("sbatch", path_in(environment)), *arguments, "--test-only"],
            input=os.fsencode(script),
            env=slurm.sbatch_environment(environment),
            capture_output=True,
            timeout=patience_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"sbatch: {NOT_IN_TIME}"
    except OSError as error:
        raise UsageError(f"--slurm: {error.strerror}") from error
    if done.returncode == 0:
        return None
    why = slurm.complaint("sbatch", done.stderr.decode("utf-8", "replace"))
    if slurm.may_pass(why):
        return why
    raise UsageError(f"--slurm: {why}")
