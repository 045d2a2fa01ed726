"""Identifiers. Each is a string that may not be confused with another."""

from hashlib import sha256
from typing import NewType

EndpointName = NewType("EndpointName", str)
VariantName = NewType("VariantName", str)
InstanceId = NewType("InstanceId", str)
TargetModel = NewType("TargetModel", str)
"""What a caller names: the key of an artifact, relative to the endpoint's prefix."""
Tenant = NewType("Tenant", str)
"""Whose model it is: the first part of the target model's path, unless the settings say otherwise."""
NOBODY = Tenant("-")
"""The tenant of models whose path names none."""
ArtifactUri = NewType("ArtifactUri", str)
"""Prefix and target model put together: `s3://bucket/prefix/acme/query`."""
ModelKey = NewType("ModelKey", str)
"""How an instance addresses a model: 32 hexadecimal digits, as Triton's path pattern admits them."""
Digest = NewType("Digest", str)
"""sha256 of content, in hexadecimal."""
TensorDigest = NewType("TensorDigest", str)
ModelDigest = NewType("ModelDigest", str)


def model_key(uri: ArtifactUri) -> ModelKey:
    """The opaque id that the container contract asks for, the same on every instance."""
    return ModelKey(sha256(uri.encode()).hexdigest()[:32])
