from typing import Any

import pytest
from botocore.exceptions import ClientError

from flatshare.core.ids import EndpointName

from .calls import IMAGE, MODEL_DATA_URL, container, deploy, variant
from .conftest import Server, running_server

ARN = "arn:aws:sagemaker:us-east-1:000000000000:endpoint/e"
IN_PROGRESS = f'Cannot update in-progress endpoint "{ARN}".'


def wait(client: Any, what: str, name: str = "e") -> None:
    client.get_waiter(what).wait(EndpointName=name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 200})


def refusal(call: Any, **params: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**({"EndpointName": "e"} | params))
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    message: str = refused.value.response["Error"]["Message"]
    return message


def summary(client: Any, number: int = 0) -> dict[str, Any]:
    described: dict[str, Any] = client.describe_endpoint(EndpointName="e")["ProductionVariants"][number]
    return described


def test_an_endpoint_comes_into_service_and_goes(server: Server) -> None:
    client = server.client()
    deploy(client)
    wait(client, "endpoint_in_service")
    route = server.house.routes.endpoints[EndpointName("e")]
    assert route.is_multi_model
    assert [(v.name, v.weight, v.prefix, len(v.instances)) for v in route.variants] == [("AllTraffic", 1.0, MODEL_DATA_URL, 1)]
    client.delete_endpoint(EndpointName="e")
    wait(client, "endpoint_deleted")
    assert server.house.routes.endpoints == {}
    assert server.house.driver.instances == {}


@pytest.mark.parametrize("mode", ["legacy", "standard"])
def test_a_whole_deployment_needs_no_retry_in_either_of_boto3_s_modes(server: Server, mode: str) -> None:
    client = server.client({"mode": mode})
    attempts: list[int] = []
    client.meta.events.register("after-call", lambda parsed, **_: attempts.append(parsed["ResponseMetadata"]["RetryAttempts"]))
    deploy(client)
    wait(client, "endpoint_in_service")
    client.update_endpoint(EndpointName="e", EndpointConfigName="e-config")
    wait(client, "endpoint_in_service")
    client.delete_endpoint(EndpointName="e")
    wait(client, "endpoint_deleted")
    client.delete_endpoint_config(EndpointConfigName="e-config")
    client.delete_model(ModelName="m")
    assert len(attempts) > 8
    assert set(attempts) == {0}


def test_an_endpoint_in_service_is_described_in_aws_s_shape(sagemaker: Any) -> None:
    deploy(sagemaker, variants=[variant(count=2, RoutingConfig={"RoutingStrategy": "RANDOM"})])
    wait(sagemaker, "endpoint_in_service")
    described = sagemaker.describe_endpoint(EndpointName="e")
    created, modified = described.pop("CreationTime"), described.pop("LastModifiedTime")
    assert created <= modified
    described.pop("ResponseMetadata")
    assert described == {
        "EndpointName": "e",
        "EndpointArn": ARN,
        "EndpointConfigName": "e-config",
        "EndpointStatus": "InService",
        "ProductionVariants": [
            {
                "VariantName": "AllTraffic",
                "DeployedImages": [{"SpecifiedImage": IMAGE, "ResolvedImage": IMAGE, "ResolutionTime": created}],
                "CurrentWeight": 1.0,
                "DesiredWeight": 1.0,
                "CurrentInstanceCount": 2,
                "DesiredInstanceCount": 2,
                "RoutingConfig": {"RoutingStrategy": "RANDOM"},
            }
        ],
    }
    listed = sagemaker.list_endpoints(StatusEquals="InService", NameContains="e")["Endpoints"]
    assert listed == [
        {
            "EndpointName": "e",
            "EndpointArn": ARN,
            "CreationTime": created,
            "LastModifiedTime": modified,
            "EndpointStatus": "InService",
        }
    ]


