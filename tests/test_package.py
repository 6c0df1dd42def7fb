"""What is shipped: all of the package and nothing else, and the same bytes whoever builds it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from smartsched import __version__
from smartsched.edges import checkup
from tests.lowest import lowest

ROOT = Path(__file__).parents[1]
NAME = f"smartsched-{__version__}"
WHEEL, SDIST = f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"
BESIDE_THE_PACKAGE = {
    f"{NAME}.data/data/share/man/man1/smartsched.1",
    *(f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "RECORD")),
    f"{NAME}.dist-info/licenses/LICENSE",
}
SHIPPED_FOLDERS = ("smartsched", "tests", "docs")
SHIPPED_FILES = {
    "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml", ".gitignore", "PKG-INFO",
}  # fmt: skip
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def sources(folder: str) -> set[str]:
    """What of a folder people have written."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def build(root: Path, into: Path) -> Path:
    """Without an environment of its own, so that nothing is fetched."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: nothing can be built")
    env = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    argv = [sys.executable, "-m", "hatchling", "build", "-d", str(into)]
    done = subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return into


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("built"))


def test_the_wheel_holds_the_package_and_what_describes_it(built: Path):
    with zipfile.ZipFile(built / WHEEL) as wheel:
        members = set(wheel.namelist())

    assert members == sources("smartsched") | BESIDE_THE_PACKAGE
    assert {PurePosixPath(name).suffix for name in sources("smartsched")} == {
        ".py", ".typed", ".html", ".css", ".js",
    }  # fmt: skip


def test_the_wheel_says_what_it_needs_and_whose_it_is(built: Path):
    with zipfile.ZipFile(built / WHEEL) as wheel:
        said = wheel.read(f"{NAME}.dist-info/METADATA").decode()
        started_by = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()

    assert "\nLicense-Expression: MIT\n" in said
    assert "\nRequires-Python: >=3.11\n" in said
    assert "smartsched = smartsched.cli:main" in started_by


def test_the_source_holds_what_it_takes_to_build_and_to_test(built: Path):
    with tarfile.open(built / SDIST) as archive:
        members = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}

    wanted = set.union(*map(sources, SHIPPED_FOLDERS))
    assert members == wanted | SHIPPED_FILES


def test_every_package_that_is_needed_says_how_old_it_may_be():
    needed = list(lowest())

    assert len(needed) >= 10
    assert f"nvidia-ml-py=={'.'.join(map(str, checkup.OLDEST_BINDING))}" in needed  # as doctor says


def test_whoever_builds_it_gets_the_same_bytes(built: Path, tmp_path: Path):
    copy = tmp_path / "elsewhere"
    for folder in SHIPPED_FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, copy_function=shutil.copy)  # of another time
    for name in SHIPPED_FILES - {"PKG-INFO"}:
        shutil.copy(ROOT / name, copy / name)

    again = build(copy, tmp_path / "again")

    for name in (WHEEL, SDIST):
        assert (again / name).read_bytes() == (built / name).read_bytes()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_wheel_alone_runs_a_list_of_commands_in_a_new_environment(built: Path, tmp_path: Path):
    environment, listing = tmp_path / "venv", tmp_path / "commands.txt"
    listing.write_text('echo "job $SMARTSCHED_JOB" >> did\n' * 5)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    install = [*PIP, "--python", str(environment), "install", "--quiet", str(built / WHEEL)]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"its dependencies cannot be installed here: {installed.stderr[-200:]}")
    assert installed.returncode == 0, installed.stderr
    smartsched = environment / "bin" / "smartsched"

    argv = [str(smartsched), "--simulate", "2,seed=2", "--free-for", "0", str(listing)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)

    assert ran.returncode == 0, ran.stderr
    assert "5 jobs ok" in ran.stderr
    assert Path("did").read_text().count("job ") == 5
    version = subprocess.run([smartsched, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith(f"smartsched {__version__} (Python 3.")
