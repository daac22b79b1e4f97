"""TLS of a service's own ports, gRPC and HTTP alike; certificates may be replaced while it runs."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import grpc

from lorauter.errors import InvalidArgument
from lorauter.tls import CERTIFICATE, Pem, Tls, WatchedTls, load_into

CLIENT_CA = "LORAUTER_TLS_CLIENT_CA"


class ServerTls:
    """What a service shows to callers, and whose certificates it demands of them, if any."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Takes paths of PEM files; raises InvalidArgument (TLS_FILES_UNUSABLE), which names the setting."""
        if not certificate and not key:
            problem = (
                f"{CERTIFICATE}: {CLIENT_CA} asks callers for certificates, and there is none to show them"
            )
            raise InvalidArgument("TLS_FILES_UNUSABLE", problem, field=CERTIFICATE)
        self._tls = Tls(client_ca, certificate, key, CLIENT_CA)
        self._watched = WatchedTls(self._tls)
        self._demands_certificates = bool(client_ca)
        self._contexts: tuple[Pem, ssl.SSLContext] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what gRPC listens with; every handshake is made with the files of its moment."""
        first = self._watched.current()
        return grpc.dynamic_ssl_server_credentials(
            _configuration(first),
            self._fetcher(first),  # type: ignore[arg-type]  # None, which the stubs do not know, is no change
            self._demands_certificates,
        )

    def _fetcher(self, first: Pem) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        used = first

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            current = self._watched.current()
            if current is used:
                return None
            used = current
            return _configuration(current)

        return fetch

    def context(self) -> ssl.SSLContext:
        """Returns what HTTP listens with; every handshake is made with the files of its moment."""
        listening = self._current_context()

        def choose(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self._current_context()

        listening.sni_callback = choose  # called for every handshake, with a server name or without
        return listening

    def _current_context(self) -> ssl.SSLContext:
        current, known = self._watched.current(), self._contexts
        if known is not None and known[0] is current:
            return known[1]
        try:
            self._contexts = known = (current, self._new_context())
        except InvalidArgument:
            if known is None:
                raise
            # replaced again since it was looked at: the next handshake looks anew
        return known[1]

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED if self._demands_certificates else ssl.CERT_NONE
        load_into(context, self._tls)
        return context


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    assert pem.key is not None
    assert pem.certificate is not None
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.ca)
