"""The entry of a server: lets in who may come in, and writes down who was turned away and who changed something."""

from flatshare.core.access import Ask, Principal
from flatshare.core.clock import Clock
from flatshare.core.errors import AccessDenied, FlatshareError, Unauthenticated
from flatshare.security.audit import AuditLog, Deed
from flatshare.security.guard import ANYBODY, Guard, Road
from flatshare.telemetry.metrics import GatewayMetrics
from flatshare.wire.faults import Fault, runtime_fault
from flatshare.wire.http import Reply, Request

NOBODY = Principal("nobody", "", ())
"""Who is written down for a caller who could not say who it is."""


class Entry:
    """Any road calls `admit` before it does anything else, and `record` after it has changed something."""

    def __init__(self, guard: Guard, audit: AuditLog, metrics: GatewayMetrics, clock: Clock) -> None:
        self.guard = guard
        self._audit = audit
        self._metrics = metrics
        self._clock = clock

    def admit(self, request: Request, road: Road, ask: Ask) -> Principal:
        """The caller, who may do what it asks. Raises an Unauthenticated or AccessDenied, and has it written down."""
        principal = NOBODY
        try:
            principal = self.guard.authenticate(request, road)
            if principal is not ANYBODY:
                self.guard.require(principal, ask)
        except (Unauthenticated, AccessDenied) as error:
            self.turn_away(request, principal, ask, error)
            raise
        return principal

    def turn_away(self, request: Request, principal: Principal, ask: Ask, error: FlatshareError) -> None:
        """Write down a denial."""
        fault = runtime_fault(error)
        self._metrics.denied(fault.code)
        self._audit.denied(self._deed(request, principal, ask, _result(fault), str(error)))

    def record(self, request: Request, principal: Principal, ask: Ask, reply: Reply) -> None:
        """Write down a change, or that it failed."""
        code = next((value.decode() for name, value in reply.headers if name == b"x-amzn-errortype"), "")
        self._audit.changed(self._deed(request, principal, ask, f"{reply.status} {code}".strip(), ""))

    def close(self) -> None:
        self._audit.close()

    def _deed(self, request: Request, principal: Principal, ask: Ask, result: str, reason: str) -> Deed:
        return Deed(
            at_s=self._clock.wall_s(),
            who=principal.name,
            key_id=principal.key_id,
            action=ask.action,
            resources=tuple(f"{resource.kind}/{resource.name}"[:200] for resource in ask.resources[:20]),
            source=request.peer,
            result=result,
            request_id=request.id,
            target_model=ask.target_model,
            reason=reason,
        )


def _result(fault: Fault) -> str:
    return f"{fault.status} {fault.code}"
