"""The files that travel with a model from step to step: its configuration and its tokenizer or preprocessor."""

from __future__ import annotations

import shutil
from pathlib import Path

from compress.models.loading import COMPANIONS, CONFIG


def copy_companions(source: Path, out: Path) -> None:
    """Copy the configuration and tokenizer or preprocessor files that ``source`` has, byte for byte."""
    for name in (CONFIG, *COMPANIONS):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
