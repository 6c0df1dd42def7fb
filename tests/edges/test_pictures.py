"""What draws in pages is kept between two reports, and trusted only where nobody else can write."""

from pathlib import Path

import pytest

from smartsched.edges.pictures import read_own


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir(0o700)
    path = folder / "vega.js"
    path.write_text("draw()")
    path.chmod(0o600)
    return path


def test_what_was_kept_is_read(kept: Path):
    assert read_own(kept) == "draw()"


def test_what_others_may_write_or_put_there_is_not_trusted(kept: Path):
    kept.chmod(0o620)
    assert read_own(kept) is None

    kept.chmod(0o600)
    kept.parent.chmod(0o777)
    assert read_own(kept) is None


def test_a_link_something_else_or_nothing_is_not_read(kept: Path, tmp_path: Path):
    link = kept.with_name("link")
    link.symlink_to(kept)
    garbage = kept.with_name("garbage")
    garbage.write_bytes(b"\xff")
    garbage.chmod(0o600)

    for path in (link, garbage, kept.parent, tmp_path / "missing"):
        assert read_own(path) is None
