"""The command line of eslkit_tsdn."""

from __future__ import annotations

import typer

from eslkit_tsdn.commands.complexity import complexity
from eslkit_tsdn.commands.demo import demo
from eslkit_tsdn.commands.denoise import denoise
from eslkit_tsdn.commands.evaluate import evaluate
from eslkit_tsdn.commands.export import export
from eslkit_tsdn.commands.prepare import prepare
from eslkit_tsdn.commands.reproduce import reproduce
from eslkit_tsdn.commands.train import train
from eslkit_tsdn.commands.verify import verify

__all__ = ["app"]

app = typer.Typer(
    name="eslkit-tsdn",
    help="Raw low-light denoising, trained by Expand-Shrink-Learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Raw low-light denoising, trained by Expand-Shrink-Learning."""


for command in (
    complexity,
    demo,
    denoise,
    evaluate,
    export,
    prepare,
    reproduce,
    train,
    verify,
):
    app.command()(command)
