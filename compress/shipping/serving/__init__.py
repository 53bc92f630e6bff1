"""Bundles that answer over HTTP: Triton's model repository, and a server of the Open Inference Protocol."""