def test_an_endpoint_on_its_way_in_shows_what_is_pending_and_refuses_edits(server: Server) -> None:
    client = server.client()
    server.call(server.house.driver.may_start.clear)
    deploy(client)
    described = client.describe_endpoint(EndpointName="e")
    assert described["EndpointStatus"] == "Creating"
    assert described["PendingDeploymentSummary"]["EndpointConfigName"] == "e-config"
    assert described["PendingDeploymentSummary"]["ProductionVariants"][0]["InstanceType"] == "ml.c5.xlarge"
    assert summary(client)["CurrentInstanceCount"] == 0
    assert summary(client)["VariantStatus"][0]["Status"] == "Creating"
    weights = [{"VariantName": "AllTraffic", "DesiredWeight": 2.0}]
    assert refusal(client.delete_endpoint) == IN_PROGRESS
    assert refusal(client.update_endpoint, EndpointConfigName="e-config") == IN_PROGRESS
    assert refusal(client.update_endpoint_weights_and_capacities, DesiredWeightsAndCapacities=weights) == IN_PROGRESS
    server.call(server.house.driver.may_start.set)
    wait(client, "endpoint_in_service")


def test_an_endpoint_that_cannot_start_has_failed_and_says_why(server: Server) -> None:
    client = server.client()
    server.house.driver.start_failure = "no room in the house"
    deploy(client)
    with pytest.raises(Exception, match="Failed"):
        wait(client, "endpoint_in_service")
    described = client.describe_endpoint(EndpointName="e")
    assert (described["EndpointStatus"], described["FailureReason"]) == ("Failed", "no room in the house")
    assert "PendingDeploymentSummary" not in described
    assert "delete it and create it again" in refusal(client.update_endpoint, EndpointConfigName="e-config")
    client.delete_endpoint(EndpointName="e")
    wait(client, "endpoint_deleted")


def test_unknown_endpoints_and_configurations_are_told_by_their_arns(sagemaker: Any) -> None:
    unknown = f'Could not find endpoint "{ARN}".'
    weights = [{"VariantName": "v", "DesiredWeight": 2.0}]
    assert refusal(sagemaker.describe_endpoint) == unknown
    assert refusal(sagemaker.delete_endpoint) == unknown
    assert refusal(sagemaker.update_endpoint, EndpointConfigName="c") == unknown
    assert refusal(sagemaker.update_endpoint_weights_and_capacities, DesiredWeightsAndCapacities=weights) == unknown
    config_arn = "arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/c"
    unknown_config = f'Could not find endpoint configuration "{config_arn}".'
    assert refusal(sagemaker.create_endpoint, EndpointConfigName="c") == unknown_config
    deploy(sagemaker)
    wait(sagemaker, "endpoint_in_service")
    assert refusal(sagemaker.update_endpoint, EndpointConfigName="c") == unknown_config


def test_a_second_endpoint_of_the_name_is_refused(sagemaker: Any) -> None:
    deploy(sagemaker)
    message = refusal(sagemaker.create_endpoint, EndpointConfigName="e-config")
    assert message == f'Cannot create already existing endpoint "{ARN}".'


def test_an_endpoint_whose_model_has_been_deleted_cannot_be_created(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="m", PrimaryContainer=container())
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()])
    sagemaker.delete_model(ModelName="m")
    assert 'Could not find model "' in refusal(sagemaker.create_endpoint, EndpointConfigName="c")


def test_deleting_a_model_and_a_configuration_in_use_is_accepted(sagemaker: Any) -> None:
    deploy(sagemaker)
    wait(sagemaker, "endpoint_in_service")
    sagemaker.delete_endpoint_config(EndpointConfigName="e-config")
    sagemaker.delete_model(ModelName="m")
    assert sagemaker.describe_endpoint(EndpointName="e")["EndpointConfigName"] == "e-config"


def test_weights_and_counts_change_without_new_instances(server: Server) -> None:
    client = server.client()
    deploy(client, variants=[variant("a"), variant("b")])
    wait(client, "endpoint_in_service")
    before = set(server.house.driver.instances)
    client.update_endpoint_weights_and_capacities(
        EndpointName="e",
        DesiredWeightsAndCapacities=[
            {"VariantName": "a", "DesiredWeight": 3.0},
            {"VariantName": "b", "DesiredInstanceCount": 2},
        ],
    )
    wait(client, "endpoint_in_service")
    assert (summary(client)["CurrentWeight"], summary(client, 1)["CurrentInstanceCount"]) == (3.0, 2)
    assert before < set(server.house.driver.instances)
    route = server.house.routes.endpoints[EndpointName("e")]
    assert [(v.weight, len(v.instances)) for v in route.variants] == [(3.0, 1), (1.0, 2)]


