"""`flatshare deploy` and `flatshare invoke`: put a model behind an endpoint, and call it."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import orjson
from botocore.exceptions import ClientError
from rich.markup import escape

from flatshare.cli.options import console, json_option, print_json, url_option
from flatshare.client import deploy as deployment
from flatshare.client.aws import aws_client, sentence_of
from flatshare.core.naming import DEFAULT_FLEET

_REPLACED_WITHIN_S = 25.0
_REFUSES_THE_CALL = 400


@click.command(short_help="Put models behind an endpoint.")
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--endpoint", help="Endpoint to serve checkpoints; created if it is missing. Packages know theirs.")
@click.option("--target", help="Of a checkpoint: its target model name, such as acme/query. Of packages: flatshare or aws.")
@click.option("--prefix", help="Where models lie, for a new endpoint. Default: file://./models/; of checkpoints, file://./models/ENDPOINT/")
@click.option("--no-check", is_flag=True, help="Checkpoints: do not call each once to see that it answers.")
@click.option(
    "--batch", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A .csv, .yaml or .jsonl file that lists packages."
)
@click.option("--dry-run", is_flag=True, help="Packages: show what would be done, and do nothing.")
@click.option(
    "--canary", type=click.FloatRange(0, 100, min_open=True, max_open=True), help="Packages: percent of calls that the new version gets."
)
@click.option("--hold", is_flag=True, help="Packages: deploy, and leave callers where they are.")
@click.option("--why", default="", help="Packages: for the history.")
@click.option("--fleet", default=DEFAULT_FLEET, show_default=True, help="Packages: first word of the endpoint's name.")
@click.option("--role", help="AWS: ARN of the execution role.")
@click.option("--image", help="AWS: container image of the endpoint.")
@click.option("--instance-type", default="ml.m5.xlarge", show_default=True, help="AWS: for a new endpoint.")
@url_option
@json_option
def deploy(artifacts: tuple[Path, ...], **options: Any) -> None:
    """Deploy packages, or checkpoints as they are: create the endpoint if it is missing, copy, and call each model until it answers.

    A package (what `flatshare package` makes) becomes a version of its model, behind the endpoint of its kind; callers move to it once it
    has answered. ARTIFACTS may also be checkpoint directories (what save_pretrained() writes) or archives, with --endpoint.

    \b
    Examples:
      flatshare deploy acme-intent.package --why "retrained on May"
      flatshare deploy --batch packages.csv --dry-run
      flatshare deploy acme-intent.package --target aws --prefix s3://bucket/models/ --role ARN --image URI
      flatshare deploy ./my-encoder --endpoint embeddings --target acme/query
    """
    are_packages = [(artifact / "package.json").is_file() for artifact in artifacts]
    if not artifacts and options["batch"] is None:
        raise click.UsageError("name packages or checkpoints, or --batch FILE")
    if all(are_packages):
        _deploy_packages(artifacts, options)
    elif any(are_packages) or options["batch"] is not None:
        raise click.UsageError("packages and checkpoints are deployed by a call each")
    elif options["endpoint"] is None:
        raise click.UsageError("--endpoint is missing: a checkpoint does not know where it belongs; or make a package of it")
    else:
        _deploy_checkpoints(artifacts, options)


def _deploy_packages(artifacts: tuple[Path, ...], options: dict[str, Any]) -> None:
    from flatshare.cli.release import deploy_packages

    if artifacts and options["batch"] is not None:
        raise click.UsageError("give packages or --batch, not both")
    if options["endpoint"] is not None:
        raise click.UsageError("a package's endpoint follows from its kind: leave out --endpoint, or choose a --fleet")
    target = options["target"] or "flatshare"
    if target not in {"flatshare", "aws"}:
        raise click.UsageError(f"--target {target}: packages are deployed to flatshare or aws; the model's name is in the package")
    deploy_packages(artifacts, {**options, "target": target})


def _deploy_checkpoints(artifacts: tuple[Path, ...], options: dict[str, Any]) -> None:
    endpoint, target, url, as_json = options["endpoint"], options["target"], options["url"], options["as_json"]
    if target is not None and len(artifacts) > 1:
        raise click.UsageError("--target names one model: give one artifact, or leave it out")
    sagemaker = aws_client("sagemaker", url)
    default_prefix = f"file://{Path.cwd() / 'models' / endpoint}/"
    place = deployment.endpoint_prefix(sagemaker, endpoint) or options["prefix"] or default_prefix
    if place.startswith("file://"):
        Path(place.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
    is_new = deployment.ensure_endpoint(sagemaker, deployment.EndpointPlan(endpoint, place))
    if is_new and not as_json:
        console.print(f"endpoint [bold]{endpoint}[/] is in service, its models lie at {escape(place)}")
    results = [
        _deploy_one(url, endpoint, artifact, place, target or artifact.resolve().name, check=not options["no_check"])
        for artifact in _shown(artifacts, as_json=as_json)
    ]
    if as_json:
        print_json({"endpoint": endpoint, "prefix": place, "created": is_new, "models": results})
    else:
        for result in results:
            console.print(f"  {escape(result['target'])}: {_outcome(result)}")
    if any("error" in result for result in results):
        raise SystemExit(1)


def _outcome(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"[red]{escape(result['error'])}[/]"
    return "not called" if result["first_answer_ms"] is None else f"answered in {result['first_answer_ms']:.0f} ms"


def _shown(artifacts: tuple[Path, ...], *, as_json: bool) -> Any:
    """The artifacts, with a progress bar if there is somebody to see it."""
    if as_json or len(artifacts) == 1 or not sys.stderr.isatty():
        return artifacts
    from rich.progress import track

    return track(artifacts, "deploying")


def _deploy_one(url: str, endpoint: str, artifact: Path, prefix: str, target: str, *, check: bool) -> dict[str, Any]:
    """Copy, unless this very artifact is there already, and call until the new weights answer. The others go on if this one fails."""
    is_there = deployment.is_in_place(artifact, prefix, target)
    call = Caller(url, endpoint, target)
    old_digest = call.digest_of_what_serves() if check and not is_there else None
    if not is_there:
        deployment.copy_artifact(artifact, prefix, target)
    if not check:
        return {"target": target, "first_answer_ms": None}
    try:
        return {"target": target, "first_answer_ms": round(call.until_other_than(old_digest), 1)}
    except ClientError as error:
        return {"target": target, "error": sentence_of(error)}


class Caller:
    """Calls one model as a check."""

    def __init__(self, url: str, endpoint: str, target: str) -> None:
        self._runtime = aws_client("sagemaker-runtime", url)
        self._address = {"EndpointName": endpoint, "TargetModel": target}

    def digest_of_what_serves(self) -> str | None:
        """None if nothing answers by this name."""
        try:
            return self._digest()
        except ClientError:
            return None

    def until_other_than(self, old_digest: str | None) -> float:
        """Milliseconds of the first call that the new weights answered. A resident model is replaced within seconds."""
        deadline_s = time.monotonic() + _REPLACED_WITHIN_S
        while True:
            started_s = time.perf_counter()
            digest = self._digest()
            if digest != old_digest or time.monotonic() > deadline_s:  # the same for ever: other files, the same weights
                return 1e3 * (time.perf_counter() - started_s)
            time.sleep(0.5)

    def _digest(self) -> str:
        try:
            return self._digest_in_answer_to(b'{"inputs": "hello"}')
        except ClientError as refusal:
            if refusal.response.get("OriginalStatusCode") != _REFUSES_THE_CALL:
                raise
            with suppress(ClientError):  # a ranker takes no text alone
                return self._digest_in_answer_to(b'{"query": "hello", "passages": ["hello"]}')
            raise

    def _digest_in_answer_to(self, body: bytes) -> str:
        answer = self._runtime.invoke_endpoint(**self._address, ContentType="application/json", Body=body)
        return str(answer["ResponseMetadata"]["HTTPHeaders"]["x-flatshare-model-digest"])


@click.command(short_help="Call a model.")
@click.argument("endpoint")
@click.argument("target")
@click.argument("texts", nargs=-1)
@click.option("--passage", "passages", multiple=True, help="For a ranker: the one text is a query, and this a passage. Again for more.")
@click.option("--body", type=click.File("rb"), help="Send this file as it is, instead of texts ('-' reads stdin).")
@click.option("--content-type", default="application/json", show_default=True)
@click.option("--stream", is_flag=True, help="Print what a generating model writes as it comes.")
@url_option
@json_option
def invoke(
    endpoint: str,
    target: str,
    texts: tuple[str, ...],
    passages: tuple[str, ...],
    body: Any,
    content_type: str,
    stream: bool,
    url: str,
    as_json: bool,
) -> None:
    """Send texts to a target model and print what comes back.

    \b
    Examples:
      flatshare invoke embeddings acme/query "where is my parcel?"
      flatshare invoke drafts acme/reply --stream "My order has not arrived yet."
      flatshare invoke embeddings acme/query --json "where is my parcel?" | jq .embeddings
      flatshare invoke rankers acme/rank "where is my parcel?" --passage "It is on its way." --passage "We are closed."
      echo hello | flatshare invoke embeddings acme/query --body - --content-type text/plain
    """
    if (body is None) == (not texts):
        raise click.UsageError("give either texts or --body")
    if passages and len(texts) != 1:
        raise click.UsageError("with --passage, give one text: the query")
    fields = {"query": texts[0], "passages": list(passages)} if passages else {"inputs": list(texts)}
    payload = orjson.dumps(fields) if body is None else body.read()
    if stream:
        _print_stream(aws_client("sagemaker-runtime", url), endpoint, target, payload, content_type, as_json=as_json)
        return
    started = time.perf_counter()
    answer = aws_client("sagemaker-runtime", url).invoke_endpoint(
        EndpointName=endpoint, TargetModel=target, ContentType=content_type, Body=payload
    )
    content = answer["Body"].read()
    took_ms = 1e3 * (time.perf_counter() - started)
    if as_json or not answer["ContentType"].startswith("application/json"):
        sys.stdout.buffer.write(content + b"\n")
        return
    _show(orjson.loads(content), answer["ResponseMetadata"]["HTTPHeaders"], took_ms)


def _show(answer: dict[str, Any], headers: dict[str, str], took_ms: float) -> None:
    from flatshare.cli.answers import lines_of

    for line in lines_of(answer):
        console.print(line, markup=False)
    cold = headers.get("x-flatshare-cold-start-ms")
    state = f"cold start, {float(cold):.1f} ms to load" if cold else "was in memory"
    console.print(f"[dim]{took_ms:.1f} ms; {state}; weights {headers.get('x-flatshare-model-digest', '?')[:12]}[/]")


def _print_stream(runtime: Any, endpoint: str, target: str, payload: bytes, content_type: str, *, as_json: bool) -> None:
    """The first text of the first prompt as it comes; with --json every part, a line each."""
    from flatshare.client.stream import invoke_with_response_stream, lines_of

    for line in lines_of(invoke_with_response_stream(runtime, endpoint, target, payload, content_type)):
        if as_json:
            sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
        elif line.get("prompt") == 0 and line.get("choice") == 0:
            sys.stdout.write(line["text"])
        elif "done" in line:
            sys.stdout.write("\n")
        sys.stdout.flush()
