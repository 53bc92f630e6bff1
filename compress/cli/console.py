"""What every verb shares: where output goes, how progress looks, how errors end."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer

from compress.cli.interrupts import CODE, INTERRUPTED, interruptible
from compress.errors import CompressError

_OF_THE_REQUEST = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
"""Errors of a path that was given, not of the run."""
P = ParamSpec("P")
T = TypeVar("T")

SetOption = typer.Option([], "--set", metavar="KEY=VALUE", help="Override one value: `distill.epochs=1`. Repeatable.")
VarOption = typer.Option([], "--var", metavar="NAME=VALUE", help="Set ${NAME} of the recipe. Repeatable.")
TrustOption = typer.Option(
    None,
    "--trust-remote-code",
    metavar="MODEL",
    help="Run the Python files that the model's author wrote, with your rights; name the model again.",
)
JsonOption = typer.Option(False, "--json", help="Print the result as one line of JSON, the last of stdout.")


def with_trust(sets: list[str], model: str | None) -> list[str]:
    """Return the overrides of a recipe with what ``--trust-remote-code`` named."""
    return sets if model is None else [*sets, f"trust_remote_code={json.dumps(model)}"]


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """End a verb with one clear message and the right exit code instead of a traceback.

    ``MCOMPRESS_DEBUG=1`` shows the traceback as well.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with interruptible():
                return command(*args, **kwargs)
        except CompressError as error:
            _debug()
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say(INTERRUPTED)
            raise typer.Exit(CODE) from None
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the reader of the pipe is gone
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except MemoryError:
            _debug()
            say(
                "error: The memory of this machine did not suffice.\n"
                "  fix:   Close other programs, lower batch sizes, or use a larger machine; finished steps are kept."
            )
            raise typer.Exit(4) from None
        except OSError as error:
            _debug()
            say(
                "error: A file or folder cannot be used.\n"
                f"  value: {error.filename or ''}: {error.strerror or error}\n"
                "  fix:   Check the path, your rights to it and the space on its disk."
            )
            raise typer.Exit(2 if error.errno in _OF_THE_REQUEST else 4) from None
        except Exception as error:
            _debug()
            say(
                f"error: Something that mcompress did not expect.\n  value: {type(error).__name__}: {error}\n"
                "  fix:   Run again with MCOMPRESS_DEBUG=1 and report the traceback with your recipe."
            )
            raise typer.Exit(4) from None

    return wrapped


def say(text: str) -> None:
    """Print a line for people: to standard error, so that standard output stays machine-readable.

    What came from a file must not drive the terminal, so control characters are shown by name.
    """
    from compress.report.visible import visible

    print(visible(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print the result for machines: compact, on one line, which is the last and only one on standard output."""
    print(json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str), flush=True)


def print_wrapped(text: str, indent: int = 0, hanging: int = 6) -> None:
    """Print words in lines of at most 80 characters; a single longer word (a path) stays whole."""
    from compress.report.visible import visible

    lines = textwrap.wrap(
        visible(text),
        80,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    print("\n".join(lines))


def _debug() -> None:
    if os.environ.get("MCOMPRESS_DEBUG"):
        traceback.print_exc()
