"""Writes requirements.lock from a fresh environment: the exact versions of all that the project requires."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Exact versions of all third-party packages: what the distributions and requirements-dev.in need, and what
# those need in turn. Written by `make lock`; do not edit. torch's CUDA packages are left to pip: a CPU build
# has none, and where pip takes the default build it installs them with torch.
"""


def main() -> int:
    """Resolves with pip in a temporary environment, then writes down the closure."""
    requirements = [*required_by_project(), *required_by_tools()]
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        texts = [str(requirement) for requirement in requirements]
        subprocess.run([python, "-m", "pip", "install", "-qq", *texts], check=True)
        pins = sorted(closure(requirements, read_environment(Path(folder))).items())
    lines = [f"{name}=={version.split('+')[0]}\n" for name, version in pins]
    (ROOT / "requirements.lock").write_text(HEADER + "".join(lines))
    print(f"requirements.lock: {len(lines)} packages")
    return 0


def required_by_project() -> list[Requirement]:
    """Returns the third-party requirements of all distributions and their extras."""
    found = []
    for path in [ROOT / "shared" / "pyproject.toml", *sorted(ROOT.glob("services/*/pyproject.toml"))]:
        project = tomllib.loads(path.read_text())["project"]
        texts = list(project["dependencies"])
        for extra in project.get("optional-dependencies", {}).values():
            texts += extra
        found += [Requirement(text) for text in texts]
    return [requirement for requirement in found if not requirement.name.startswith("lorauter")]


def required_by_tools() -> list[Requirement]:
    """Returns what requirements-dev.in names."""
    lines = (
        re.sub(r"#.*", "", line).strip() for line in (ROOT / "requirements-dev.in").read_text().splitlines()
    )
    return [Requirement(line) for line in lines if line]


def read_environment(folder: Path) -> dict[str, PathDistribution]:
    """Returns what is installed in an environment, by canonical name."""
    found = [PathDistribution(path) for path in folder.glob("lib/python3*/site-packages/*.dist-info")]
    return {canonicalize_name(dist.metadata["Name"]): dist for dist in found}


def closure(roots: list[Requirement], installed: dict[str, PathDistribution]) -> dict[str, str]:
    """Returns name and version of everything that ``roots`` need, without CUDA's packages."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in roots]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if re.match(r"nvidia-|cuda-|triton$", name):
            continue
        pins[name] = installed[name].version
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(text), wanted) for text in installed[name].requires or []]
    return pins


if __name__ == "__main__":
    sys.exit(main())