def test_while_capacity_changes_desired_and_current_differ(server: Server) -> None:
    client = server.client()
    deploy(client)
    wait(client, "endpoint_in_service")
    server.call(server.house.driver.may_start.clear)
    change = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2, "DesiredWeight": 5.0}]
    client.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=change)
    now = summary(client)
    assert (now["CurrentInstanceCount"], now["DesiredInstanceCount"]) == (1, 2)
    assert (now["CurrentWeight"], now["DesiredWeight"]) == (1.0, 5.0)
    assert now["VariantStatus"][0]["Status"] == "Updating"
    assert "PendingDeploymentSummary" not in client.describe_endpoint(EndpointName="e")
    server.call(server.house.driver.may_start.set)
    wait(client, "endpoint_in_service")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            [{"VariantName": "V", "DesiredWeight": 1.0}],
            'The variant name(s) "V" is/are not present within endpoint configuration "e-config".',
        ),
        (
            [{"VariantName": "AllTraffic", "DesiredWeight": 1.0}] * 2,
            'The variant name "AllTraffic" was non-unique within the request.',
        ),
        (
            [{"VariantName": "AllTraffic", "DesiredInstanceCount": 0}],
            'The variant "AllTraffic" needs a DesiredInstanceCount of at least 1: to stop it, delete the endpoint.',
        ),
        (
            [{"VariantName": "AllTraffic", "ServerlessUpdateConfig": {"MaxConcurrency": 1}}],
            'The variant "AllTraffic" is not serverless: change its DesiredInstanceCount or DesiredWeight.',
        ),
    ],
)
def test_wrong_changes_of_capacity_are_refused(sagemaker: Any, changes: list[dict[str, Any]], sentence: str) -> None:
    deploy(sagemaker)
    wait(sagemaker, "endpoint_in_service")
    assert refusal(sagemaker.update_endpoint_weights_and_capacities, DesiredWeightsAndCapacities=changes) == sentence


def test_an_update_resets_counts_and_weights_unless_they_are_retained(sagemaker: Any) -> None:
    deploy(sagemaker)
    wait(sagemaker, "endpoint_in_service")
    change = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 3, "DesiredWeight": 7.0}]
    numbers = []
    for retained in (
        {"RetainAllVariantProperties": True},
        {
            "RetainAllVariantProperties": True,
            "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DesiredInstanceCount"}],
        },
        {},
    ):
        sagemaker.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=change)
        wait(sagemaker, "endpoint_in_service")
        sagemaker.update_endpoint(EndpointName="e", EndpointConfigName="e-config", **retained)
        wait(sagemaker, "endpoint_in_service")
        now = summary(sagemaker)
        numbers.append((now["DesiredInstanceCount"], now["CurrentInstanceCount"], now["DesiredWeight"]))
    assert numbers == [(3, 3, 7.0), (1, 1, 7.0), (1, 1, 1.0)]


def test_an_update_that_fails_leaves_the_old_configuration_serving(server: Server) -> None:
    client = server.client()
    deploy(client)
    wait(client, "endpoint_in_service")
    before = server.house.routes
    client.create_endpoint_config(EndpointConfigName="next", ProductionVariants=[variant(count=2)])
    server.house.driver.start_failure = "no"
    client.update_endpoint(EndpointName="e", EndpointConfigName="next")
    wait(client, "endpoint_in_service")
    described = client.describe_endpoint(EndpointName="e")
    assert (described["EndpointConfigName"], described["FailureReason"]) == ("e-config", "no")
    assert server.house.routes == before


STEP = {"Type": "CAPACITY_PERCENT", "Value": 20}
ALARMS = {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}]}}


