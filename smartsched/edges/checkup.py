"""What of the machine smartsched depends on: folders, packages, limits, whether it is a container.

Looks, and changes nothing: what it writes has no name and is gone at once.
"""

import fcntl
import json
import os
import resource
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

# nvidia-ml-py before this misreads the lists of processes
OLDEST_BINDING = (12, 550, 52)
# pynvml was a binding of its own; since this it only leads to NVIDIA's
_FIRST_HARMLESS_PYNVML = 12
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux' proc_ns.h
_LEAST_FREE_BYTES = 100 * 2**20
_MOST_SKEW_SECONDS = 5.0
_LEAST_OPEN_FILES = 256
_LEAST_PROCESSES = 512


class FolderHealth(Struct, frozen=True):
    """What is known of a place for files, whether or not its folder has been made."""

    file_system: str  # its type, as the mount says; "": not known
    trouble: str | None  # what is wrong, and what to do


def examine_folder(folder: Path, *, option: str, private: bool = False) -> FolderHealth:
    """`private`: nobody else should be able to write there. `option` names another place."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    kind, options = _mount_of(existing)
    try:
        trouble = _why_unsafe(folder) if private and existing == folder else None
        trouble = trouble or _why_no_files(existing, option)
    except OSError as error:
        trouble = f"{existing}: {error.strerror}: name another place with {option} DIR"
    if trouble is None and ({"nolock", "local_lock=all", "local_lock=flock"} & set(options)):
        trouble = (
            f"{existing} is mounted without locks that other hosts see: name a local place with"
            f" {option} DIR, or go on with a run only where it began"
        )
    return FolderHealth(kind, trouble)


def _why_unsafe(folder: Path) -> str | None:
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to somebody else: name another place"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        return f"others may write in {folder}: chmod go-w {folder}"
    return None


def _why_no_files(folder: Path, option: str) -> str | None:
    """Raises OSError where none can be written or locked."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        skew = os.fstat(file.fileno()).st_mtime - time.time()
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:
        return f"{folder} is nearly full: make room, or name another place with {option} DIR"
    if abs(skew) > _MOST_SKEW_SECONDS:
        return (
            f"{folder} is on a file server whose clock differs by {abs(skew):.0f}s: set the clocks"
            " (NTP)"
        )
    return None


def _mount_of(path: Path) -> tuple[str, list[str]]:
    """Type and options of the file system that the path is on."""
    import psutil

    real = path.resolve()
    mounts = [
        mount for mount in psutil.disk_partitions(all=True) if real.is_relative_to(mount.mountpoint)
    ]
    if not mounts:
        return "", []
    mount = max(mounts, key=lambda mount: len(mount.mountpoint))
    return mount.fstype, mount.opts.split(",")


def packages_in_the_way() -> Iterator[str]:
    """What is wrong with the Python packages that speak to the driver, and what to do."""
    from importlib.machinery import PathFinder
    from importlib.metadata import PackageNotFoundError, distribution

    repair = "then pip install --force-reinstall nvidia-ml-py"
    for name, first_harmless in (("nvidia-ml-py3", None), ("pynvml", _FIRST_HARMLESS_PYNVML)):
        with suppress(PackageNotFoundError):
            version = distribution(name).version
            if first_harmless is None or _numbers(version) < (first_harmless,):
                yield (
                    f"{name} {version} writes over NVIDIA's own module: pip uninstall {name},"
                    f" {repair}"
                )
    try:
        binding = distribution("nvidia-ml-py")
    except PackageNotFoundError:
        yield "nvidia-ml-py is not installed: pip install nvidia-ml-py"
        return
    if _numbers(binding.version) < OLDEST_BINDING:
        yield f"nvidia-ml-py {binding.version} is too old: pip install --upgrade nvidia-ml-py"
    # the sampler does not look in the current folder
    places = [place for place in sys.path if place not in ("", str(Path.cwd()))]
    found = PathFinder.find_spec("pynvml", places)
    ours = Path(str(binding.locate_file("pynvml.py")))
    if found is not None and found.origin and Path(found.origin).resolve() != ours.resolve():
        yield f"{found.origin} shadows NVIDIA's module: take it away, or out of PYTHONPATH"


def binding_version() -> str:
    """Of nvidia-ml-py; "": there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nvidia-ml-py")
    except PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def container(root: Path = Path("/")) -> str | None:
    """What shows that this is a container; None: nothing does."""
    for sign in (".dockerenv", "run/.containerenv", "run/systemd/container"):
        if (root / sign).exists():
            return f"/{sign}"
    with suppress(OSError):
        cgroup = (root / "proc/1/cgroup").read_text()
        for name in ("docker", "kubepods", "containerd", "lxc", "libpod"):
            if name in cgroup:
                return f"{name} in /proc/1/cgroup"
    return None


def sees_the_hosts_processes(proc: Path = Path("/proc")) -> bool:
    """Whether processes have the numbers here that the driver knows them by."""
    try:
        return os.readlink(proc / "self/ns/pid") == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def tight_limits() -> Iterator[str]:
    """Limits of this shell that would get in the way of jobs, and what to do."""
    unlimited = resource.RLIM_INFINITY
    for limit, least, flag, why in (
        (resource.RLIMIT_NOFILE, _LEAST_OPEN_FILES, "n", "few files may be open at once"),
        (resource.RLIMIT_NPROC, _LEAST_PROCESSES, "u", "few processes may run at once"),
        (resource.RLIMIT_AS, unlimited, "v", "CUDA maps more addresses than there is memory"),
        (resource.RLIMIT_CPU, unlimited, "t", "jobs are killed after so many seconds of a core"),
        (resource.RLIMIT_FSIZE, unlimited, "f", "checkpoints that are larger are cut off"),
    ):
        soft, hard = resource.getrlimit(limit)
        if soft == unlimited or (least != unlimited and soft >= least):
            continue
        wanted = "unlimited" if least == unlimited else str(16 * least)
        able = hard == unlimited or (least != unlimited and hard >= least)
        do = f"ulimit -{flag} {wanted}" if able else "ask the administrator for more"
        yield f"{why} (ulimit -{flag}: {soft}): {do}"


def missing_for_hosts() -> list[str]:
    """What other hosts cannot be used without, and what to do."""
    from importlib.util import find_spec

    missing = []
    if any(find_spec(name) is None for name in ("distributed", "cryptography")):
        missing.append("pip install 'smartsched[cluster]'")
    if shutil.which("ssh") is None:
        missing.append("install ssh (--slurm and --listen do without)")
    return missing


def why_others_may_join(authority: Path) -> str | None:
    """Whoever can read or replace what lies there can act as an agent, or as a dispatcher."""
    with suppress(OSError):
        for path in (authority, *authority.iterdir()):
            status = path.lstat()
            if status.st_uid != os.geteuid():
                return f"{path} belongs to somebody else: remove {authority}, another is made"
            if stat.S_IMODE(status.st_mode) & 0o077:
                return f"others may enter or read {path}: chmod go= {path}"
    return None


def own_dispatchers(state: Path) -> list[str]:
    """Names of the runs whose dispatcher lives on this host, by the note in their locks."""
    alive = []
    for lock in sorted((state / "runs").glob("[!.]*/lock")):
        try:
            holder = json.loads(lock.read_bytes()[:4096])
            is_here = holder["host"] == os.uname().nodename
            if is_here and Path(f"/proc/{int(holder['pid'])}").exists():
                alive.append(lock.parent.name)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # nobody holds it
    return alive
