"""The rules of the house, held by reading the sources: who imports what, what is committed.

`docs/ARCHITECTURE.md` says why the rooms are cut this way; a failure here names the file and line.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vswitchd"

#: Pure rooms: values in, values out. Each may import the standard library less IMPURE, and these.
PURE = {
    "model": {"model", "errors"},
    "restructure": {"model", "restructure", "errors"},
    "election": {"model", "election", "errors"},
}
IMPURE = {
    *("asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "queue"),
    *("random", "secrets", "select", "signal", "socket", "sqlite3", "subprocess", "tempfile"),
    *("threading", "time", "urllib", "uuid", "warnings", "datetime"),
}

#: Shells see ports; what carries their calls is chosen in `app.py`.
SHELLS = ("controller", "processor")
CARRIERS = {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "sqlite3", "etcd", "aetcd"}

#: Of this package the command line may see these modules alone.
CLI_MAY = {"cli", "api.client", "api.host_client", "errors", "errors_text", "model.layout"}

LINE_LIMIT = 600
GENERATED = (
    "vswitchd/rpc/",
    "requirements.lock",
    "engine/Cargo.lock",
    "engine/fuzz/Cargo.lock",
    "LICENSE",
)

#: Cargo names its registry in its lock files; that cannot be left out.
MAY_NAME_HOSTS = {"engine/Cargo.lock", "engine/fuzz/Cargo.lock"}
HOSTS = re.compile(
    r"\b(pypi|pythonhosted|npmjs|crates|debian|golang|rust-lang)\.(org|io)\b", re.IGNORECASE
)
#: Where people and builders keep their work; systems' own paths (/usr, /etc, /var, /tmp) are fine.
PLACES = re.compile(r"(?<![\w.~}$/-])/(home|root|work|Users|builds|workspace|opt/wheels)(/|\b)")


@cache
def tracked() -> tuple[str, ...]:
    """Every file that is committed or added, relative to the root."""
    out = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return tuple(sorted(name for name in out.split("\0") if name and (ROOT / name).is_file()))


def sources(room: str) -> Iterator[Path]:
    """The Python files of a room (a package or a module of `vswitchd`)."""
    base = ROOT / PACKAGE / room
    module = base.with_suffix(".py")
    yield from sorted(base.rglob("*.py")) if base.is_dir() else [module] if module.exists() else []


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, those inside functions and `if`s too.

    `from vswitchd import _engine` counts as an import of `vswitchd._engine`.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def inside(module: str) -> str | None:
    """The part of a module's name after `vswitchd.`; None if it is another package's."""
    head, _, rest = module.partition(".")
    return rest if head == PACKAGE else None


def is_under(name: str, allowed: set[str]) -> bool:
    """True if `name` is one of `allowed`, or lies in it."""
    return any(name == a or name.startswith(a + ".") for a in allowed)


def complain(found: list[str], rule: str) -> None:
    """Fails with the rule and every place that breaks it."""
    assert not found, rule + "\n  " + "\n  ".join(found)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_import_the_standard_library_and_inward_only(room: str) -> None:
    found = []
    for path in sources(room):
        for line, module in imports(path):
            ours = inside(module)
            top = module.partition(".")[0]
            if ours is not None:
                bad = not is_under(ours, PURE[room])
            else:
                bad = top in IMPURE or top not in sys.stdlib_module_names
            if bad:
                found.append(f"{where(path, line)} imports {module}")
    complain(found, f"`{room}` is pure: the standard library less {sorted(IMPURE)}, and inward")


@pytest.mark.parametrize("room", SHELLS)
def test_shells_see_ports_not_carriers(room: str) -> None:
    found = [
        f"{where(path, line)} imports {module}"
        for path in sources(room)
        if path.name != "app.py"
        for line, module in imports(path)
        if module.partition(".")[0] in CARRIERS or is_under(inside(module) or "", {"store"})
    ]
    complain(found, f"`{room}` sees ports; only its app.py wires {sorted(CARRIERS)} and stores")


def test_ports_are_made_of_the_model_alone() -> None:
    found = [
        f"{where(path, line)} imports {module}"
        for path in sources("ports")
        for line, module in imports(path)
        if (ours := inside(module)) is not None and not is_under(ours, {"model", "restructure"})
    ]
    complain(found, "`ports` speaks in the model's values")


def test_only_the_processor_imports_the_engine() -> None:
    found = [
        f"{where(path, line)} imports {module}"
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
        if path.relative_to(ROOT / PACKAGE).parts[0] != "processor"
        for line, module in imports(path)
        if is_under(inside(module) or "", {"_engine"})
    ]
    complain(found, "`vswitchd._engine` is the processor's")


def test_the_command_line_is_a_client_of_the_api_only() -> None:
    found = [
        f"{where(path, line)} imports {module}"
        for path in sources("cli")
        for line, module in imports(path)
        if (ours := inside(module)) is not None and ours and not is_under(ours, CLI_MAY)
        if module != f"{PACKAGE}.__version__"
    ]
    complain(found, f"`cli` sees {sorted(CLI_MAY)}")


def test_rpc_is_generated_only() -> None:
    names = {p.name for p in (ROOT / PACKAGE / "rpc").iterdir() if p.name != "__pycache__"}
    stems = {p.stem for p in (ROOT / "proto" / PACKAGE / "v1").glob("*.proto")}
    own = {"__init__.py"} | {
        f"{stem}_pb2{tail}" for stem in stems for tail in (".py", ".pyi", "_grpc.py", "_grpc.pyi")
    }
    complain(sorted(names - own), "`vswitchd/rpc` holds what `make proto` writes, nothing else")


def manifests() -> dict[str, dict[str, object]]:
    """Each crate's Cargo.toml by its directory's name."""
    return {p.parent.name: tomllib.loads(p.read_text()) for p in ROOT.glob("engine/*/Cargo.toml")}


def test_pyo3_appears_in_engine_py_alone() -> None:
    using = {
        crate
        for crate, manifest in manifests().items()
        for section in ("dependencies", "dev-dependencies", "build-dependencies")
        for name in dict(manifest.get(section, {}))  # type: ignore[call-overload]
        if name.startswith("pyo3")
    }
    assert using == {"py"}


#: Crates that only compute.
PURE_CRATES = {"crc32c", "serde", "serde_json", "thiserror"} | {
    *("base64", "md-5", "sha1", "sha2", "sha3", "subtle")
}


@pytest.mark.parametrize("crate", ["tree", "wire"])
def test_pure_crates_do_no_io(crate: str) -> None:
    """No sockets, files, threads or clocks, and no crate that brings them."""
    manifest = manifests()[crate]
    dependencies = set(dict(manifest["dependencies"]))  # type: ignore[call-overload]
    assert dependencies <= PURE_CRATES, sorted(dependencies)
    banned = re.compile(r"\bstd::(net|fs|thread|time|process|env|os)\b|\bunsafe\b")
    found = [
        f"{where(path, number)}: {line.strip()}"
        for path in sorted((ROOT / "engine" / crate / "src").rglob("*.rs"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line.partition("//")[0])
    ]
    complain(found, f"`engine/{crate}` is pure")


def test_the_engine_stub_says_what_the_engine_has() -> None:
    engine = pytest.importorskip("vswitchd._engine", reason="run `make engine` first")
    stub = ast.parse((ROOT / PACKAGE / "_engine.pyi").read_text())
    said = {
        node.name: {f.name for f in node.body if isinstance(f, ast.FunctionDef)} - {"__init__"}
        for node in stub.body
        if isinstance(node, ast.ClassDef)
    }
    has = {
        name: {member for member in vars(value) if not member.startswith("_")}
        for name, value in vars(engine).items()
        if isinstance(value, type)
    }
    assert has == said


def text_of(name: str) -> str | None:
    """A file's text; None if it is binary."""
    try:
        return (ROOT / name).read_text()
    except UnicodeDecodeError:
        return None


