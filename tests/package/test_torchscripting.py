"""Checkpoints become TorchScript that answers as they do, or nothing is written."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.package import torchscripting
from flatshare.package.torchscripting import write_torchscript
from tests.e2e.checkpoints import expected, write_checkpoint
from tests.families import save_model

pytestmark = pytest.mark.slow


def test_an_encoder_answers_as_numpy_says(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", 1)
    made = write_torchscript(checkpoint, tmp_path / "traced", StoreLimits())
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode("where is my parcel").ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what such packages hold
        model = torch.jit.load(str(made.model))
    padded = torch.tensor([[*ids, 0, 0], [*ids[:3], 0, 0, 0, 0, 0]])
    mask = (padded != 0).to(torch.int64)
    found = model(padded, mask).numpy()
    np.testing.assert_allclose(found[0], expected(checkpoint), atol=1e-5)
    assert made.width == found.shape[1] == 32
    assert (tmp_path / "traced/tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.RANKING])
def test_classifiers_and_rankers_give_logits(tmp_path: Path, task: Task) -> None:
    made = write_torchscript(save_model(tmp_path / "checkpoint", "bert", task), tmp_path / "traced", StoreLimits())
    assert made.difference <= torchscripting.CLOSE
    assert made.width == (1 if task is Task.RANKING else 3)


def test_what_cannot_be_traced_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", 1)
    (checkpoint / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UnsupportedModel, match="cannot be traced"):
        write_torchscript(checkpoint, tmp_path / "traced", StoreLimits())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_traced_model_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscripting, "_run", lambda *_: {"difference": 0.5, "width": 32})
    with pytest.raises(UnsupportedModel, match="differs from the model by"):
        write_torchscript(write_checkpoint(tmp_path / "checkpoint", 1), tmp_path / "traced", StoreLimits())
    assert not (tmp_path / "traced").exists()


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", 1)
    with pytest.raises(BadPackage, match="name a new folder"):
        write_torchscript(checkpoint, checkpoint, StoreLimits())


def test_a_head_that_is_not_converted_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", 1)
    (checkpoint / "1_Pooling/config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode_max_tokens": true}')
    with pytest.raises(UnsupportedModel, match="only encoders with mean or cls pooling"):
        write_torchscript(checkpoint, tmp_path / "traced", StoreLimits())
    (checkpoint / "1_Pooling/config.json").write_text('{"pooling_mode": "mean", "include_prompt": false}')
    with pytest.raises(UnsupportedModel, match="leaves its prompt out"):
        write_torchscript(checkpoint, tmp_path / "traced", StoreLimits())
    with pytest.raises(UnsupportedModel, match="models for token-classification are not converted"):
        write_torchscript(save_model(tmp_path / "tokens", "bert", Task.TOKEN_CLASSIFICATION), tmp_path / "traced", StoreLimits())