def blue_green(kind: str, **more: Any) -> dict[str, Any]:
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {"Type": kind, "WaitIntervalInSeconds": 0} | more}}


def rolling(percent: int) -> dict[str, Any]:
    size = {"Type": "CAPACITY_PERCENT", "Value": percent}
    return {"RollingUpdatePolicy": {"MaximumBatchSize": size, "WaitIntervalInSeconds": 0}}


SLOW = {
    "RollingUpdatePolicy": rolling(25)["RollingUpdatePolicy"] | {"WaitIntervalInSeconds": 150, "MaximumExecutionTimeoutInSeconds": 600},
}


@pytest.mark.parametrize(
    "config",
    [
        blue_green("ALL_AT_ONCE"),
        blue_green("CANARY", CanarySize=STEP),
        blue_green("LINEAR", LinearStepSize=STEP),
        rolling(50),
    ],
)
def test_a_deployment_configuration_is_kept_told_and_may_be_retained(sagemaker: Any, config: dict[str, Any]) -> None:
    deploy(sagemaker)
    wait(sagemaker, "endpoint_in_service")
    update = {"EndpointName": "e", "EndpointConfigName": "e-config"}
    for given, told in (({"DeploymentConfig": config}, config), ({"RetainDeploymentConfig": True}, config), ({}, None)):
        sagemaker.update_endpoint(**update, **given)
        wait(sagemaker, "endpoint_in_service")
        assert sagemaker.describe_endpoint(EndpointName="e").get("LastDeploymentConfig") == told


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (blue_green("CANARY"), "Type CANARY needs CanarySize"),
        (blue_green("LINEAR"), "Type LINEAR needs LinearStepSize"),
        (blue_green("CANARY", CanarySize=STEP | {"Value": 51}), "CanarySize of 51 CAPACITY_PERCENT must be between 1 and 50"),
        (blue_green("LINEAR", LinearStepSize=STEP | {"Value": 9}), "LinearStepSize of 9 CAPACITY_PERCENT must be between 10 and 50"),
        (rolling(4), "MaximumBatchSize of 4 CAPACITY_PERCENT must be between 5 and 50"),
        (blue_green("ALL_AT_ONCE") | rolling(50), "give one of them"),
        (blue_green("ALL_AT_ONCE") | ALARMS, "flatshare has no CloudWatch alarms yet"),
        (SLOW, "must be more than all waits together, which are 600 s"),
        ({"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}] * 11}}, "Member must have length less than or equal to 10"),
    ],
)
def test_a_deployment_configuration_that_breaks_a_rule_is_refused(sagemaker: Any, config: dict[str, Any], sentence: str) -> None:
    deploy(sagemaker)
    wait(sagemaker, "endpoint_in_service")
    assert sentence in refusal(sagemaker.update_endpoint, EndpointConfigName="e-config", DeploymentConfig=config)
    assert sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] == "InService"


def test_a_shadow_variant_is_described_apart_and_scaled_like_any_other(server: Server) -> None:
    client = server.client()
    client.create_model(ModelName="m", PrimaryContainer=container())
    shadow = variant("shadow", InitialVariantWeight=0.5)
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant()], ShadowProductionVariants=[shadow])
    server.call(server.house.driver.may_start.clear)
    client.create_endpoint(EndpointName="e", EndpointConfigName="c")
    pending = client.describe_endpoint(EndpointName="e")["PendingDeploymentSummary"]
    assert [v["VariantName"] for v in pending["ShadowProductionVariants"]] == ["shadow"]
    server.call(server.house.driver.may_start.set)
    wait(client, "endpoint_in_service")
    change = [{"VariantName": "shadow", "DesiredWeight": 0.25, "DesiredInstanceCount": 2}]
    client.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=change)
    wait(client, "endpoint_in_service")
    described = client.describe_endpoint(EndpointName="e")
    assert [v["VariantName"] for v in described["ProductionVariants"]] == ["AllTraffic"]
    [now] = described["ShadowProductionVariants"]
    assert (now["CurrentWeight"], now["CurrentInstanceCount"]) == (0.25, 2)
    client.update_endpoint(EndpointName="e", EndpointConfigName="c", RetainAllVariantProperties=True)
    wait(client, "endpoint_in_service")
    assert client.describe_endpoint(EndpointName="e")["ShadowProductionVariants"][0]["DesiredWeight"] == 0.25


