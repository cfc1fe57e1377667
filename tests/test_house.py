"""The house: which folder may import which, read from the imports of every source file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import momentnorm

SOURCE = Path(momentnorm.__file__).parent

#: Rooms, from the ground up. A room may import those that it names, and nothing of the rest.
MAY_IMPORT: dict[str, set[str]] = {
    "support": set(),
    "core/backends": {"core", "support"},  # of core only pool, grid and tail: see below
    "core": {"core/backends"},
    "moments": {"core"},
    "functional": {"core", "core/backends"},
    "layers": {"core", "functional"},
    "models": {"core", "core/backends", "functional", "layers", "moments", "support"},
    "doctor": {"core", "core/backends", "support"},
    "explainer": {"core", "core/backends", "functional", "layers", "models", "support"},
    "figure": {"core", "explainer", "layers", "support"},
    "explore": {"explainer", "figure", "support"},
    "tiles": {"functional", "layers", "moments", "support"},
    "numpy": {"core", "functional"},
    "keras": {"functional"},
    "deployment": {"core", "functional", "support"},
    "stylize": {"", "layers", "models", "support"},
    "studies": {"", "core", "functional", "layers", "stylize", "support"},
    "cli": {"support"},  # and the module of the command that runs
    "__main__": {"cli"},
    "": {"core", "functional", "layers", "models", "moments", "explainer", "deployment", "tiles"},
}

#: Modules of core that backends read: values and arithmetic without a choice of backend.
BELOW_BACKENDS = {"core.pool", "core.grid", "core.tail"}


def _module(path):
    parts = list(path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module(path): path for path in sorted(SOURCE.rglob("*.py"))}


def _room(module):
    if module.startswith("core.backends"):
        return "core/backends"
    return module.partition(".")[0]


def _imports(module, *, everywhere=True):
    """The modules of the package that a module imports, at its top or inside functions too."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else _run_at_import(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = [part for part in package[: len(package) - node.level + 1] if part]
                base += node.module.split(".") if node.module else []
            elif node.module and node.module.split(".")[0] == "momentnorm":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in FILES else ".".join(base))
    return found


def _run_at_import(node):
    """The nodes that run when the module is imported: no bodies of functions, no type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_at_import(child)


@pytest.mark.parametrize("module", FILES)
def test_arrows_point_down(module):
    room = _room(module)
    for target in _imports(module):
        assert _room(target) == room or _room(target) in MAY_IMPORT[room], (
            f"{module} imports {target}: {room or 'the root'} may import "
            f"{', '.join(sorted(MAY_IMPORT[room])) or 'nothing'}"
        )


def test_backends_read_values_and_arithmetic_alone():
    for module in FILES:
        if _room(module) == "core/backends":
            above = {target for target in _imports(module) if _room(target) == "core"}
            assert above <= BELOW_BACKENDS, module


def test_no_import_goes_in_a_circle():
    graph = {module: _imports(module, everywhere=False) - {module} for module in FILES}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for target in sorted(graph[module]):
            # A package that imports its own parts is no circle with them.
            if not module.startswith(f"{target}."):
                visit(target, [*path, module])
        done.add(module)

    for module in FILES:
        visit(module, [])
