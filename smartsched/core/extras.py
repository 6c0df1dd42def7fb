"""What is said where a package is needed that not everybody has."""

from smartsched.errors import UsageError


def cluster_is_missing(option: str = "--hosts") -> UsageError:
    """Of the packages that several hosts need, at least one is not installed. To be raised."""
    return UsageError(f"{option} needs more packages: pip install 'smartsched[cluster]'")
