"""Prints the lowest version of every dependency that pyproject.toml allows, as constraints for pip:
`make test-lowest` installs just those."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Tools that check the code and are no part of what runs.
_LEFT_OUT = {"dev"}
_LOWEST = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)")


def lowest(project: Path = PROJECT) -> Iterator[str]:
    """Raises ValueError for a dependency without a lower bound: nobody knows what it has to be."""
    said = tomllib.loads(project.read_text())["project"]
    extras = said["optional-dependencies"]
    for name, wanted in {"": said["dependencies"], **extras}.items():
        if name in _LEFT_OUT:
            continue
        for dependency in wanted:
            found = _LOWEST.fullmatch(dependency)
            if found is None:
                raise ValueError(f"{dependency!r} has no lower bound: write it as NAME>=VERSION")
            yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{constraint}\n" for constraint in lowest())
