"""Where commands go that are longer than the kernel takes in one argument."""

import os
from contextlib import suppress
from pathlib import Path

from smartsched.core.model import JobId


class ScriptFolder:
    """Made for the first such command, 0700; each script is 0600 and lives as long as its job."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._folder: Path | None = None

    def write(self, job: JobId, command: bytes) -> str:
        """The script's path. Raises OSError."""
        path = self._own_folder() / f"{job}.sh"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "wb") as script:
            script.write(command + b"\n")
        return str(path)

    def remove(self, job: JobId) -> None:
        if self._folder is not None:
            (self._folder / f"{job}.sh").unlink(missing_ok=True)

    def close(self) -> None:
        if self._folder is not None:
            with suppress(OSError):  # a job that cannot be killed still has its script
                self._folder.rmdir()

    def _own_folder(self) -> Path:
        if self._folder is None:
            import platformdirs

            state = platformdirs.user_state_path("smartsched", appauthor=False)
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = state / f"scripts-{self._run_name}"
            folder.mkdir(mode=0o700)
            self._folder = folder
        return self._folder
