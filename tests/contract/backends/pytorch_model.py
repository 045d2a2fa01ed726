"""A backend for real Triton, written in Python: TorchScript models by torch, so that such repositories load as they are."""

import json
import os

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        path = os.path.join(args["model_repository"], args["model_version"], "model.pt")
        self.model = torch.jit.load(path, map_location="cpu").eval()

    def execute(self, requests):
        responses = []
        for request in requests:
            given = [torch.from_numpy(pb_utils.get_input_tensor_by_name(request, name).as_numpy()) for name in self.inputs]
            with torch.inference_mode():
                found = self.model(*given)
            values = list(found) if isinstance(found, list | tuple) else [found]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(n, v.numpy()) for n, v in zip(self.outputs, values, strict=True)]))
        return responses
