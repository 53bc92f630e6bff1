"""Bring your own device: a folder that measures a run's models anywhere, and the way back of its result."""
