"""Answers requests of the Open Inference Protocol (v2) with one model: ``python -m server``, see README.md and docs."""
