"""What mcompress' contract suite runs the plug-in on; see ``docs/plugins.md`` of mcompress."""

import numpy as np

PASSES = {"palette": [{"model": "onnx"}, {"model": "onnx", "config": {"entries": 8}}]}
"""Pass -> configs that work on a tiny classifier, each with the kind of artifact that it starts from."""

TASKS = {
    "ordinal-classification": [
        {
            "options": {
                "name": "ordinal-classification",
                "labels": ["bad", "fine", "good"],
                "problem": "single_label",
                "max_length": 8,
            },
            "labels": ("good", "bad", "fine"),
            "right": np.array([[-1, 0, 2], [2, 1, 0], [0, 3, 1]]),
            "wrong": np.array([[2, 0, -1], [0, 1, 2], [3, 0, 1]]),
            "unknown": "grand",
        }
    ]
}
"""Task -> its options, three labels, outputs that get all of them right, outputs that get none, a label to refuse."""
