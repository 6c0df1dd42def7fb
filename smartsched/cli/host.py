"""Which host this is."""

import os

from smartsched.core.model import HostName


def this_host() -> HostName:
    return HostName(os.uname().nodename)