def test_files_are_short() -> None:
    found = [
        f"{name}: {lines} lines"
        for name in tracked()
        if name.endswith((".py", ".rs", ".proto", ".c", ".sh"))
        and not name.startswith(GENERATED)
        and (lines := (text_of(name) or "").count("\n")) > LINE_LIMIT
    ]
    complain(found, f"split by meaning: no file written by hand is over {LINE_LIMIT} lines")


def test_nothing_committed_names_a_registry_or_this_machine() -> None:
    found = []
    for name in tracked():
        for number, line in enumerate((text_of(name) or "").splitlines(), 1):
            if name not in MAY_NAME_HOSTS and HOSTS.search(line):
                found.append(f"{name}:{number} names a registry's host")
            if name != "tests/test_rooms.py" and PLACES.search(line):
                found.append(f"{name}:{number} holds a machine's own path: {line.strip()[:80]}")
    complain(found, "what is committed must mean the same on every machine")


def test_the_locks_hold_hashes_and_every_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))
    for block in re.split(r"\n(?=[a-z])", lock.strip()):
        assert "--hash=sha256:" in block, f"no hash: {block.splitlines()[0]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[<>=!\[ ]", need)[0].lower().replace("_", "-")
        for need in (*project["dependencies"], *project["optional-dependencies"]["dev"])
    }
    assert wanted <= pins, f"run `make lock`: {sorted(wanted - pins)} not locked"
