"""Event-stream frames, read by botocore's own parser."""

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from flatshare.wire import eventstream


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_payloads_arrive_as_they_were_sent_however_they_are_cut(payloads: list[bytes], step: int) -> None:
    stream = b"".join(map(eventstream.payload_part, payloads))
    buffer, found = EventStreamBuffer(), []
    for start in range(0, len(stream), step):
        buffer.add_data(stream[start : start + step])
        found += [event.to_response_dict() for event in buffer]
    assert [event["body"] for event in found] == payloads
    assert all(event["headers"][":event-type"] == "PayloadPart" and event["status_code"] == 200 for event in found)


def test_failures_are_exceptions_to_it() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(eventstream.model_stream_error("it broke", "BadInput") + eventstream.internal_stream_failure("gone"))
    first, second = (event.to_response_dict() for event in buffer)
    assert (first["status_code"], first["headers"][":exception-type"]) == (400, "ModelStreamError")
    assert first["body"] == b'{"Message":"it broke","ErrorCode":"BadInput"}'
    assert second["headers"][":exception-type"] == "InternalStreamFailure"
