"""`flatshare import`: bring what is served elsewhere."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from flatshare.cli.options import console, json_option, print_json, url_option
from flatshare.core.errors import FlatshareError


@click.group(name="import", short_help="Bring models that are served elsewhere.")
def import_models() -> None:
    """Recreate existing deployments here.

    \b
    Examples:
      flatshare import sagemaker
      flatshare import hf ./checkpoint acme/intent
    """


@import_models.command()
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file that --save wrote, or what the AWS CLI's describe calls print, a file each. Default: AWS.",
)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Only write down what AWS says, for --from.")
@click.option("--instance-count", default=1, show_default=True, type=click.IntRange(1), help="Of each variant here.")
@url_option
@json_option
def sagemaker(sources: tuple[Path, ...], save: Path | None, instance_count: int, url: str, as_json: bool) -> None:
    """Make SageMaker's multi-model endpoints here, under their names and over the same S3 prefixes; callers change the address only.

    Reads by list and describe calls, with the credentials that boto3 finds. Changes nothing on AWS and copies no artifact.

    \b
    Examples:
      flatshare import sagemaker
      flatshare import sagemaker --save deployment.json     where AWS can be reached
      flatshare import sagemaker --from deployment.json     where flatshare runs
    """
    import boto3

    from flatshare.client.aws import aws_client
    from flatshare.release import migrating

    found = migrating.load(sources) if sources else migrating.describe_all(boto3.client("sagemaker"))
    if save is not None:
        migrating.save(found, save)
        console.print(f"{len(found.endpoints)} endpoints written to {escape(str(save))}")
        return
    moved = list(migrating.recreate(found, aws_client("sagemaker", url), instance_count=instance_count))
    if as_json:
        print_json([{"endpoint": one.endpoint, "prefixes": one.prefixes, "left": one.left} for one in moved])
        return
    for one in moved:
        said = f"[red]left: {escape(one.left)}[/]" if one.left else f"over {escape(', '.join(one.prefixes))}"
        console.print(f"  {one.endpoint}: {said}", soft_wrap=True, highlight=False)


@import_models.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("model")
@click.option("--prefix", help="Folder above the endpoints' own. Default: file://./models/")
@click.option("--why", default="", help="For the history.")
@url_option
@json_option
def hf(checkpoint: Path, model: str, prefix: str | None, why: str, url: str, as_json: bool) -> None:
    """Package a Hugging Face checkpoint by the layout that its config.json calls for, and deploy it as TENANT/NAME.

    \b
    Example:
      flatshare import hf ./checkpoint acme/intent
    """
    from flatshare.release.migrating import layout_for

    layout = layout_for(checkpoint)
    done = _deployed(checkpoint, model, layout, prefix, why, url)
    if as_json:
        print_json({"model": done.model, "version": done.version, "endpoint": done.endpoint, "layout": layout})
    else:
        console.print(f"{done.model}@{done.version} by layout {layout}, behind {done.endpoint}", soft_wrap=True, highlight=False)


@import_models.command()
@click.argument("repository", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("tenant")
@click.option("--prefix", help="Folder above the endpoints' own. Default: file://./models/")
@click.option("--why", default="", help="For the history.")
@url_option
@json_option
def triton(repository: Path, tenant: str, prefix: str | None, why: str, url: str, as_json: bool) -> None:
    """Package each model of a Triton repository as it is, and deploy it as TENANT/NAME. Those that cannot be served are named.

    An ensemble is packaged with its steps, and the steps of these. A model whose code calls others (BLS) needs them in its own folder.

    \b
    Example:
      flatshare import triton ./model_repository acme
    """
    import tempfile

    from flatshare.release.gathering import gather, laid_out

    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=".flatshare-import-", dir=repository.parent) as place:  # its disk, so that links suffice
        for one in gather(repository):
            found: dict[str, Any] = {"model": f"{tenant}/{one.name}", "steps": list(one.steps), "left": one.left}
            try:
                if not one.left:
                    deployed = _deployed(laid_out(one, Path(place)), f"{tenant}/{one.name}", "triton", prefix, why, url)
                    found |= {"version": deployed.version, "endpoint": deployed.endpoint}
            except FlatshareError as error:
                found["left"] = str(error)
            done.append(found)
    if as_json:
        print_json(done)
    for found in [] if as_json else done:
        said = f"[red]left: {escape(found['left'])}[/]" if found["left"] else f"version {found['version']} behind {found['endpoint']}"
        steps = f", with {', '.join(found['steps'])}" if found["steps"] else ""
        console.print(f"  {found['model']}: {said}{escape(steps)}", soft_wrap=True, highlight=False)
    if any(found["left"] for found in done):
        raise SystemExit(1)


def _deployed(source: Path, model: str, layout: str, prefix: str | None, why: str, url: str) -> Any:
    import tempfile

    from flatshare.release.deploying import Wish, deploy
    from flatshare.release.packaging import PackageRequest, make_package
    from flatshare.release.site import flatshare_site

    with tempfile.TemporaryDirectory(prefix="flatshare-import-") as folder:
        request = PackageRequest(model, layout, {"": source}, {}, None, "", out=Path(folder) / "made.package")
        return deploy(flatshare_site(url, prefix), make_package(request), Wish(why=why or f"imported from {source.name}"))
