"""What families compute about positions is what torch computes, to the last bit where a bit decides."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import ModernBertConfig, ModernBertModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from flatshare.package.config import Config
from flatshare.package.graphs.deberta import distance_places
from flatshare.package.graphs.families import read_trunk
from flatshare.package.graphs.heads import SentenceHead, generated_graph
from flatshare.package.graphs.modernbert import rotary_frequencies
from flatshare.package.graphs.mpnet import distance_buckets
from tests.families import randomize


def test_mpnet_buckets() -> None:
    distances = torch.arange(-2000, 2001)
    np.testing.assert_array_equal(distance_buckets(2000), MPNetEncoder.relative_position_bucket(distances).numpy())


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (32, 64), (16, 128), (48, 512), (256, 1024), (8, 40)])
def test_deberta_buckets(buckets: int, farthest: int) -> None:
    positions = make_log_bucket_position(-torch.arange(-farthest + 1, farthest), buckets, farthest).long()
    expected = torch.clamp(positions + buckets, 0, 2 * buckets - 1).numpy()
    np.testing.assert_array_equal(distance_places(farthest - 1, buckets, farthest), expected)


def test_deberta_without_buckets_counts_each_distance() -> None:
    np.testing.assert_array_equal(distance_places(5, 0, 4), [7, 7, 7, 6, 5, 4, 3, 2, 1, 0, 0])


@pytest.mark.parametrize("theta", [10_000.0, 160_000.0])
@pytest.mark.parametrize("width", [32, 64])
def test_modernbert_frequencies(theta: float, width: int) -> None:
    expected = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float) / width))
    np.testing.assert_array_equal(rotary_frequencies(width, theta), expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16, 17, 100, 512])
def test_modernbert_sees_its_window_and_no_further(tokens: int) -> None:
    """At every place of a text relative to the blocks that local attention is computed in."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
    config = ModernBertConfig(**sizes, max_position_embeddings=512, local_attention=16, pad_token_id=0, global_attn_every_n_layers=3)
    model = ModernBertModel(config).eval()
    randomize(model, 1)
    graph = generated_graph(read_trunk(Config(config.to_dict())), SentenceHead(("cls", "lasttoken", "max"), ()), has_pairs=False)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ids = np.random.default_rng(tokens).integers(1, 50, (2, tokens))
    session = ort.InferenceSession(graph.model, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"input_ids": ids, **{w.name: weights[w.name] for w in graph.weights}})
    with torch.no_grad():
        last = model(torch.from_numpy(ids)).last_hidden_state
    expected = torch.cat([last[:, 0], last[:, -1], last.max(1).values], dim=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
