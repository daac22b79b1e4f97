"""What importing the client costs: product services install it alone."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
from importlib.abc import MetaPathFinder

class OnlyOurNeeds(MetaPathFinder):
    allowed = {"lorauter", "grpc", "google", "typing_extensions"} | sys.stdlib_module_names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed and not name.startswith("_"):
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, OnlyOurNeeds())
import lorauter
from lorauter import errors
client = lorauter.Client(registry="127.0.0.1:1", timeout_seconds=1)
lorauter.AsyncClient(registry="127.0.0.1:1")
try:
    client.generate("x")
except errors.InvalidArgument as error:
    print(error.reason)
try:
    import numpy
except ModuleNotFoundError:
    print("blocked")
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_client_works_when_only_its_own_requirements_are_installed() -> None:
    assert python(ALONE).split() == ["ADDRESS_MISSING", "blocked"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert python("import sys, lorauter; print('grpc' in sys.modules, 'numpy' in sys.modules)").split() == [
        "False",
        "False",
    ]
