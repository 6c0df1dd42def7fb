"""A folder for claims that is not the real one, and dispatchers that claim there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from smartsched.edges.claims import FolderClaims
from tests.edges.claims.claimants import ALICE, BOB, IS_ROOT, open_claims


@pytest.fixture
def place() -> Iterator[Path]:
    """Where every user gets to, unlike the folders that pytest makes."""
    path = Path(tempfile.mkdtemp(prefix="smartsched-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder(place: Path) -> Path:
    path = place / "claims"
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def claims(folder: Path, said: list[str], stack: ExitStack) -> FolderClaims:
    """Ours."""
    claims = open_claims(folder, "ours", said)
    stack.callback(claims.close)
    return claims


@pytest.fixture(params=["one user", "two users"])
def uids(request: pytest.FixtureRequest) -> tuple[int | None, int | None]:
    """Of two dispatchers."""
    if request.param == "one user":
        return None, None
    if not IS_ROOT:
        pytest.skip("only root can start processes of other users")
    return ALICE, BOB
