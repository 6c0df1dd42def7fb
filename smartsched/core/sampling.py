"""What the sampler's process is told, and what is kept from it as from every child. Imports
nothing: it is needed before all else is loaded."""

# Variables of the environment that hold secrets of ours.
SECRETS = ("SMARTSCHED_NOTIFY",)


DEFAULT_INTERVAL = "1s"


def interval_of(arguments: tuple[str, ...]) -> str:
    """As the user has put it."""
    if "--interval" not in arguments:
        return DEFAULT_INTERVAL
    return arguments[arguments.index("--interval") + 1]


def sampler_arguments(interval: str, simulate: str | None, replay: str | None) -> tuple[str, ...]:
    """As options of the verb `sample`."""
    arguments = ["sample", "--interval", interval]
    if simulate is not None:
        arguments += ["--simulate", simulate]
    if replay is not None:
        arguments += ["--replay", replay]
    return tuple(arguments)
