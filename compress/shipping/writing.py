"""``mcompress export``: lay out an artifact, and put card, record, checksums and ``verify.py`` beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from compress import verifying
from compress.artifact import Artifact
from compress.disk import hash_files, make_folder
from compress.errors import UsageError
from compress.report.card import CARD_NAME, Folder, Variant, render_card, render_plain_card
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
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out == Path.cwd()):
        what = "The folder is the current one." if out == Path.cwd() else "The folder exists and is not empty."
        raise UsageError(what, value=out, fix="Choose another one.")
    layout.require(shipment)
    _refuse_taken_names(shipment.artifact)
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
        (folder / CARD_NAME).write_text(_card(shipment, laid), encoding="utf-8")
        text = (resources.files("compress") / f"{verifying.__name__.rpartition('.')[2]}.py").read_text(encoding="utf-8")
        (folder / PROGRAM).write_text(text, encoding="utf-8")
        write_sums(folder)
        if out.exists():
            out.rmdir()  # fails if something was put there meanwhile

    make_folder(out, fill)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return Shipped(out, layout.name, len(sizes), sum(sizes), laid.variants, laid.left_out)


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over every other file of a folder, as ``sha256sum -c`` reads it."""
    lines = [f"{digest}  {name}\n" for name, digest in hash_files(folder).items() if name != verifying.SUMS]
    (folder / verifying.SUMS).write_text("".join(lines), encoding="utf-8")


def _refuse_taken_names(artifact: Artifact) -> None:
    """Refuse a payload with the names of what an export puts beside it.

    Raises:
        UsageError: it has one.
    """
    for name in artifact.manifest.files:
        if name in (CARD_NAME, PROGRAM, verifying.SUMS) or name.split("/")[0] == RECORD or verifying.is_manifest(name):
            raise UsageError(
                "A file of the artifact has the name of one that belongs to an export.",
                value=name,
                fix="Give the artifact as `mcompress run` wrote it.",
            )


def _card(shipment: Shipment, laid: Laid) -> str:
    manifest = shipment.artifact.manifest
    folder = Folder(
        laid.kind or manifest.kind,
        laid.variants[0].file,
        tuple(manifest.files),
        laid.loads,
        laid.variants,
        tuple(f"{RECORD}/{name}" for name in shipment.record),
    )
    known = {step.id for step in shipment.report.steps} if shipment.report else set()
    if shipment.report is None or shipment.step not in known:
        return render_plain_card(shipment.name, str(manifest.task["name"]), manifest.traits, folder)
    return render_card(shipment.report, shipment.step or "", folder)
