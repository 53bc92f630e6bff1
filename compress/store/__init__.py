"""The content-addressed store: finished work by key, published with one rename, verified on read.

Layout under ``MCOMPRESS_HOME`` (default ``~/.cache/mcompress``)::

    entries/<key>/payload/...     what a step made
    entries/<key>/entry.json      label, files with sha256, keys of what it was made from, seconds that it took
    partial/<key>/                training checkpoints of an unfinished step
    work/<random>/                work in flight, locked by its process; removed when that has ended
    claims/...                    which keys a run, or another process, needs
    locks/<key>.lock

Every lock is one of the kernel's, which ends with its process: there is no lock to clean up after a crash, and no
clock is read to find out whether an owner is alive.
"""

from compress.store.keeping import Store

__all__ = ["Store"]
