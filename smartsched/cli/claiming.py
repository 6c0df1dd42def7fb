"""How dispatchers of this box come to tell each other which GPUs they use."""

from collections.abc import Callable
from pathlib import Path

from smartsched.config import Config
from smartsched.core.model import GpuSample, Timestamp
from smartsched.core.state import Refusal, State
from smartsched.edges.claim_files import ClaimFiles, claims_of_others, default_folder
from smartsched.edges.claim_reader import ClaimReader
from smartsched.edges.claims import FolderClaims, NoClaims


def claims_for(config: Config, warn: Callable[[str], None]) -> FolderClaims | NoClaims:
    """Raises StateError if the folder cannot be used."""
    return claims_in(config.claims, config.run_name, warn)


def claims_in(
    folder: str | None, run_name: str, warn: Callable[[str], None]
) -> FolderClaims | NoClaims:
    """`folder`: see Config.claims. Raises StateError if it cannot be used."""
    files = _files_in(folder, run_name)
    return NoClaims() if files is None else FolderClaims(files, warn)


def claim_files_for(config: Config) -> ClaimFiles | None:
    """Raises StateError if the folder cannot be used. None: there are no claims."""
    return _files_in(config.claims, config.run_name)


def _files_in(folder: str | None, run_name: str) -> ClaimFiles | None:
    if folder is None:
        return None
    return ClaimFiles(_folder(folder), ClaimReader(tidy_up=True), run_name=run_name)


class OthersClaims:
    """What others claim, for looks that claim nothing."""

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self._folder = None if config.claims is None else _folder(config.claims)
        self._reader = ClaimReader(tidy_up=False)
        self._warn = warn

    def see(self, state: State, now: Timestamp) -> None:
        """As it is at the moment. Raises StateError."""
        if self._folder is None:
            return
        claims = claims_of_others(self._folder, self._reader, self._warn)
        state.refused = {
            key: Refusal(now, claims[key.uuid])
            for key, watch in state.gpus.items()
            if isinstance(watch.latest, GpuSample) and key.uuid in claims
        }


def _folder(name: str) -> Path:
    return Path(name) if name else default_folder()
