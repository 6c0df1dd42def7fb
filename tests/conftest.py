"""What all tests share: nothing of the developer's own machine, and a driver made of C and text."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck

from tests.lab import Lab, needs_namespaces
from tests.stub_nvml import StubGpu, StubMachine, build, has_compiler

# On a busy machine anything may take long. A test's folder may be used by all of its examples.
hypothesis.settings.register_profile(
    "busy machine",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("busy machine")


def pytest_configure() -> None:
    """Shells ignore Ctrl-C on behalf of what they run in the background; tests send it."""
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_IGN:
            default = signal.default_int_handler if signum is signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)


@pytest.fixture(scope="session")
def no_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH in which the driver's library cannot be loaded."""
    folder = tmp_path_factory.mktemp("no-driver")
    (folder / "libnvidia-ml.so.1").write_text("tests must not touch the real driver\n")
    return folder


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs that tests start keep what Python compiles, whatever the developer's
    settings say: to compile everything anew would be most of what each of them does."""
    return shared_folder(tmp_path_factory, "bytecode")


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """One for all workers of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def isolated(
    tmp_path: Path,
    no_driver: Path,
    bytecode: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """No test sees the real home, settings or driver; `gpu` tests see the driver."""
    for name in ("home", "state", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    monkeypatch.chdir(tmp_path / "here")
    for name in list(os.environ):
        if name.startswith("SMARTSCHED_") or name in ("CUDA_VISIBLE_DEVICES", "NO_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(bytecode))
    monkeypatch.setenv("SMARTSCHED_CLAIMS", str(tmp_path / "claims"))
    if request.node.get_closest_marker("gpu") is None:
        paths = [str(no_driver), os.environ.get("LD_LIBRARY_PATH", "")]
        monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(path for path in paths if path))


@pytest.fixture(scope="session")
def stub_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the folders `driver` and `old-driver`; built once, however many workers there are."""
    if not has_compiler():
        if os.environ.get("CI"):
            pytest.fail("CI must have a C compiler: nothing that uses the driver is tested")
        pytest.skip("no C compiler to build the stub of the driver with")
    into = shared_folder(tmp_path_factory, "stub-libraries")
    with (into / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (into / "built").exists():
            build(into)
            build(into, old_driver=True)
            (into / "built").touch()
    return into


@pytest.fixture
def stub_library(stub_libraries: Path) -> Path:
    """The folder of the stub of the driver's library."""
    return stub_libraries / "driver"


@pytest.fixture
def old_stub_library(stub_libraries: Path) -> Path:
    """Likewise, of a driver without the newer calls."""
    return stub_libraries / "old-driver"


@pytest.fixture
def stub_machine(tmp_path: Path, stub_library: Path) -> Callable[..., StubMachine]:
    """Makes the test's machine out of GPUs: stub_machine(StubGpu(0), StubGpu(1))."""

    def make(*gpus: StubGpu) -> StubMachine:
        return StubMachine(tmp_path / "machine", stub_library, gpus)

    return make


@pytest.fixture
def lab(tmp_path: Path, stub_library: Path) -> Iterator[Lab]:
    """The dispatcher's host of a network of its own; `lab.boot("gpu1", "gpu2")` adds others."""
    needs_namespaces()
    with Lab(tmp_path / "lab", stub_library) as lab:
        yield lab
