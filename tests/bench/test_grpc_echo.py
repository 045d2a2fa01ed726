import pytest

from flatshare.bench.grpc_echo import METHOD, echo_server


def test_what_is_sent_comes_back_and_the_server_ends_with_its_block() -> None:
    import grpc  # reads its environment when it is imported

    with echo_server() as address, grpc.insecure_channel(address) as channel:
        assert channel.unary_unary(METHOD)(b"here", timeout=30) == b"here"
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as gone:
        channel.unary_unary(METHOD)(b"gone", timeout=30)
    assert gone.value.code() == grpc.StatusCode.UNAVAILABLE
