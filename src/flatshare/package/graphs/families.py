"""The table of families that have a generated graph: `model_type` in config.json → what reads the rest of it."""

from collections.abc import Callable, Mapping

from flatshare.core.errors import UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.graphs.bert import read_bert, read_electra, read_roberta
from flatshare.package.graphs.blocks import Trunk
from flatshare.package.graphs.deberta import read_deberta
from flatshare.package.graphs.distilbert import read_distilbert
from flatshare.package.graphs.modernbert import read_modernbert
from flatshare.package.graphs.mpnet import read_mpnet

FAMILIES: Mapping[str, Callable[[Config], Trunk]] = {
    "bert": read_bert,
    "camembert": read_roberta,
    "deberta-v2": read_deberta,
    "distilbert": read_distilbert,
    "electra": read_electra,
    "modernbert": read_modernbert,
    "mpnet": read_mpnet,
    "roberta": read_roberta,
    "xlm-roberta": read_roberta,
}


def read_trunk(config: Config) -> Trunk:
    """Raises UnsupportedModel for what no generated graph covers, BadPackage for what contradicts itself."""
    family = config.get("model_type")
    reader = FAMILIES.get(family) if isinstance(family, str) else None
    if reader is None:
        raise UnsupportedModel(f"model_type is {repr(family)[:64]}: generated graphs exist for {', '.join(FAMILIES)}")
    return reader(config)
