"""The promise itself: an unmodified boto3 deployment of a multi-model endpoint, and right answers from every model."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import orjson
import pytest
from botocore.config import Config

from flatshare.bench.server import RunningServer
from flatshare.client.aws import environment
from flatshare.wire.texts import as_vectors
from tests.e2e.checkpoints import POSITIONS, TEXT, expected, write_checkpoint
from tests.e2e.conftest import MINILM, TENANTS
from tests.e2e.servers import ROLE, Endpoint, clean_environment, deploy, failure_of, require_vector, serving

pytestmark = pytest.mark.slow
CROWD = 16

_DEPLOYMENT = f'''
import json, sys
import boto3

folder, targets = sys.argv[1], sys.argv[2:]
sagemaker, runtime = boto3.client("sagemaker"), boto3.client("sagemaker-runtime")
container = {{"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/mme:latest", "Mode": "MultiModel", "ModelDataUrl": "file://" + folder}}
sagemaker.create_model(ModelName="many", PrimaryContainer=container, ExecutionRoleArn="{ROLE}")
variant = {{"VariantName": "AllTraffic", "ModelName": "many", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}}
sagemaker.create_endpoint_config(EndpointConfigName="many-config", ProductionVariants=[variant])
sagemaker.create_endpoint(EndpointName="many", EndpointConfigName="many-config")
sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="many", WaiterConfig={{"Delay": 1}})
assert sagemaker.describe_endpoint(EndpointName="many")["EndpointStatus"] == "InService"
answers = {{}}
for target in targets:
    reply = runtime.invoke_endpoint(
        EndpointName="many", TargetModel=target, ContentType="application/json", Body=json.dumps({{"inputs": "{TEXT}"}})
    )
    answers[target] = json.load(reply["Body"])["embeddings"][0]
sagemaker.delete_endpoint(EndpointName="many")
sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="many", WaiterConfig={{"Delay": 1}})
sagemaker.delete_endpoint_config(EndpointConfigName="many-config")
sagemaker.delete_model(ModelName="many")
assert not sagemaker.list_models(NameContains="many")["Models"]
json.dump(answers, sys.stdout)
'''


def test_an_unmodified_deployment_script_gets_the_right_vector_from_every_model(server: RunningServer, checkpoints: Path) -> None:
    targets = (*TENANTS, MINILM)
    answers = _run_script(server, str(checkpoints), *targets)
    assert set(answers) == set(targets)
    for target, vector in answers.items():
        require_vector(np.asarray(vector, np.float32), checkpoints / target)


def _run_script(server: RunningServer, *arguments: str) -> dict[str, Any]:
    aws = environment(server.url) | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-c", _DEPLOYMENT, *arguments]
    done = subprocess.run(command, env=clean_environment(aws), stdout=subprocess.PIPE, check=True, timeout=60)
    answers: dict[str, Any] = orjson.loads(done.stdout)
    return answers


def test_the_models_of_two_tenants_answer_differently(checkpoints: Path) -> None:
    """Or no test here could tell a mix-up."""
    vectors = np.stack([expected(checkpoints / target) for target in TENANTS])
    alike = vectors @ vectors.T - np.eye(len(vectors))
    assert alike.max() < 0.9


def test_v2_json_is_answered_in_v2_with_one_row_for_each_text(endpoint: Endpoint) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": [TEXT, "hello"]}
    answer = endpoint.send(TargetModel=TENANTS[0], ContentType="application/json", Body=orjson.dumps({"id": "call-7", "inputs": [tensor]}))
    assert answer.body["id"] == "call-7"
    assert answer.body["model_name"] == TENANTS[0]
    assert answer.body["parameters"]["model_digest"] == answer.digest
    [output] = answer.body["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP32", [2, 32])
    for row, text in zip(answer.vectors, (TEXT, "hello"), strict=True):
        require_vector(row, endpoint.folder / TENANTS[0], text)


@pytest.mark.parametrize("texts", ["hello", ["hello"], ["hello", TEXT, "i want my money back", "hello"]])
def test_inputs_may_be_a_text_or_a_list_of_texts(endpoint: Endpoint, texts: str | list[str]) -> None:
    answer = endpoint.invoke(TENANTS[1], texts)
    for row, text in zip(answer.vectors, [texts] if isinstance(texts, str) else texts, strict=True):
        require_vector(row, endpoint.folder / TENANTS[1], text)


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain; charset=utf-8", "TEXT/PLAIN"])
def test_the_body_may_be_the_text_itself(endpoint: Endpoint, content_type: str) -> None:
    answer = endpoint.send(TargetModel=TENANTS[2], ContentType=content_type, Body=TEXT.encode())
    require_vector(answer.vectors[0], endpoint.folder / TENANTS[2])


def test_the_answer_names_the_weights_that_gave_it(endpoint: Endpoint) -> None:
    answers = {target: endpoint.invoke(target) for target in TENANTS}
    for target, answer in answers.items():
        assert answer.body["model"] == {"name": target, "digest": answer.digest}
    assert len({answer.digest for answer in answers.values()}) == len(TENANTS)


def test_a_text_beyond_the_position_limit_is_cut_and_the_answer_says_so(endpoint: Endpoint) -> None:
    answer = endpoint.invoke(TENANTS[0], ["hello", "hello " * POSITIONS, "hello " * (POSITIONS - 2)])
    assert answer.body["truncated"] == [1]  # the indexes of the texts that were cut
    assert answer.body["tokens"] == [3, POSITIONS, POSITIONS]
    np.testing.assert_allclose(answer.vectors[1], answer.vectors[2], atol=1e-5)


def test_the_real_minilm_answers_as_numpy_says(endpoint: Endpoint) -> None:
    endpoint.require_right(MINILM)
    endpoint.require_right(MINILM, "Größe, naïve, 東京, 🙂 and an unknownishword")


def test_only_the_first_answer_reports_a_cold_start(endpoint: Endpoint) -> None:
    write_checkpoint(endpoint.folder / "fresh/cold", 100)
    first, second = endpoint.require_right("fresh/cold"), endpoint.require_right("fresh/cold")
    assert first.is_cold
    assert float(first.headers["x-flatshare-cold-start-ms"]) > 0
    assert not second.is_cold


def test_callers_that_find_a_model_absent_share_one_load(endpoint: Endpoint) -> None:
    write_checkpoint(endpoint.folder / "fresh/wanted", 104)
    before = endpoint.decisions("load")
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(endpoint.require_right, ["fresh/wanted"] * 16))
    assert endpoint.decisions("load") - before == 1
    assert any(answer.is_cold for answer in answers)


def test_a_prefix_is_taken_as_it_is_written(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c#d"
    write_checkpoint(folder / "m", 105)
    deploy(server, "odd-prefix", folder).require_right("m")
    server.sagemaker.delete_endpoint(EndpointName="odd-prefix")


def test_a_new_checkpoint_under_the_prefix_is_served_without_any_call_before(endpoint: Endpoint) -> None:
    assert endpoint.failure(TargetModel="fresh/later").code == "ValidationError"
    write_checkpoint(endpoint.folder / "fresh/later", 101)
    endpoint.require_right("fresh/later")


def test_a_target_model_may_have_spaces_and_letters_of_any_alphabet(endpoint: Endpoint) -> None:
    write_checkpoint(endpoint.folder / "fresh/with space %41 & müller", 102)
    path = f"/endpoints/{endpoint.name}/invocations"
    status, _ = _plain(endpoint, path, "fresh/with space %41 & müller")
    assert status == 200
    write_checkpoint(endpoint.folder / "fresh/with space %41", 103)
    endpoint.require_right("fresh/with space %41")


def _plain(endpoint: Endpoint, path: str, target: str) -> tuple[int, bytes]:
    from flatshare.bench.server import PlainCaller

    with PlainCaller.to_port(endpoint.server.port) as caller:
        return caller.request("POST", path, b'{"inputs": "hello"}', f"X-Amzn-SageMaker-Target-Model: {target}\r\n")


def test_custom_attributes_and_inference_id_are_accepted(endpoint: Endpoint) -> None:
    body = orjson.dumps({"inputs": TEXT})
    answer = endpoint.send(
        TargetModel=TENANTS[0],
        ContentType="application/json",
        Accept="application/json",
        CustomAttributes="trace=1",
        InferenceId="x",
        Body=body,
    )
    require_vector(answer.vectors[0], endpoint.folder / TENANTS[0])


@pytest.mark.parametrize("mode", ["legacy", "standard"])
def test_each_retry_mode_of_boto3_gets_the_answer_and_the_error(endpoint: Endpoint, mode: str) -> None:
    runtime = boto3.client(
        "sagemaker-runtime",
        endpoint_url=endpoint.server.url,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"mode": mode, "max_attempts": 2}),  # type: ignore[arg-type]  # a literal in the stubs
    )
    reply = runtime.invoke_endpoint(
        EndpointName=endpoint.name, TargetModel=TENANTS[3], ContentType="application/json", Body=orjson.dumps({"inputs": TEXT})
    )
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    assert reply["ContentType"] == "application/json"
    require_vector(as_vectors(orjson.loads(reply["Body"].read()))[0], endpoint.folder / TENANTS[3])
    failure = failure_of(
        lambda: runtime.invoke_endpoint(
            EndpointName=endpoint.name, TargetModel="nobody", ContentType="application/json", Body=b'{"inputs": "hello"}'
        )
    )
    assert (failure.code, failure.status) == ("ValidationError", 400)
    assert failure.body["ResponseMetadata"]["RetryAttempts"] == 0
    runtime.close()


@pytest.fixture(scope="module")
def two_variants(server: RunningServer, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Variants `a` and `b` over folders in which the same target name means different weights; all traffic goes to `a`."""
    folder = tmp_path_factory.mktemp("variants")
    sagemaker, variants = server.sagemaker, []
    for seed, name in enumerate("ab"):
        write_checkpoint(folder / name / "model", 200 + seed)
        container = {"Image": "x", "Mode": "MultiModel", "ModelDataUrl": f"file://{folder}/{name}/"}
        sagemaker.create_model(ModelName=f"variant-{name}", PrimaryContainer=container, ExecutionRoleArn=ROLE)
        variants.append({
            "VariantName": name, "ModelName": f"variant-{name}", "InstanceType": "ml.c5.xlarge",
            "InitialInstanceCount": 1, "InitialVariantWeight": 1.0 - seed,
        })  # fmt: skip
    sagemaker.create_endpoint_config(EndpointConfigName="variants", ProductionVariants=variants)
    sagemaker.create_endpoint(EndpointName="variants", EndpointConfigName="variants")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="variants", WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
    yield Endpoint(server, "variants", folder)
    sagemaker.delete_endpoint(EndpointName="variants")


