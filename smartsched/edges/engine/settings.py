"""Dask's settings: ours, whatever the user's own files and environment say. Imports Dask for the
first time, and says where its log goes: nowhere."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from smartsched.core.extras import cluster_is_missing

_NEVER = "1000000h"
_NOWHERE = "/dev/null/none"
_OURS: dict[str, object] = {
    "temporary-directory": None,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.diagnostics.nvml": False,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.use-file-locking": False,
    "distributed.worker.memory.monitor-interval": _NEVER,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.events-cleanup-delay": "1s",
    # who is silent is found by the transport (channel.py), in both directions
    "distributed.scheduler.worker-ttl": None,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "11s",
    "distributed.comm.require-encryption": True,
    "distributed.admin.tick.interval": _NEVER,
    "distributed.admin.tick.cycle": _NEVER,
    "distributed.admin.system-monitor.interval": _NEVER,
    "distributed.admin.system-monitor.log-length": 1,
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    # what Dask remembers for its developers: with 4 KB reports of 50 agents it adds up
    "distributed.admin.log-length": 1,
    "distributed.admin.low-level-log-length": 1,
    "logging": {"version": 1, "incremental": True},
}


def import_dask() -> None:
    """Import it with these settings; often called, done once. Raises UsageError."""
    logging.getLogger("distributed").addHandler(logging.NullHandler())
    for name in ("distributed", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.getLogger("distributed").propagate = False
    try:
        with _without_the_users_settings():
            import dask
        dask.config.refresh(paths=[], env={})
        dask.config.set(_OURS)
        import distributed  # noqa: F401  # reads the settings
    except ImportError as error:
        raise cluster_is_missing() from error


@contextmanager
def _without_the_users_settings() -> Iterator[None]:
    """Dask reads its files and variables when it is imported, and stops at one that is broken."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("DASK_"):
            del os.environ[name]
    os.environ.update(HOME=_NOWHERE, DASK_ROOT_CONFIG=_NOWHERE, DASK_CONFIG=_NOWHERE)
    try:
        yield
    finally:
        for name in ("HOME", "DASK_ROOT_CONFIG", "DASK_CONFIG"):
            os.environ.pop(name, None)
        os.environ.update({n: v for n, v in before.items() if n == "HOME" or n.startswith("DASK_")})
