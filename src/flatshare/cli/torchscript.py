"""`flatshare torchscript`: a checkpoint as the model of a Triton package."""

from pathlib import Path

import click
from rich.markup import escape

from flatshare.cli.options import console, json_option, print_json


@click.command(short_help="Convert a checkpoint to TorchScript.")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@json_option
def torchscript(checkpoint: Path, out: Path, as_json: bool) -> None:
    """Trace a checkpoint for Triton's PyTorch backend, and compare what was traced with the model before it is written.

    OUT is a new folder with model.pt and the tokenizer's files, such as layout embedding-ensemble takes. Needs the extra `torch`.
    Served here, a checkpoint needs no conversion and costs less memory: use it for packages that Triton must run too.

    \b
    Example:
      flatshare torchscript ./checkpoint ./traced
    """
    from flatshare.core.settings import StoreLimits
    from flatshare.package.torchscripting import write_torchscript

    made = write_torchscript(checkpoint, out, StoreLimits())
    if as_json:
        print_json({"model": str(made.model), "difference": made.difference, "width": made.width})
    else:
        console.print(
            f"{escape(str(made.model))}: {made.width} numbers out, differs from the model by {made.difference:.1e}", soft_wrap=True
        )
