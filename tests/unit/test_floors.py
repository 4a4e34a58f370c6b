"""The modules keep to their floors: imports go down, and floor 0 touches nothing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Dict, Iterator, List, Set

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "agent" / "recuse"

FLOORS: Dict[int, Set[str]] = {
    0: {
        "__init__",
        "coverage",
        "errors",
        "notices",
        "proved",
        "optout",
        "wire",
        "records",
        "checkpoint",
        "facts",
        "matchers",
        "ruleindex",
        "reasons",
        "when",
        "patterns",
        "policy",
        "tomlfile",
        "matchertoml",
        "policytoml",
        "approval",
        "approvaltoml",
        "grantrecords",
        "grant",
        "grantaudit",
        "signedsteps",
        "mail",
        "bundle",
        "pauserecords",
        "cast",
        "marks",
        "httpsig",
        "sshsig",
        "audit",
        "asks",
        "adminnotice",
        "lint",
        "policytest",
        "whatif",
        "strictjson",
        "unprintable",
        "amounts",
        "treeaudit",
        "consistency",
    },
    1: {
        "config",
        "connections",
        "files",
        "keys",
        "ledger",
        "mailstore",
        "sqlitefile",
        "spool",
        "store",
        "archive",
        "catalog",
        "checkup",
        "control",
        "host",
        "journal",
        "notifyconf",
        "pack",
        "player",
        "rehearsal",
        "stderrlog",
        "wiring",
        "witness",
    },
    2: {"agent", "ship", "collector", "consult", "notify", "hostsetup"},
    3: {"cli", "collector_cli"},
}
# One process each: these modules are parts of the one named.
PARTS = {
    "agent": {
        "accounts",
        "approvers",
        "asking",
        "batching",
        "book",
        "desk",
        "door",
        "epoch",
        "fields",
        "findings",
        "front",
        "letterbox",
        "live",
        "orphan",
        "outcomes",
        "passwords",
        "pausing",
        "policyfile",
        "quota",
        "receipts",
        "recovery",
        "sealing",
        "upkeep",
        "wording",
    },
    "ship": {"central", "postman"},
    "collector": {"mailroom"},
    "notify": {"channel"},
    "cli": {
        "console", "cli_grant", "cli_host", "cli_live", "cli_mail", "cli_notify", "cli_own",
        "cli_policy", "cli_report", "cli_verify", "cli_whatif",
    },
}
PURE_BANNED_IMPORTS = {
    "asyncio",
    "fcntl",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}
# What a pure module may take of a module that is otherwise banned.
PURE_ALLOWED = {"pathlib": {"PurePosixPath", "PurePath"}}
PURE_BANNED_CALLS = {"open", "print", "input", "exec", "eval"}
CLOCKS = {"now", "utcnow", "today"}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def _process(module: str) -> str:
    return next((whole for whole, parts in PARTS.items() if module in parts), module)


def _floor(module: str) -> int:
    return next(floor for floor, names in FLOORS.items() if _process(module) in names)


def _tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def _statements(module: str) -> Iterator[ast.stmt]:
    """Walk everything but what stands under `if TYPE_CHECKING`."""
    todo: List[ast.AST] = [_tree(module)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            yield node
        todo.extend(ast.iter_child_nodes(node))


def _own_imports(module: str) -> Set[str]:
    found: Set[str] = set()
    for node in _statements(module):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if (node.level and not node.module) or (not node.level and node.module == "recuse"):
                found |= {name if name in MODULES else "__init__" for name in names}
            elif node.level and node.module:
                found.add(node.module.split(".")[0])
            elif node.module and node.module.startswith("recuse."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("recuse."):
                    found.add(alias.name.split(".")[1])
    return found


def _foreign_imports(module: str) -> Dict[str, Set[str]]:
    found: Dict[str, Set[str]] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = found.setdefault(node.module.split(".")[0], set())
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name.split(".")[0], set()).add("*")
    return found


def test_every_module_has_a_floor() -> None:
    known = set().union(*FLOORS.values(), *PARTS.values())
    assert set(MODULES) <= known, f"no floor: {set(MODULES) - known}"


def test_the_design_page_names_every_module() -> None:
    page = (PACKAGE.parents[1] / "docs/design.md").read_text()
    floors = page.partition("\n## Floors\n")[2].partition("\nA module imports")[0]
    assert set(MODULES) - {"__init__"} <= set(floors.split())


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for other in _own_imports(module):
        if _process(other) != _process(module):
            assert _floor(other) <= _floor(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", [name for name in MODULES if _floor(name) == 2])
def test_processes_do_not_import_each_other(module: str) -> None:
    others = {one for one in _own_imports(module) if _floor(one) == 2}
    assert {_process(one) for one in others} <= {_process(module)}


def test_no_floor_imports_in_circles() -> None:
    graph = {
        module: {one for one in _own_imports(module) if one != module and _floor(one) < 2}
        for module in MODULES
        if _floor(module) < 2
    }
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


@pytest.mark.parametrize("module", sorted(FLOORS[0] & set(MODULES)))
def test_floor_0_touches_nothing(module: str) -> None:
    for name, parts in _foreign_imports(module).items():
        if name in PURE_BANNED_IMPORTS:
            assert parts <= PURE_ALLOWED.get(name, set()), f"{module} imports {name}"
    for node in ast.walk(_tree(module)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in PURE_BANNED_CALLS, f"{module} calls {node.func.id}()"
        elif isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            clock = node.func.attr in CLOCKS and name in ("datetime", "date")
            assert not clock, f"{module} reads the clock"


@pytest.mark.parametrize("module", sorted(set(MODULES) - FLOORS[3]))
def test_only_the_command_line_prints(module: str) -> None:
    for node in ast.walk(_tree(module)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        to_stderr = any(keyword.arg == "file" for keyword in node.keywords)
        assert node.func.id != "print" or (_floor(module) == 2 and to_stderr), (
            f"{module} prints at line {node.lineno}"
        )