@pytest.mark.parametrize("variant", ["a", "b"])
def test_target_variant_overrides_the_weights(two_variants: Endpoint, variant: str) -> None:
    answer = two_variants.send(
        TargetModel="model", TargetVariant=variant, ContentType="application/json", Body=orjson.dumps({"inputs": TEXT})
    )
    require_vector(answer.vectors[0], two_variants.folder / variant / "model")
    assert answer.headers["x-amzn-invoked-production-variant"] == variant


def test_without_a_target_variant_the_weights_decide(two_variants: Endpoint) -> None:
    for _ in range(5):
        require_vector(two_variants.invoke("model").vectors[0], two_variants.folder / "a" / "model")


def test_an_unknown_target_variant_is_named_with_those_that_exist(two_variants: Endpoint) -> None:
    failure = two_variants.failure(TargetModel="model", TargetVariant="c")
    assert (failure.code, failure.status) == ("ValidationError", 400)
    assert "'c'" in failure.message
    assert "a, b" in failure.message


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Sixteen models of 8 MB each, of which about half fit; and one that does not fit at all."""
    folder = tmp_path_factory.mktemp("crowded")
    for seed in range(CROWD):
        write_checkpoint(folder / f"m{seed}", 300 + seed, rows=64_000)
    write_checkpoint(folder / "huge", 399, rows=1_000_000)
    with serving(tmp_path_factory.mktemp("little-memory"), memory="144MB") as server:
        yield deploy(server, "crowded", folder)


def test_models_that_do_not_fit_at_once_take_turns_and_all_answer_rightly(crowded: Endpoint) -> None:
    for _ in range(2):
        for seed in range(CROWD):
            crowded.require_right(f"m{seed}")
    [instance] = crowded.instances()
    assert instance["decision_counts"]["evict"] > 0
    assert instance["balance"]["models"] < CROWD
    assert instance["balance"]["mapped"] + instance["balance"]["anonymous"] <= instance["balance"]["memory_limit"]


def test_callers_at_the_same_time_never_get_the_vector_of_another_tenant(crowded: Endpoint) -> None:
    order = np.random.default_rng(7).integers(0, CROWD, 400)
    texts = (TEXT, "hello", "i want my money back")
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda call: crowded.require_right(f"m{call[1]}", texts[call[0] % 3]), enumerate(order)))
    assert all(instance["in_flight"] == 0 for instance in crowded.instances())


def test_a_model_that_would_not_fit_an_empty_instance_is_refused_with_its_size(crowded: Endpoint) -> None:
    failure = crowded.failure(TargetModel="huge")
    assert (failure.code, failure.status, failure.body["OriginalStatusCode"]) == ("ModelError", 424, 507)
    assert "122.1 MiB" in failure.body["OriginalMessage"]
    assert "raise --memory" in failure.body["OriginalMessage"]
    crowded.require_right("m0")


def test_one_enormous_text_does_not_use_up_the_instances_memory(crowded: Endpoint) -> None:
    crowded.invoke("m0", "hello " * 500_000)
    [instance] = crowded.instances()
    assert instance["balance"]["measured_anonymous"] < instance["balance"]["anonymous_limit"]
