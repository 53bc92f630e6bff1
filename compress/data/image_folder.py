"""A folder of images with one sub-folder for each class, read as a table."""

from __future__ import annotations

from pathlib import Path

from compress.data.formats import Table
from compress.data.pictures import IMAGE
from compress.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What ``datasets.save_to_disk`` leaves in a folder."""


def is_image_folder(path: Path) -> bool:
    """Say whether a path is a folder that ``datasets`` did not save."""
    return path.is_dir() and not any((path / name).is_file() for name in _SAVED)


def read_image_folder(path: Path, split: str) -> Table:
    """Read ``path/<split>/<class>/<image>`` or ``path/<class>/<image>``, sorted by class and name.

    Args:
        path: the folder.
        split: sub-folder to take where there is one of this name.

    Returns:
        Columns ``image`` (a path relative to ``Table.folder``) and ``label`` (the class's folder).

    Raises:
        DataError: there is no image.
    """
    home = path / split if (path / split).is_dir() else path
    try:
        files = sorted(
            file
            for kind in home.iterdir()
            if kind.is_dir() and not kind.name.startswith(".")
            for file in kind.iterdir()
            if file.suffix.lower() in SUFFIXES
        )
    except OSError as error:
        raise DataError(
            "The folder of images cannot be read.", value=f"{path.name}: {error.strerror}", fix="Make it readable."
        ) from error
    if not files:
        raise DataError(
            "The folder has no images in sub-folders.",
            value=path.name,
            fix=f"Put each class into a folder of its own: {path.name}/<class>/<image>; images end in "
            f"{', '.join(SUFFIXES)}.",
        )
    rows = [{IMAGE: file.relative_to(home).as_posix(), "label": file.parent.name} for file in files]
    return Table(path.name, (IMAGE, "label"), rows, range(1, len(rows) + 1), "image", folder=home)
