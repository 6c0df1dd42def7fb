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
    if config.claims is None:
        return NoClaims()
    reader = ClaimReader(tidy_up=True)
    files = ClaimFiles(_folder(config.claims), reader, run_name=config.run_name)
    return FolderClaims(files, warn)


def see_claims(state: State, config: Config, now: Timestamp, warn: Callable[[str], None]) -> None:
    """What others claim at the moment, for a look that claims nothing. Raises StateError."""
    if config.claims is None:
        return
    claims = claims_of_others(_folder(config.claims), ClaimReader(tidy_up=False), warn)
    for key, watch in state.gpus.items():
        if isinstance(watch.latest, GpuSample) and key.uuid in claims:
            state.refused[key] = Refusal(now, claims[key.uuid])


def _folder(name: str) -> Path:
    return Path(name) if name else default_folder()
