"""A sample plug-in for mcompress. Nothing is imported here: each entry point names its own module."""
