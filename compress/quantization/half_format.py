"""The two 16-bit floating-point formats that a graph can be cast to: FP16 and BF16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Dtype = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class HalfFormat:
    """A 16-bit format (IEEE 754 binary16, or the upper half of a float32).

    Attributes:
        name: as numpy and recipes call it.
        trait: what an artifact of it is marked with.
        label: as people read it.
        largest: largest finite number.
        normal: smallest positive number of full precision.
        vanishing: largest number that rounds to 0, half of the smallest subnormal.
        digits: bits of the significand, the hidden one included.
    """

    name: Dtype
    trait: Literal["fp16", "bf16"]
    label: str
    largest: float
    normal: float
    vanishing: float
    digits: int

    @property
    def fill(self) -> float:
        """What a mask's "minus infinity" becomes: half the range, so that adding a score cannot overflow.

        exp(fill) is still 0, and a row without any token stays finite.
        """
        return -self.largest / 2

    @property
    def onnx_type(self) -> int:
        """Its number in ``onnx.TensorProto``."""
        import onnx

        return int(onnx.TensorProto.FLOAT16 if self.name == "float16" else onnx.TensorProto.BFLOAT16)

    def half_name(self, value: str) -> str:
        """Return the name of a value's 16-bit form."""
        return f"{value}__{self.name}"

    def store(self, values: np.ndarray) -> np.ndarray:
        """Return float32 values of any shape in this format; those beyond its largest number become fills."""
        beyond = np.abs(values) > self.largest
        return self.round(np.where(beyond, np.sign(values) * -self.fill, values).astype(np.float32))

    def round(self, values: np.ndarray) -> np.ndarray:
        """Return float32 values of any shape in this format, rounded to nearest even, infinite where too large."""
        import ml_dtypes

        with np.errstate(over="ignore"):
            return values.astype(np.float16 if self.name == "float16" else ml_dtypes.bfloat16)


FP16 = HalfFormat("float16", "fp16", "FP16", 65504.0, 2.0**-14, 2.0**-25, 11)
BF16 = HalfFormat("bfloat16", "bf16", "BF16", (2.0 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-134, 8)
FORMATS: dict[Dtype, HalfFormat] = {"float16": FP16, "bfloat16": BF16}
