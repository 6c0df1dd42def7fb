"""The architecture, as a test: who may import whom."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import smartsched

PACKAGE = Path(smartsched.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = {
    "errors", "core", "ports", "loop", "fleet", "agent", "simulation", "edges", "config", "cli",
    "version",
}  # fmt: skip
MAY_IMPORT = {
    "errors": set(),
    "core": {"core", "errors"},
    "ports": {"core", "errors"},
    "loop": {"core", "errors", "ports"},
    "fleet": {"core", "errors", "ports", "fleet"},
    "agent": {"core", "errors", "ports"},
    "simulation": {"core", "errors", "ports", "loop", "simulation"},
    "edges": {"core", "errors", "ports", "edges"},  # of its own package, see below
    "config": {"core", "errors"},
    "cli": EVERYTHING,
    "__main__": {"cli"},
    "__init__": set(),
}
# What a pure module needs of the standard library; everything else would be an effect.
PURE = {
    "__future__", "base64", "bisect", "collections", "contextlib", "dataclasses", "enum",
    "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "msgspec",
    "operator", "re", "typing", "zlib",
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is named by an import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides its layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    return frozenset(imports_of(parsed(path)))


def layers_imported(path: Path) -> set[str]:
    ours = (name.split(".") for name in imported(path) if name.startswith("smartsched."))
    return {parts[1].strip("_") if parts[1] == "__version__" else parts[1] for parts in ours}


def outsiders(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} - {"smartsched"}


def in_layer(layer: str) -> list[Path]:
    return [path for path in MODULES if layer_of(path) == layer]


def test_every_layer_is_known():
    assert {layer_of(path) for path in MODULES} <= MAY_IMPORT.keys()
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_the_layers_below_it(path: Path):
    assert layers_imported(path) <= MAY_IMPORT[layer_of(path)]


@pytest.mark.parametrize("path", in_layer("edges"), ids=name_of)
def test_edges_never_import_each_other(path: Path):
    """An edge that is a package of several modules is one edge."""
    of_edges = {name for name in imported(path) if name.startswith("smartsched.edges")}
    parts = path.relative_to(PACKAGE / "edges").parts
    own = f"smartsched.edges.{parts[0]}." if len(parts) > 1 else None

    assert not [name for name in of_edges if own is None or not name.startswith(own)]


@pytest.mark.parametrize("path", in_layer("core"), ids=name_of)
def test_the_core_imports_nothing_that_has_an_effect(path: Path):
    assert outsiders(path) <= PURE


@pytest.mark.parametrize("path", in_layer("core"), ids=name_of)
def test_the_core_calls_no_builtin_that_has_an_effect(path: Path):
    names = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}

    assert not names & IMPURE_BUILTINS


@pytest.mark.parametrize(
    "path",
    [*in_layer("ports"), *in_layer("loop"), *in_layer("fleet"), *in_layer("agent")],
    ids=name_of,
)
def test_ports_and_loop_know_no_device_or_file(path: Path):
    assert outsiders(path) <= PURE


@pytest.mark.parametrize(
    ("module", "owners"),
    [
        ("pynvml", {"edges/nvml.py"}),
        ("rich", {"edges/screen.py", "edges/tables.py", "edges/gpu_watch.py"}),
        ("argcomplete", {"cli/completion.py"}),
        ("vl_convert", {"edges/pictures.py"}),
        ("cryptography", {"edges/authority.py"}),
        (
            "distributed",
            {f"edges/engine/{name}.py" for name in ("comm", "hub", "inside", "settings")},
        ),
        ("dask", {"edges/engine/settings.py"}),
    ],
)
def test_a_package_with_an_owner_is_imported_by_nobody_else(module: str, owners: set[str]):
    assert {name_of(path) for path in MODULES if module in outsiders(path)} == owners


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_driver_is_imported_only_when_it_is_needed(path: Path):
    at_the_top = {
        name.split(".")[0]
        for node in parsed(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imports_of(ast.Module([node], []))
    }

    assert "pynvml" not in at_the_top


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for(path: Path):
    assert path.stat().st_size == 0 or ast.get_docstring(parsed(path))