def test_data_capture_that_is_off_is_told_and_retained_unless_excluded(sagemaker: Any) -> None:
    def capture(percent: int) -> dict[str, Any]:
        options = [{"CaptureMode": "Input"}]
        off = {"EnableCapture": False, "InitialSamplingPercentage": percent, "DestinationS3Uri": "s3://b/c", "CaptureOptions": options}
        return {"DataCaptureConfig": off}

    def told() -> int | None:
        summary: dict[str, Any] = sagemaker.describe_endpoint(EndpointName="e").get("DataCaptureConfig", {})
        assert summary.get("CaptureStatus") in {None, "Stopped"}
        return summary.get("CurrentSamplingPercentage")

    deploy(sagemaker)
    sagemaker.create_endpoint_config(EndpointConfigName="five", ProductionVariants=[variant()], **capture(5))
    sagemaker.create_endpoint_config(EndpointConfigName="six", ProductionVariants=[variant()], **capture(6))
    wait(sagemaker, "endpoint_in_service")
    assert told() is None
    excluded = [{"VariantPropertyType": "DataCaptureConfig"}]
    percents = []
    for config, more in (
        ("five", {}),
        ("six", {"RetainAllVariantProperties": True}),
        ("six", {"RetainAllVariantProperties": True, "ExcludeRetainedVariantProperties": excluded}),
    ):
        sagemaker.update_endpoint(EndpointName="e", EndpointConfigName=config, **more)
        wait(sagemaker, "endpoint_in_service")
        percents.append(told())
    assert percents == [5, 5, 6]


def test_while_a_failed_update_is_undone_the_endpoint_is_rolling_back_and_refuses_edits(server: Server) -> None:
    client = server.client()
    deploy(client)
    wait(client, "endpoint_in_service")
    client.create_endpoint_config(EndpointConfigName="next", ProductionVariants=[variant("a"), variant("b")])
    server.call(server.house.driver.may_stop.clear)
    server.call(server.house.driver.fail_from, 2, "no")  # the second of the new instances
    client.update_endpoint(EndpointName="e", EndpointConfigName="next")
    while (described := client.describe_endpoint(EndpointName="e"))["EndpointStatus"] == "Updating":
        pass
    assert (described["EndpointStatus"], described["FailureReason"]) == ("RollingBack", "no")
    assert described["ProductionVariants"][0]["VariantStatus"][0] | {"StartTime": 0} == {
        "Status": "Updating",
        "StatusMessage": "no",
        "StartTime": 0,
    }
    assert refusal(client.delete_endpoint) == IN_PROGRESS
    server.call(server.house.driver.may_stop.set)
    wait(client, "endpoint_in_service")
    described = client.describe_endpoint(EndpointName="e")
    assert (described["EndpointConfigName"], described["FailureReason"]) == ("e-config", "no")


def test_more_instances_than_the_fleet_may_have_are_refused_in_the_contract_s_words() -> None:
    with running_server(max_instances=3) as server:
        client = server.client()
        deploy(client, variants=[variant(count=2)])
        wait(client, "endpoint_in_service")
        with pytest.raises(ClientError) as refused:
            client.create_endpoint(EndpointName="f", EndpointConfigName="e-config")
        assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"
        assert refused.value.response["Error"]["Message"].startswith(
            "The account-level service limit 'ml.c5.xlarge for endpoint usage' is 3 Instances, "
            "with current utilization of 2 Instances and a request delta of 2 Instances. "
        )
        more = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 4}]
        with pytest.raises(client.exceptions.ResourceLimitExceeded):
            client.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=more)
        client.update_endpoint(EndpointName="e", EndpointConfigName="e-config")  # as many as before: there is room
        wait(client, "endpoint_in_service")
