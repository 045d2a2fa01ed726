"""The command `flatshare`. Each subcommand is imported when it is called: an instance must not carry the AWS client's memory."""

import sys
from importlib import import_module

import click
from rich.markup import escape

from flatshare import __version__
from flatshare.cli.options import errors
from flatshare.core.errors import FlatshareError

_COMMANDS = {
    "serve": "flatshare.cli.serve",
    "package": "flatshare.cli.package",
    "code": "flatshare.cli.package",
    "torchscript": "flatshare.cli.torchscript",
    "deploy": "flatshare.cli.deploy",
    "release": "flatshare.cli.release",
    "invoke": "flatshare.cli.deploy",
    "warm": "flatshare.cli.warm",
    "report": "flatshare.cli.warm",
    "import": "flatshare.cli.migrate",
    "models": "flatshare.cli.models",
    "keys": "flatshare.cli.keys",
    "top": "flatshare.cli.top",
    "explain": "flatshare.cli.explain",
    "env": "flatshare.cli.serve",
    "bench": "flatshare.cli.bench",
    "instance": "flatshare.cli.instance",
}
_ATTRIBUTES = {"import": "import_models"}  # a word of Python


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # the base class names it
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # the base class names it
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), _ATTRIBUTES.get(cmd_name, cmd_name))
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flatshare")
def commands() -> None:
    """Many models, one roof: multi-model endpoints that you can run anywhere.

    \b
    Start here:
      flatshare serve
      flatshare deploy ./my-encoder --endpoint embeddings --target acme/query
      flatshare invoke embeddings acme/query "where is my parcel?"
    """


def main() -> None:
    """Errors are a sentence, not a traceback."""
    try:
        commands()
    except Exception as error:
        if not isinstance(error, FlatshareError) and not _is_aws(error):
            raise
        errors.print(f"[red]error:[/] {escape(_sentence(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _sentence(error: Exception) -> str:
    if _is_aws(error):
        from flatshare.client.aws import sentence_of

        return sentence_of(error)
    return str(error)


def _is_aws(error: Exception) -> bool:
    """An error of boto3, which is imported only by the commands that use it."""
    return type(error).__module__.startswith("botocore.")
