"""Step 1 of 4 on a deployment's path: POST / with X-Amz-Target becomes one operation in one transaction."""

import asyncio
import uuid
from collections.abc import Callable, Mapping

from flatshare.control import configs, describe, endpoints, models, tags
from flatshare.control.desk import Arns, Desk, Residence
from flatshare.control.loops.reconcile import Reconciler
from flatshare.control.releases import PREFIX, Releases
from flatshare.control.residence import Below, with_residence
from flatshare.control.state import State
from flatshare.core.clock import Clock
from flatshare.core.errors import BadInput
from flatshare.core.settings import ControlSettings, FleetSettings
from flatshare.telemetry.log import get_logger
from flatshare.wire.aws_json import sagemaker_codec
from flatshare.wire.aws_services import codec_of
from flatshare.wire.aws_shapes import Params
from flatshare.wire.faults import control_fault
from flatshare.wire.http import TOO_LARGE, Reply, Request

log = get_logger("control")

Operation = Callable[[Desk, Params], Params]

OPERATIONS: Mapping[str, Operation] = {
    "CreateModel": models.create_model,
    "DescribeModel": models.describe_model,
    "ListModels": models.list_models,
    "DeleteModel": models.delete_model,
    "CreateEndpointConfig": configs.create_endpoint_config,
    "DescribeEndpointConfig": configs.describe_endpoint_config,
    "ListEndpointConfigs": configs.list_endpoint_configs,
    "DeleteEndpointConfig": configs.delete_endpoint_config,
    "CreateEndpoint": endpoints.create_endpoint,
    "DescribeEndpoint": describe.describe_endpoint,
    "ListEndpoints": describe.list_endpoints,
    "DeleteEndpoint": endpoints.delete_endpoint,
    "UpdateEndpoint": endpoints.update_endpoint,
    "UpdateEndpointWeightsAndCapacities": endpoints.update_endpoint_weights_and_capacities,
    "AddTags": tags.add_tags,
    "ListTags": tags.list_tags,
    "DeleteTags": tags.delete_tags,
}


class ControlApp:
    """The handler of the control door."""

    def __init__(
        self,
        state: State,
        reconciler: Reconciler,
        clock: Clock,
        settings: ControlSettings,
        fleet: FleetSettings,
        releases: Releases,
        below: Below | None,
    ) -> None:
        """`below` says which models lie below a prefix; it is asked in all-resident mode only."""
        self._releases = releases
        self._state = state
        self._reconciler = reconciler
        self._clock = clock
        self._arns = Arns(settings.region, settings.account)
        self._max_instances = fleet.max_instances
        self._memory_bytes = fleet.memory_bytes
        self._below = below if settings.is_all_resident else None

    async def handle(self, request: Request) -> Reply:
        """Never raises: every error is a reply."""
        request_id = request.id or str(uuid.uuid4())
        try:
            return await self._answer(request, request_id)
        except Exception as error:
            fault = control_fault(error)
            message = str(error)
            if fault.status >= 500:
                log.exception("control_call_failed", request_id=request_id)
            if fault.status == 500:
                message = f"An internal error occurred: look for request {request_id} in the log of flatshare."
            codec = await asyncio.to_thread(codec_of, request)  # the first call meant for another service reads that service's model
            return codec.error(fault.status, fault.code, message, request_id=request_id)

    async def _answer(self, request: Request, request_id: str) -> Reply:
        if TOO_LARGE in request.headers:
            raise BadInput("the body of a control call is too large: send a smaller one")
        if request.header("x-amz-target").startswith(PREFIX):
            return await self._releases.answer(request)
        codec = sagemaker_codec()
        call = codec.call(request, served=OPERATIONS)
        operation = OPERATIONS[call.operation]
        now_s = round(self._clock.wall_s(), 3)  # as clients see it, so that a filter by what they saw finds it
        ready_counts = self._reconciler.ready_counts()
        only_looks = call.operation.startswith(("Describe", "List"))
        transaction = self._state.look if only_looks else self._state.change

        async def carried_out(residence: Residence | None) -> Params:
            return await transaction(
                lambda rows: operation(Desk(rows, self._arns, now_s, self._max_instances, ready_counts, residence), call.params)
            )

        below = self._below
        output = await (carried_out(None) if below is None else with_residence(carried_out, below, self._memory_bytes))
        if not only_looks:
            self._reconciler.wake()
        return codec.reply(call.operation, output, request_id=request_id)
