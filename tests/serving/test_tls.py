"""TLS at the door: real certificates, real handshakes."""

import asyncio
import os
import signal
import ssl
from pathlib import Path

import pytest
import trustme

from flatshare.core.errors import BadInput
from flatshare.serving.connection import Bounds
from flatshare.serving.server import Most
from flatshare.serving.tls import Certificate
from tests.serving.test_connection import Caller, House, caller, house

REQUEST = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


class Issuer:
    """Writes certificates of one authority into the same two files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.trust = ssl.create_default_context()
        self.authority.configure_trust(self.trust)
        self.issue("first")

    def issue(self, common_name: str) -> None:
        issued = self.authority.issue_cert("127.0.0.1", common_name=common_name)
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    async def dial(self, where: House) -> Caller:
        return Caller(*await asyncio.open_connection("127.0.0.1", where.port, ssl=self.trust))


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def name_of(c: Caller) -> str:
    certificate = c.writer.get_extra_info("ssl_object").getpeercert()
    return str(dict(pair for names in certificate["subject"] for pair in names)["commonName"])


async def test_requests_are_answered_over_tls_with_the_peers_address(issuer: Issuer) -> None:
    async with house(tls=Certificate(issuer.cert, issuer.key).context) as built:
        c = await issuer.dial(built)
        c.writer.write(REQUEST)
        assert (await c.answer())[0] == 200
        assert built.requests[0].peer == "127.0.0.1"
        c.writer.close()


async def test_who_does_not_trust_the_certificate_is_not_served(issuer: Issuer) -> None:
    async with house(tls=Certificate(issuer.cert, issuer.key).context) as built:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", built.port, ssl=ssl.create_default_context())
        assert built.requests == []


async def test_plain_http_is_not_answered_and_harms_nobody(issuer: Issuer) -> None:
    async with house(tls=Certificate(issuer.cert, issuer.key).context) as built:
        async with caller(built) as plain:
            plain.writer.write(REQUEST)
            assert not (await plain.end()).startswith(b"HTTP/1.1 200")
        c = await issuer.dial(built)
        c.writer.write(REQUEST)
        assert (await c.answer())[0] == 200
        c.writer.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_are_refused(issuer: Issuer) -> None:
    issuer.trust.minimum_version = ssl.TLSVersion.TLSv1
    issuer.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    issuer.trust.set_ciphers("DEFAULT:@SECLEVEL=0")
    async with house(tls=Certificate(issuer.cert, issuer.key).context) as built:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await issuer.dial(built)


async def test_a_hangup_shows_the_new_certificate_to_newcomers(issuer: Issuer) -> None:
    certificate = Certificate(issuer.cert, issuer.key)
    certificate.reload_on_hangup()
    try:
        async with house(tls=certificate.context) as built:
            early = await issuer.dial(built)
            assert name_of(early) == "first"
            issuer.issue("second")
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(10):
                while name_of(late := await issuer.dial(built)) != "second":
                    late.writer.close()
            early.writer.write(REQUEST)
            assert (await early.answer())[0] == 200
            for c in (early, late):
                c.writer.close()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_a_hangup_with_a_spoilt_file_keeps_what_was_shown(issuer: Issuer) -> None:
    certificate = Certificate(issuer.cert, issuer.key)
    issuer.cert.write_text("garbage")
    certificate._reload()
    async with house(tls=certificate.context) as built:
        c = await issuer.dial(built)
        assert name_of(c) == "first"
        c.writer.close()


def test_files_that_are_not_a_certificate_and_its_key_are_refused_with_their_names(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Issuer(tmp_path / "other")
    for cert, key in ((issuer.key, issuer.key), (issuer.cert, other.key), (tmp_path / "none", issuer.key)):
        with pytest.raises(BadInput, match=f"{cert} and {key} cannot be used"):
            Certificate(cert, key)


async def test_the_bounds_hold_over_tls_too(issuer: Issuer) -> None:
    bounds, most = Bounds(max_body_bytes=10), Most(connections=1)
    async with house(bounds, most=most, tls=Certificate(issuer.cert, issuer.key).context) as built:
        c = await issuer.dial(built)
        c.writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + bytes(100))
        assert (await c.answer())[0] == 413
        c.writer.close()
