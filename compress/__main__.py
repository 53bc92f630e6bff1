"""``python -m compress`` is the ``mcompress`` command."""

from compress.cli import main

main()
