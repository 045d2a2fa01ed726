"""Embedding, step 1: texts to token ids and a mask, by a tokenizer of its own. Written for Triton's Python backend."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils

from text_rules import clean


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "vocabulary.json")) as file:
            self.vocabulary = json.load(file)
        config = json.loads(args["model_config"])
        self.longest = int(config["parameters"]["max_tokens"]["string_value"])
        output = pb_utils.get_output_config_by_name(config, "input_ids")
        self.dtype = pb_utils.triton_string_to_numpy(output["data_type"])

    def execute(self, requests):
        responses = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
            rows = [self.tokens(text.decode("utf-8")) for text in texts]
            width = max(len(row) for row in rows)
            ids = np.zeros((len(rows), width), self.dtype)
            mask = np.zeros((len(rows), width), self.dtype)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = row
                mask[index, : len(row)] = 1
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)]))
        return responses

    def tokens(self, text):
        unknown = self.vocabulary["[UNK]"]
        words = [self.vocabulary.get(word, unknown) for word in clean(text).split()]
        return [self.vocabulary["[CLS]"], *words][: self.longest]
