"""smartsched: run a list of commands on the GPUs that are free, next to colleagues' jobs."""

__version__ = "0.1.0"
