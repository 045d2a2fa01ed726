"""A backend for real Triton, written in Python: ONNX models by onnxruntime, so that such repositories load as they are."""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.outputs = [tensor["name"] for tensor in config["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            found = self.session.run(self.outputs, given)
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor(n, np.asarray(v)) for n, v in zip(self.outputs, found, strict=True)])
            )
        return responses
