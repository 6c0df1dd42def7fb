"""A box with stub GPUs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.harness import Box
from tests.cli.tmux import OpenTerminal, Terminal, needs_tmux
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


@pytest.fixture
def terminal(box: Box) -> Iterator[OpenTerminal]:
    """Opens terminals, in which the box's user types."""
    needs_tmux()
    opened: list[Terminal] = []

    def open_one(columns: int, rows: int) -> Terminal:
        opened.append(Terminal(box, columns=columns, rows=rows))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()
