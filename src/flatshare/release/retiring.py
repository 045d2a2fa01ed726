"""The end of a version: its artifacts go, once nobody is sent to it any more."""

from flatshare.client.deploy import endpoint_prefix
from flatshare.core.release import ModelReleases
from flatshare.release import upload
from flatshare.release.site import Site, with_slash
from flatshare.store.shelf import Shelf


def remove_artifacts(site: Site, releases: ModelReleases, number: int) -> None:
    """Done again, it removes what an interrupted try has left. A model in memory goes on answering calls that are under way."""
    prefix = endpoint_prefix(site.sagemaker, releases.endpoint) or f"{site.base}{releases.endpoint}"
    upload.remove(Shelf(with_slash(prefix)), releases.version(number))
