"""As little Python as it takes to run one ONNX model on one input again and again; imports nothing of mcompress.

    python benchmarks/plain_loop.py MODEL.onnx INPUTS.npz COUNT

Prints the median and mean time of one run in ms, by its own clock. COUNT 0 opens the model and warms it up; a negative
one only imports what the others import.
"""

import sys
import time

import numpy
import onnxruntime

model, inputs, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if count >= 0:
    with numpy.load(inputs) as file:
        feed = {name: file[name] for name in file.files}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(50):
        session.run(None, feed)
    times = []
    for _ in range(count):
        begun = time.perf_counter_ns()
        session.run(None, feed)
        times.append((time.perf_counter_ns() - begun) / 1e6)
    if times:
        print(numpy.median(times), numpy.mean(times))
