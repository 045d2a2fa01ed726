from flatshare.bench.grpc_echo import METHOD, echo_server


def test_what_is_sent_comes_back_and_the_server_ends_with_its_block() -> None:
    import grpc  # noqa: PLC0415  # reads its environment when it is imported: serving/rpc.py sets that

    with echo_server() as address:
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary(METHOD)(b"here", timeout=30) == b"here"
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(METHOD)(b"gone", timeout=30)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
        else:
            raise AssertionError("the server outlived its block")
