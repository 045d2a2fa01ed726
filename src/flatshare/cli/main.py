"""The command `flatshare`."""

import sys

import click
from botocore.exceptions import BotoCoreError, ClientError

from flatshare import __version__
from flatshare.cli.bench import bench
from flatshare.cli.deploy import deploy, invoke
from flatshare.cli.instance import instance
from flatshare.cli.models import models
from flatshare.cli.options import errors
from flatshare.cli.serve import env, serve
from flatshare.cli.top import top
from flatshare.core.errors import FlatshareError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flatshare")
def commands() -> None:
    """Many models, one roof: multi-model endpoints that you can run anywhere.

    \b
    Start here:
      flatshare serve
      flatshare deploy ./my-encoder --endpoint embeddings --target acme/query
      flatshare invoke embeddings acme/query "where is my parcel?"
    """


for command in (serve, deploy, invoke, models, top, env, bench, instance):
    commands.add_command(command)


def main() -> None:
    """Errors are a sentence, not a traceback."""
    try:
        commands(standalone_mode=True)
    except (FlatshareError, ClientError, BotoCoreError) as error:
        errors.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
