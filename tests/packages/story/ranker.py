"""Calls the embedding ensemble from Python (BLS): scores of passages against a query."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            vectors = []
            for name in ("query", "passages"):
                texts = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1, 1)
                call = pb_utils.InferenceRequest(
                    model_name="encode_query", requested_output_names=["embedding"], inputs=[pb_utils.Tensor("text", texts)]
                )
                answer = call.exec()
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
                vectors.append(pb_utils.get_output_tensor_by_name(answer, "embedding").as_numpy())
            scores = (vectors[1] @ vectors[0][0]).astype(np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("score", scores)]))
        return responses
