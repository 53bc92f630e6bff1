"""Checks of a model against a target before anything of the target is installed."""
