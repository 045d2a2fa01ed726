"""Who stands at a door of the Open Inference Protocol, and what it may: the same question as on every other road."""

from collections.abc import Callable

from flatshare.core.access import Ask, Principal
from flatshare.core.errors import AccessDenied, Unauthenticated
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.security.entry import NOBODY, Entry
from flatshare.security.guard import Road
from flatshare.wire import asks
from flatshare.wire.http import Request

LOAD, UNLOAD, OVERVIEW = "flatshare:LoadModel", "flatshare:UnloadModel", "flatshare:GetStatus"
_ROAD = Road(is_aws=False)


class Visitor:
    """One request's caller."""

    def __init__(self, entry: Entry, request_id: str, request: Callable[[], Request], left_s: float | None = None) -> None:
        """`request` is HTTP's; one over gRPC is put into the same form, if the caller has to be asked at all.

        `left_s` is until the caller gives up, if its protocol says so.
        """
        self.request_id = request_id
        self.left_s = left_s
        self._entry = entry
        self._request = request
        self._principal: Principal | None = None

    def require(self, action: str, endpoint: EndpointName, target: TargetModel) -> None:
        """Raises an Unauthenticated or AccessDenied, which is written down."""
        if self._entry.guard.is_open:
            return  # every request comes by: what would be asked is not even put into words
        self._entry.admit(self._request(), _ROAD, asks.of_model(action, endpoint, target))

    def require_overview(self) -> None:
        """For what tells of all models."""
        self._entry.admit(self._request(), _ROAD, Ask(OVERVIEW))

    def require_everything(self, model_name: str) -> None:
        """For a name that leads nowhere the caller may go. Raises an Unauthenticated, or AccessDenied for all but the caller of `*`."""
        self._entry.admit(self._request(), _ROAD, Ask(asks.INVOKE, target_model=model_name[:256]))

    def may_invoke(self, endpoint: EndpointName, target: TargetModel) -> bool:
        """A question, not a try: a no is not written down. Raises an Unauthenticated."""
        if self._entry.guard.is_open:
            return True
        if self._principal is None:
            self._principal = self._identified()
        try:
            self._entry.guard.require(self._principal, asks.of_model(asks.INVOKE, endpoint, target))
        except AccessDenied:
            return False
        return True

    def _identified(self) -> Principal:
        request = self._request()
        try:
            return self._entry.guard.authenticate(request, _ROAD)
        except Unauthenticated as error:
            self._entry.turn_away(request, NOBODY, Ask(asks.INVOKE), error)
            raise
