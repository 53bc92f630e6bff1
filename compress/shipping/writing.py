"""``mcompress export``: lay out an artifact, and put card, record, checksums and ``verify.py`` beside it."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from compress import verifying
from compress.disk import make_folder
from compress.errors import UsageError
from compress.report.card import CARD_NAME, Variant, render_card, render_plain_card
from compress.resources import require_space
from compress.shipping.layouts import Laid, Layout
from compress.shipping.shipment import RECORD, Shipment

PROGRAM = "verify.py"


@dataclass(frozen=True)
class Shipped:
    """A written export: its folder, its size in bytes with everything in it, the models, and what is not there."""

    path: Path
    layout: str
    files: int
    size_bytes: int
    variants: tuple[Variant, ...]
    left_out: tuple[str, ...]


def ship(shipment: Shipment, layout: Layout, out: Path) -> Shipped:
    """Write a folder; it is there whole or not at all.

    Args:
        shipment: what to write.
        layout: how.
        out: new or empty folder.

    Raises:
        UsageError: the folder is not empty, or the layout does not take this artifact.
        StorageError: there is not enough space.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The folder exists and is not empty.", value=out, fix="Choose another one.")
    layout.require(shipment)
    models = (shipment.artifact, *shipment.siblings.values())
    need = sum(record.bytes for model in models for record in model.manifest.files.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, need, f"{out.name!r}")
    laid = Laid()

    def fill(folder: Path) -> None:
        nonlocal laid
        folder.mkdir()
        laid = layout.write(shipment, folder)
        for name, path in shipment.record.items():
            (folder / RECORD).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / RECORD / name)
        if not (folder / CARD_NAME).exists():
            (folder / CARD_NAME).write_text(_card(shipment, laid), encoding="utf-8")
        text = (resources.files("compress") / f"{verifying.__name__.rpartition('.')[2]}.py").read_text(encoding="utf-8")
        (folder / PROGRAM).write_text(text, encoding="utf-8")
        write_sums(folder)

    make_folder(out, fill)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return Shipped(out, layout.name, len(sizes), sum(sizes), laid.variants, laid.left_out)


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over every other file of a folder, as ``sha256sum -c`` reads it."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != verifying.SUMS):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    (folder / verifying.SUMS).write_text("".join(lines), encoding="utf-8")


def _card(shipment: Shipment, laid: Laid) -> str:
    manifest = shipment.artifact.manifest
    known = {step.id for step in shipment.report.steps} if shipment.report else set()
    if shipment.report is None or shipment.step not in known:
        task = str(manifest.task["name"])
        return render_plain_card(shipment.name, manifest.kind, task, laid.loads, laid.variants)
    return render_card(
        shipment.report,
        shipment.step or "",
        files=tuple(manifest.files),
        loads=laid.loads,
        variants=laid.variants,
        record=tuple(f"{RECORD}/{name}" for name in shipment.record),
    )
