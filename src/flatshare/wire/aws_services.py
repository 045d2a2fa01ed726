"""Ground floor: which service a request on the one port is meant for, in which protocol."""

from functools import cache

from flatshare.wire.aws_cbor import CborNotation
from flatshare.wire.aws_codec import Codec
from flatshare.wire.aws_json import load_codec, load_service, sagemaker_codec
from flatshare.wire.aws_query import QueryNotation
from flatshare.wire.aws_shapes import Dialect
from flatshare.wire.http import Request

_CLOUDWATCH = "GraniteServiceVersion20100801"
_AUTOSCALING = "AnyScaleFrontendService"


def codec_of(request: Request) -> Codec:
    """The codec that reads this request and writes its answer; SageMaker's for whatever is nobody's."""
    target = request.header("x-amz-target").partition(".")[0]
    if target == _AUTOSCALING:
        return autoscaling_codec()
    if target == _CLOUDWATCH:
        return cloudwatch_json_codec()
    if request.path.startswith("/service/"):
        return cloudwatch_cbor_codec()
    if request.header("content-type").startswith("application/x-www-form-urlencoded") and not target:
        return cloudwatch_query_codec()
    return sagemaker_codec()


@cache
def autoscaling_codec() -> Codec:
    """Application Auto Scaling: JSON 1.1."""
    return load_codec("application-autoscaling", Dialect())


@cache
def cloudwatch_json_codec() -> Codec:
    """CloudWatch as boto3 speaks it since botocore 1.42: JSON 1.0, with the old codes in a header."""
    return load_codec("cloudwatch", Dialect())


@cache
def cloudwatch_query_codec() -> Codec:
    """CloudWatch as older clients speak it: forms and XML."""
    return Codec(load_service("cloudwatch"), QueryNotation(), Dialect())


@cache
def cloudwatch_cbor_codec() -> Codec:
    """CloudWatch as other SDKs of today speak it."""
    return Codec(load_service("cloudwatch"), CborNotation(), Dialect())
