"""Search below a measured latency: tables of what every width costs in a real runtime, and models deployed to check.

A table is measured once per architecture, runtime and machine from graphs with random weights; candidates are
exported, quantized or cast as the passes would, and timed beside the dense model. Nothing here knows recipes.
"""
