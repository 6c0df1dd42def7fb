"""The tag by which the processes of a run are known wherever they go: part of their environment."""

from collections.abc import Mapping

from smartsched.core.model import RunKey

VARIABLES = ("SMARTSCHED_RUN", "SMARTSCHED_JOB", "SMARTSCHED_ATTEMPT")


def tag_of(run_name: str, run: RunKey) -> str:
    return f"{run_name}/{run.job}/{run.attempt}"


def variables_of(run_name: str, run: RunKey) -> dict[str, str]:
    """What makes up the tag in a run's environment."""
    return dict(zip(VARIABLES, (run_name, str(run.job), str(run.attempt)), strict=True))


def tag_in(environment: Mapping[str, str]) -> str | None:
    """The tag in an environment; None: it belongs to no run."""
    values = [environment.get(name, "") for name in VARIABLES]
    return "/".join(values) if all(values) else None
