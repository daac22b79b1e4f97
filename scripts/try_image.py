"""Does what Dockerfiles do, without Docker: ``try_image.py --out DIR gateway …`` leaves images' files in DIR.

Build stages run as they stand, with the paths of the image moved below DIR and this Python for the image's
own; of the last stage what it copies is weighed, and the service is started without settings, which it must
refuse. The command `lorauter` must show its help.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOVED = re.compile(r"(?<![\w/.])/(?=(?:opt|wheels|src)\b)")
REFUSED = 2


@dataclass
class Stage:
    """One stage of a Dockerfile: its instructions in order, continued lines joined."""

    instructions: list[tuple[str, str]] = field(default_factory=list)


def stages(name: str) -> list[Stage]:
    """Returns the stages of ``deploy/docker/<name>.Dockerfile``."""
    text = (ROOT / "deploy" / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append(Stage())
        found[-1].instructions.append((word, rest.strip()))
    return found


class Place:
    """A folder that stands for an image's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root
        path = f"{root / 'python' / 'bin'}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PIP_QUIET": "2"}
        subprocess.run([sys.executable, "-m", "venv", root / "python"], check=True)

    def moved(self, text: str) -> str:
        """Returns a text with the image's paths below this folder."""
        return MOVED.sub(f"{self.root}/", text)

    def build(self, stage: Stage) -> None:
        """Runs a build stage."""
        for word, rest in stage.instructions:
            if word == "WORKDIR":
                self.folder = Path(self.moved(rest))
                self.folder.mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(*rest.split())
            elif word == "ENV":
                self.environment |= dict(pair.split("=", 1) for pair in self.moved(rest).split())
            elif word == "RUN":
                print(f"+ {' '.join(rest.split())}", file=sys.stderr, flush=True)
                command = ["sh", "-ec", self.moved(rest)]
                subprocess.run(command, cwd=self.folder, env=self.environment, check=True)

    def _copy(self, source: str, target: str) -> None:
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
            shutil.copytree(ROOT / source, self.folder / target, ignore=ignored)
        else:
            shutil.copy(ROOT / source, self.folder / target)


def finish(place: Place, stage: Stage) -> dict[str, object]:
    """Weighs what the last stage copies from the others, and starts its program without any setting."""
    copied = [rest.split()[1] for word, rest in stage.instructions if word == "COPY" and "--from=" in rest]
    entrypoint = next(json.loads(rest) for word, rest in stage.instructions if word == "ENTRYPOINT")
    program = place.root / "opt" / "lorauter" / "bin" / entrypoint[0]
    done = subprocess.run(
        [program], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != REFUSED:
        sys.exit(f"{program} ended with {done.returncode}, not {REFUSED}: {done.stderr[-2000:]}")
    megabytes = {path: round(_bytes(Path(place.moved(path))) / 1e6) for path in copied}
    packages = place.root.glob("opt/lorauter/lib/python*/site-packages/*.dist-info")
    return {
        "megabytes": megabytes,
        "packages": sum(1 for _ in packages),
        "torch": any(place.root.glob("opt/lorauter/lib/python*/site-packages/torch/__init__.py")),
        "refusal": (done.stderr.strip() or done.stdout.strip()).splitlines()[0],
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    """Prints one line of JSON for each image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for name in options.names:
        root = (options.out / name).absolute()
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        place = Place(root)
        *builds, last = stages(name)
        for stage in builds:
            place.build(stage)
        print(json.dumps({"image": name, **finish(place, last)}), flush=True)


if __name__ == "__main__":
    main()
