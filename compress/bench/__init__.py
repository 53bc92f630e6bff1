"""Measuring variants: fresh child processes, interleaved rounds, raw samples, honest statistics.

``protocol`` measures, ``worker`` is the child, ``statistics`` turns samples into intervals.
"""
