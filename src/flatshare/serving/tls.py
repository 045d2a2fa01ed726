"""The certificate that a server shows, read again when it is told to."""

import asyncio
import signal
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.core.errors import BadInput
from flatshare.telemetry.log import get_logger

log = get_logger("http")


@dataclass(frozen=True, slots=True)
class PemPair:
    """For libraries that make no use of an SSLContext."""

    key: bytes = field(repr=False)
    chain: bytes


class Certificate:
    """A certificate chain and its key, as PEM files."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises BadInput for files that are not a certificate and its key."""
        self._cert = cert
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load()

    def reload_on_hangup(self) -> None:
        """On SIGHUP, show the files as they are then: connections that are open keep what they were shown."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key, password=_no_password)  # a trial
            self._load()
            log.info("certificate_read", path=str(self._cert))
        except (OSError, BadInput) as error:  # ssl.SSLError is an OSError
            log.error("certificate_unreadable", path=str(self._cert), reason=str(error), consequence="the one read before stays")

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self._cert, self._key, password=_no_password)
            self.pem = PemPair(self._key.read_bytes(), self._cert.read_bytes())
        except OSError as error:
            raise BadInput(
                f"{self._cert} and {self._key} cannot be used as a certificate and its key: {error.strerror or error}"
            ) from error


def _no_password() -> str:
    raise BadInput("the key of the certificate is encrypted: give one that is not, readable by the server's user alone")
