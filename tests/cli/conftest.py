"""A box with stub GPUs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import Box
from tests.stub_nvml import StubGpu, StubMachine


@pytest.fixture
def box(tmp_path: Path, stub_library: Path) -> Iterator[Box]:
    """Four idle GPUs of 80 GiB."""
    machine = StubMachine(tmp_path / "machine", stub_library, gpus=[StubGpu(i) for i in range(4)])
    folder = tmp_path / "work"
    folder.mkdir()
    box = Box(folder, machine)
    yield box
    box.close()
