"""How the demo shows what it found."""

import math
import sys

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flatshare.bench.demo import Demo, Report
from flatshare.bench.numbers import STORY
from flatshare.bench.server import ENDPOINT
from flatshare.core.sizes import format_size

_NODE_PRICE, _NODE_MB = 0.357, 16_384 * 0.8  # c7i.2xlarge on demand in us-east-1, dollars per hour; 80 % of its 16 GiB for pods
_HEADROOM = 1.25  # a pod's memory request over what it was measured to take


def introduction(models: int) -> Text:
    return Text.from_markup(
        f"[bold]{models} target models[/]: a query and a document encoder for each of {models // 2} tenants. "
        "All start from all-MiniLM-L6-v2; "
        "seeded noise on their upper three layers makes each answer differently (nobody fine-tuned them; embeddings and lower layers "
        "are frozen, as fine-tunes often leave them). The server gets memory for about half."
    )


def tables(report: Report) -> Group:
    return Group(_lengths(report), _facts(report), _cost(report))


def _lengths(report: Report) -> RenderableType:
    table = Table(title="latency through boto3, in seconds; beside it the story's, on one GPU (ml.g4dn.xlarge)")
    for heading in ("request", "cold start", "story", "cached", "story", "5 at once", "story"):
        table.add_column(heading, justify="right", style="dim" if heading == "story" else "")
    for row in report.rows:
        cold, cached, five = STORY[row.tokens]
        cells = (f"{row.cold:.3f}", f"{cold:g}", f"{row.cached:.3f}", f"{cached:g}", f"{row.five_at_once:.3f}", f"{five:g}")
        table.add_row(f"{row.tokens} tokens", *cells)
    return table


def _facts(report: Report) -> RenderableType:
    table = Table(title="what it took", show_header=False)
    usage = report.usage
    table.add_row("answers checked against plain numpy", f"{report.checked_answers}, largest difference {report.largest_difference:.0e}")
    table.add_row(
        "cold starts, 30 tokens", f"p50 {report.cold_p50_ms:.0f} ms, p99 {report.cold_p99_ms:.0f} ms over {report.cold_calls} cold calls"
    )
    table.add_row(
        "models in memory now", f"{report.resident_models} of {report.models}, in a budget of {format_size(report.memory_limit_bytes)}"
    )
    table.add_row(
        "private memory per resident model",
        f"{report.anonymous_mb_per_model:.2f} MB (Anonymous of all server processes, workspace included)",
    )
    table.add_row("the whole server", f"{report.server_pss_mb:.0f} MB proportional set size")
    table.add_row(
        "weights",
        f"{format_size(usage.sum_bytes)} as separate files, {format_size(usage.distinct_bytes)} distinct ({usage.distinct_share:.0%})",
    )
    return table


def _cost(report: Report) -> RenderableType:
    """Arithmetic, not a measurement: only the memory of one pod is measured."""
    pod_mb = report.pod_mb * _HEADROOM
    table = Table(title="the same models as one pod each (arithmetic on measured memory; c7i.2xlarge at $0.357 an hour)")
    for heading in ("", "memory", "machines", "$ / month"):
        table.add_column(heading, justify="right")
    own_mb = (report.usage.distinct_bytes - _shared_bytes(report)) / report.models / 1e6
    for count in (report.models, 1000):
        pods = count * pod_mb
        ours = 250 + _shared_bytes(report) / 1e6 + count * (own_mb + 1)
        table.add_row(f"{count} pods of {pod_mb:.0f} MB", f"{pods / 1e3:.1f} GB", *_machines(pods))
        table.add_row(f"flatshare, all {count} resident", f"{ours / 1e3:.1f} GB", *_machines(ours))
        table.add_row("flatshare, half resident", f"{ours / 2e3:.1f} GB", *_machines(ours / 2))
    return table


def _shared_bytes(report: Report) -> float:
    """What all models have in common: sum = n · (shared + own), distinct = shared + n · own."""
    usage, n = report.usage, report.models
    return (usage.sum_bytes - usage.distinct_bytes) / (n - 1) if n > 1 else 0.0


def _machines(megabytes: float) -> tuple[str, str]:
    count = max(1, math.ceil(megabytes / _NODE_MB))
    return str(count), f"{count * _NODE_PRICE * 730:,.0f}"


def what_to_try(demo: Demo) -> str:
    """Three ways to call the server that was left up, ready to paste."""
    return _TO_TRY.format(
        url=demo.server.url,
        target=demo.target,
        endpoint=ENDPOINT,
        bin=sys.executable.rsplit("/", 1)[0],
        pid=demo.server.process.pid,
        folder=demo.folder,
    )


_TO_TRY = """
The server is up at {url}, its files are in {folder}.

# AWS CLI (pip install awscli)
eval "$({bin}/flatshare env --url {url})"; export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION=us-east-1
echo 'where is my parcel?' > {folder}/question.txt
aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} --target-model {target} \\
    --content-type text/plain --body fileb://{folder}/question.txt /dev/stdout

# curl
curl -s {url}/endpoints/{endpoint}/invocations -H 'X-Amzn-SageMaker-Target-Model: {target}' \\
    -H 'Content-Type: text/plain' -d 'where is my parcel?'

# Python
{bin}/python - <<'END'
import boto3
runtime = boto3.client("sagemaker-runtime", endpoint_url="{url}", region_name="us-east-1",
                       aws_access_key_id="x", aws_secret_access_key="x")
answer = runtime.invoke_endpoint(EndpointName="{endpoint}", TargetModel="{target}",
                                 ContentType="text/plain", Body=b"where is my parcel?")
print(answer["Body"].read()[:200])
END

# watch it, stop it, clean up
{bin}/flatshare top --url {url}
kill {pid}; rm -r {folder}
"""
