"""The teacher's outputs in the store: its forward pass runs once for each teacher and set of texts."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from compress.artifact import hash_json
from compress.data.encoded import Encoded
from compress.distillation.material import hash_inputs
from compress.distillation.teacher import CACHE_BYTES, TeacherOutputs, Terms, read_outputs, token_bytes, write_outputs
from compress.distillation.terms import depth
from compress.distillation.training import Place
from compress.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def teacher_outputs(
    store: Store, digest: str, model: PreTrainedModel, encoded: Encoded, terms: Terms, place: Place
) -> TeacherOutputs:
    """Return the teacher's outputs from the store; what is missing is computed and kept.

    Where hidden states are wanted, those of every layer are kept if they fit into ``CACHE_BYTES``: then one entry
    serves every step of a recipe with the same teacher and texts, whatever layers it compares.

    Args:
        store: keeps them.
        digest: of the teacher's artifact.
        model: the teacher, in evaluation mode.
        encoded: the examples as the teacher reads them.
        terms: token-wise outputs that are wanted; they fit into ``CACHE_BYTES``.
        place: device and progress.
    """
    every = tuple(range(depth(model)))
    tokens = hash_inputs(encoded)
    whole = Terms(every, terms.relations)
    fits = token_bytes(model, encoded, whole) <= CACHE_BYTES
    for candidate in (whole, terms) if fits else (terms,):
        folder = store.find(_key(digest, tokens, candidate, place.device))
        if folder is not None:
            return read_outputs(folder).only(terms)
    stored = whole if terms.hidden and fits else terms

    def count(done: int, total: int) -> None:
        place.emit("teacher outputs", done, total)

    key = _key(digest, tokens, stored, place.device)
    folder, _ = store.get_or_build(
        key, "teacher outputs", lambda out: write_outputs(model, encoded, stored, out, count)
    )
    return read_outputs(folder).only(terms)


def _key(digest: str, tokens: str, terms: Terms, device: str) -> str:
    return hash_json(
        {
            "teacher-outputs": 1,
            "teacher": digest,
            "tokens": tokens,
            "hidden": terms.hidden,
            "relations": terms.relations,
            "device": device,
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
    )
