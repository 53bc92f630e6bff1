"""What ``quantize`` does where it chooses: try the INT8 forms that can win on the target, and keep the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.errors import DataError
from compress.quantization.isa import isa_of, target_flags
from compress.quantization.rules import Placement, rules_for
from compress.runtimes.target import find_target
from compress.search.int8_candidates import Limits
from compress.search.quantizing import Int8Search
from compress.search.untimed import UntimedSearch

if TYPE_CHECKING:
    import onnx

    from compress.passes.base import Context
    from compress.passes.quantize import QuantizeConfig


def search_int8(
    model: onnx.ModelProto, source: Artifact, config: QuantizeConfig, reduced: bool, context: Context
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the chosen INT8 graph and what a manifest records of the search.

    Args:
        model: the graph of ``source``, in float32.
        source: the artifact that is quantized.
        config: of the pass; its target has rules.
        reduced: whether weights keep to 7 bits.
        context: of the run.

    Raises:
        DataError: calibration or validation examples are missing.
        RecipeError: a glob of ``exclude`` matches nothing that could be quantized.
    """
    from compress.passes.quantize import calibration_examples, rest_of
    from compress.quantization.int8 import excluded_nodes

    target = find_target(str(config.target))
    if "validation" not in context.data:
        raise DataError(
            "Choosing among INT8 forms needs validation examples, and the data has none.",
            value="data.validation",
            fix="Give `data: {validation: ...}`, or use `method: dynamic`.",
        )
    rules = rules_for(target.runtime)
    operators = ["MatMul", "Gemm", "Gather", *(["Add"] if rules.residual else [])]
    globs = excluded_nodes(model, operators, config.exclude)
    on_gpu = rules.device == "cuda"
    search = (partial(UntimedSearch, rest=rest_of(config)) if on_gpu else Int8Search)(
        source=source,
        model=model,
        task=context.task,
        calibration=calibration_examples(source, context),
        validation=context.task.encode(source.path, context.data["validation"].rows),
        target=target,
        rules=rules,
        limits=Limits(
            max_drop_points=config.max_drop_points,
            goal=config.goal,
            weight_bits=7 if reduced else 8,
            per_channel=config.per_channel,
            tables=config.embeddings,
            excluded=dict.fromkeys(globs, "excluded by the recipe"),
        ),
        work=context.scratch,
        threads=context.threads,
        seed=context.seed,
        emit=context.emit,
    )
    chosen = search.run()
    quantized = search.write(chosen)
    notes = {
        "method": chosen.form.method,
        **(search.converted or _placed(search.placements(chosen))),
        "search": search.notes(chosen),
        "saturation": search.saturation(chosen),
        "trail": search.trail(),
        **search.sensitivity(chosen),
        **({"rest": search.rest_notes} if isinstance(search, UntimedSearch) else {}),
        "isa": {"name": isa_of(target), "flags": sorted(_INTERESTING & target_flags(target))},
    }
    return quantized, notes


def _placed(placements: Sequence[Placement]) -> dict[str, Any]:
    """Return the notes on which nodes run on integers, and why the others do not."""
    products = [it for it in placements if it.product is not None]
    counts = {
        name: dict(sorted(Counter(it.operator for it in products if it.precision == precision).items()))
        for name, precision in (("nodes_quantized", "int8"), ("nodes_left", "float32"))
    }
    reasons = [{"node": it.node, "operator": it.operator, "reason": it.reason} for it in placements if it.reason]
    return {**counts, "placement": reasons}


_INTERESTING = frozenset(
    {"avx2", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm", "sse4_1"}
)
"""Flags that decide how 8-bit products are computed."""
