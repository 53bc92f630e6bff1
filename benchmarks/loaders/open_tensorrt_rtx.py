"""TensorRT-RTX reads an exported engine as far as it can be without a GPU.

Parses the ONNX file that travels with the engine, and asks the runtime for the engine itself.
"""

import sys
from pathlib import Path

import tensorrt_rtx_bindings as trt
from answering import FOLDER, NAME, answer

logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(0)
parsed = trt.OnnxParser(network, logger).parse_from_file(f"{FOLDER}/model.onnx")
try:
    engine = trt.Runtime(logger).deserialize_cuda_engine(Path(FOLDER, NAME).read_bytes())
    opened = "opened" if engine is not None else "not opened: no GPU"
except Exception as error:
    opened = f"not opened: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
answer(
    None,
    None,
    f"TensorRT-RTX {trt.__version__}; model.onnx {'parsed' if parsed else 'refused'}; engine {opened}",
)
sys.exit(0 if parsed else 1)
