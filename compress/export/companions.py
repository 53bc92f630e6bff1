"""The files that travel with a model from step to step: its configuration and its tokenizer or preprocessor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from compress.models.loading import COMPANIONS, CONFIG, read_config
from compress.models.remote_code import AUTO_MAP


def copy_companions(source: Path, out: Path) -> None:
    """Copy the configuration and tokenizer or preprocessor files that ``source`` has, byte for byte.

    Only what config.json says of the author's Python files stays behind, as they do: a graph needs none.
    """
    for name in (CONFIG, *COMPANIONS):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    config = read_config(out) if (out / CONFIG).is_file() else {}
    if config.pop(AUTO_MAP, None) is not None:
        (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
