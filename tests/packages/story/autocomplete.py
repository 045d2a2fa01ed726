"""Autocomplete: a sequence-to-sequence model with its own loop and cache, pre- and post-processing. For Triton's Python backend."""

import json
import os

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from safetensors.torch import load_file

END = 1


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "words.json")) as file:
            self.words = json.load(file)
        self.ids = {word: index for index, word in enumerate(self.words)}
        self.weights = load_file(os.path.join(folder, "model.safetensors"))
        self.logger = pb_utils.Logger
        self.logger.log_info(f"{args['model_name']} has {len(self.words)} words")

    def execute(self, requests):
        responses = []
        for request in requests:
            try:
                responses.append(self.complete(request))
            except KeyError as error:
                message = f"the word {error} is not in the vocabulary"
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)))
        return responses

    def complete(self, request):
        prompts = pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy().reshape(-1)
        longest = pb_utils.get_input_tensor_by_name(request, "max_tokens")
        steps = 8 if longest is None else int(longest.as_numpy().reshape(-1)[0])
        texts, scores = [], []
        for prompt in prompts:
            words, score = self.generate([self.ids[word] for word in prompt.decode("utf-8").split()], steps)
            texts.append(" ".join(self.words[word] for word in words).encode("utf-8"))
            scores.append(score)
        completion = np.array(texts, dtype=np.object_).reshape(-1, 1)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("completion", completion), pb_utils.Tensor("score", np.array(scores, np.float32).reshape(-1, 1))]
        )

    def generate(self, prompt, steps):
        """Greedy; the encoded prompt and the keys and values of earlier steps are kept between steps."""
        w = self.weights
        encoded = torch.tanh(w["embed"][torch.tensor(prompt)] @ w["encode"])
        memory_keys, memory_values = encoded @ w["cross_key"], encoded @ w["cross_value"]
        keys, values, found, total = [], [], [], 0.0
        word = 0
        for _ in range(steps):
            state = w["embed"][word]
            keys.append(state @ w["key"])
            values.append(state @ w["value"])
            state = state + self.attend(state @ w["query"], torch.stack(keys), torch.stack(values))
            state = state + self.attend(state @ w["cross_query"], memory_keys, memory_values)
            chances = torch.log_softmax(torch.tanh(state @ w["out"]) @ w["embed"].T, -1)
            word = int(chances.argmax())
            total += float(chances[word])
            if word == END:
                break
            found.append(word)
        return found, total

    def attend(self, query, keys, values):
        return torch.softmax(keys @ query / query.shape[-1] ** 0.5, 0) @ values

    def finalize(self):
        self.weights = None
