"""Reports: the record of a run and its renderings. Imports nothing that measures or changes a model.

Import from the modules: ``model`` (the record), ``files`` (read and write), ``terminal``, ``compare``.
"""
