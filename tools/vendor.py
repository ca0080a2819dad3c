"""`make vendor`: fetches the third-party files again, and refuses any whose hash is not the one we know."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "vendor.json"
REGISTRY = os.environ.get("NPM_REGISTRY") or "https://registry.npmjs.org"


def main() -> int:
    """Return the exit code."""
    problems = [problem for package in json.loads(MANIFEST.read_text("utf-8")) for problem in refetch(package)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def refetch(package: dict[str, Any]) -> list[str]:
    """Write the package's files whose hashes match; return what is wrong with the others."""
    name, version = package["name"], package["version"]
    url = f"{REGISTRY.rstrip('/')}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    with urlopen(url, timeout=60) as answer:
        archive = io.BytesIO(answer.read())
    problems = []
    with tarfile.open(fileobj=archive) as tar:
        for path, file in package["files"].items():
            member = tar.extractfile(f"package/{file['from']}")
            content = member.read() if member else b""
            found = hashlib.sha256(content).hexdigest()
            if found != file["sha256"]:
                problems.append(
                    f"{path}: {name} {version} has it with sha256 {found}, and {MANIFEST.name} expects another"
                )
                continue
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes(content)
            print(f"{path}: {name} {version}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
