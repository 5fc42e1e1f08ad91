"""How a command ends: errors as one sentence with a code, never as a traceback."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import typer

__all__ = ["exit_codes"]


@contextmanager
def exit_codes(folder: Path | None = None) -> Generator[None]:
    """Errors that a user can mend as one sentence and code 2; Ctrl-C as one line and code 130.

    Args:
        folder: where what is done is kept; named where the error names no file itself. None for
            a command that keeps nothing.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = f" What is done is kept in {folder}; the same command goes on from there."
        typer.echo(f"\nStopped.{kept if folder else ''}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        typer.echo(
            f"{error.filename or folder or 'The system'}: {error.strerror or error}.", err=True
        )
        raise typer.Exit(2) from None
    except Exception as error:
        from eslkit.errors import EslError

        if not isinstance(error, EslError):
            raise
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None
