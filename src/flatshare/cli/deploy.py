"""`flatshare deploy` and `flatshare invoke`: put a model behind an endpoint, and call it."""

import sys
import time
from pathlib import Path
from typing import Any

import click
import orjson
from botocore.exceptions import ClientError
from rich.markup import escape

from flatshare.cli.options import console, json_option, print_json, url_option
from flatshare.client import deploy as deployment
from flatshare.client.aws import aws_client, sentence_of

_REPLACED_WITHIN_S = 25.0


@click.command(short_help="Put models behind an endpoint.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--endpoint", required=True, help="Endpoint to serve them; created if it is missing.")
@click.option("--target", help="Target model name, such as acme/query. Default: the artifact's own name. One artifact only.")
@click.option("--prefix", help="Where the endpoint's models lie, for a new endpoint. Default: file://./models/ENDPOINT/")
@click.option("--no-check", is_flag=True, help="Do not call each model once to see that it answers.")
@url_option
@json_option
def deploy(
    artifacts: tuple[Path, ...], endpoint: str, target: str | None, prefix: str | None, no_check: bool, url: str, as_json: bool
) -> None:
    """Copy checkpoints under an endpoint's prefix, create the endpoint if it is missing, and call each model once.

    ARTIFACTS are checkpoint directories (what save_pretrained() writes) or archives: .tar, .tar.gz, .tar.zst.

    \b
    Examples:
      flatshare deploy ./my-encoder --endpoint embeddings --target acme/query
      flatshare deploy tenants/* --endpoint embeddings
    """
    if target is not None and len(artifacts) > 1:
        raise click.UsageError("--target names one model: give one artifact, or leave it out")
    sagemaker = aws_client("sagemaker", url)
    default_prefix = f"file://{Path.cwd() / 'models' / endpoint}/"
    place = deployment.endpoint_prefix(sagemaker, endpoint) or prefix or default_prefix
    if place.startswith("file://"):
        Path(place.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
    is_new = deployment.ensure_endpoint(sagemaker, deployment.EndpointPlan(endpoint, place))
    if is_new and not as_json:
        console.print(f"endpoint [bold]{endpoint}[/] is in service, its models lie at {escape(place)}")
    results = [
        _deploy_one(url, endpoint, artifact, place, target or artifact.resolve().name, check=not no_check)
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
        answer = self._runtime.invoke_endpoint(**self._address, ContentType="application/json", Body=b'{"inputs": "hello"}')
        return str(answer["ResponseMetadata"]["HTTPHeaders"]["x-flatshare-model-digest"])


@click.command(short_help="Call a model.")
@click.argument("endpoint")
@click.argument("target")
@click.argument("texts", nargs=-1)
@click.option("--body", type=click.File("rb"), help="Send this file as it is, instead of texts ('-' reads stdin).")
@click.option("--content-type", default="application/json", show_default=True)
@click.option("--stream", is_flag=True, help="Print what a generating model writes as it comes.")
@url_option
@json_option
def invoke(endpoint: str, target: str, texts: tuple[str, ...], body: Any, content_type: str, stream: bool, url: str, as_json: bool) -> None:
    """Send texts to a target model and print what comes back.

    \b
    Examples:
      flatshare invoke embeddings acme/query "where is my parcel?"
      flatshare invoke drafts acme/reply --stream "My order has not arrived yet."
      flatshare invoke embeddings acme/query --json "where is my parcel?" | jq .embeddings
      echo hello | flatshare invoke embeddings acme/query --body - --content-type text/plain
    """
    if (body is None) == (not texts):
        raise click.UsageError("give either texts or --body")
    payload = orjson.dumps({"inputs": list(texts)}) if body is None else body.read()
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
    from flatshare.wire.texts import as_vectors

    for text in answer.get("texts", ()):
        console.print(text, markup=False, highlight=False)
    for row in () if "texts" in answer else as_vectors(answer):
        numbers = ", ".join(f"{value:+.4f}" for value in row[:6])
        console.print(f"[{numbers}, … {len(row)} numbers]", markup=False)
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
