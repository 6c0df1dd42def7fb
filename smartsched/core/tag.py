"""The tag by which the processes of a run are known wherever they go: part of their environment."""

from collections.abc import Mapping

from smartsched.core.model import RunKey

# The id, not the name: another run may have the same name, elsewhere or later.
VARIABLES = ("SMARTSCHED_RUN_ID", "SMARTSCHED_JOB", "SMARTSCHED_ATTEMPT")
# In the environment of the user's commands for finished jobs, and of what they leave behind.
HOOK_VARIABLE = "SMARTSCHED_ON_FINISH"


def tag_of(run_id: str, run: RunKey) -> str:
    return f"{run_id}/{run.job}/{run.attempt}"


def variables_of(run_id: str, run: RunKey) -> dict[str, str]:
    """What makes up the tag in a run's environment."""
    return dict(zip(VARIABLES, (run_id, str(run.job), str(run.attempt)), strict=True))


def tag_in(environment: Mapping[str, str]) -> str | None:
    """The tag in an environment; None: it belongs to no run."""
    values = [environment.get(name, "") for name in VARIABLES]
    return "/".join(values) if all(values) else None


def job_words(tag: str) -> str:
    """ "night.4f2a/3/1" -> "job 3 of run night" """
    run_id, _, rest = tag.partition("/")
    job = rest.partition("/")[0]
    return f"job {job} of run {run_id.rpartition('.')[0] or run_id}"
