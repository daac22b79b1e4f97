"""Asks the service in this container at a path, such as /healthz: exit status 0 where it answers 200.

The standard library alone, so that a probe every few seconds costs next to nothing.
"""

import http.client
import os
import ssl
import sys

SECONDS = 4


def main(path: str) -> int:
    """Returns the exit status; says on stderr what a service that is not ready lacks."""
    connection = _connection(int(os.environ["LORAUTER_HTTP_PORT"]))
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    if answer.status != 200:
        print(f"{path}: {answer.status} {said}", file=sys.stderr)
        return 1
    return 0


def _connection(port: int) -> http.client.HTTPConnection:
    certificate = os.environ.get("LORAUTER_TLS_CERTIFICATE")
    if not certificate:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    # it asks itself: its certificate names other hosts, and is what it shows where callers must show one
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(certificate, os.environ.get("LORAUTER_TLS_KEY"))
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
