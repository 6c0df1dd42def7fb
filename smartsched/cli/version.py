"""`smartsched --version`: what somebody who is to help asks first."""

import platform
import sys

from smartsched import __version__
from smartsched.edges.driver_version import first_line, has_library

_PATIENCE_SECONDS = 5.0
_CHILD = "from smartsched.edges import nvml; print(nvml.driver_version(nvml.load()))"


def words() -> str:
    """One line. A driver that hangs is not waited for; without one nothing is started."""
    return f"smartsched {__version__} (Python {platform.python_version()}, {_driver()})"


def _driver() -> str:
    if not has_library():
        return "no NVIDIA driver"
    # -P: as the sampler is started
    version = first_line([sys.executable, "-P", "-c", _CHILD], _PATIENCE_SECONDS)
    return "an NVIDIA driver that does not answer" if version is None else f"driver {version}"
