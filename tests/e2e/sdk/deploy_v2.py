"""A deployment with the SageMaker Python SDK v2, as a team has written it: nothing here knows of flatshare. Runs where the SDK is.

Writes what it saw, as JSON. Arguments: the file to write, bucket, then two archives of models.
"""

import json
import sys
from pathlib import Path

from sagemaker.deserializers import JSONDeserializer
from sagemaker.multidatamodel import MultiDataModel
from sagemaker.predictor import Predictor
from sagemaker.serializers import JSONSerializer
from sagemaker.session import Session

TEXT = "where is my parcel"
told, bucket, first, second = sys.argv[1:]
session = Session(default_bucket=bucket)
many = MultiDataModel(
    name="sdk2",
    model_data_prefix=f"s3://{bucket}/sdk2/",
    image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/mme:latest",
    role="arn:aws:iam::000000000000:role/sagemaker",
    predictor_cls=Predictor,
    sagemaker_session=session,
)
many.add_model(first, "acme.tar.gz")
formats = {"serializer": JSONSerializer(), "deserializer": JSONDeserializer()}
predictor = many.deploy(1, "ml.c5.xlarge", endpoint_name="sdk2", wait=False, **formats)
session.wait_for_endpoint("sdk2", poll=1)  # deploy() itself would look every 30 s
seen = {"first": predictor.predict({"inputs": TEXT}, target_model="acme.tar.gz")["embeddings"][0]}
many.add_model(second, "globex.tar.gz")  # to an endpoint that serves already
seen["second"] = predictor.predict({"inputs": TEXT}, target_model="globex.tar.gz")["embeddings"][0]
seen["listed"] = sorted(many.list_models())
seen["before"] = session.sagemaker_client.describe_endpoint(EndpointName="sdk2")["EndpointConfigName"]
tags = [{"Key": "team", "Value": "search"}]
predictor.update_endpoint(initial_instance_count=2, instance_type="ml.c5.xlarge", model_name="sdk2", tags=tags, wait=False)
session.wait_for_endpoint("sdk2", poll=1)
described = session.sagemaker_client.describe_endpoint(EndpointName="sdk2")
seen["after"] = described["EndpointConfigName"]
seen["instances"] = described["ProductionVariants"][0]["CurrentInstanceCount"]
seen["again"] = predictor.predict({"inputs": TEXT}, target_model="acme.tar.gz")["embeddings"][0]
predictor.delete_endpoint()  # and its configuration
session.delete_endpoint_config(seen["before"])
many.delete_model()
session.sagemaker_client.get_waiter("endpoint_deleted").wait(EndpointName="sdk2", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
left = [session.sagemaker_client.list_models(), session.sagemaker_client.list_endpoint_configs()]
seen["left"] = [item for page in left for key in ("Models", "EndpointConfigs") for item in page.get(key, [])]
Path(told).write_text(json.dumps(seen, default=str))
