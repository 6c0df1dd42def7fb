"""Who is shown and who is believed: TLS contexts that ask both sides for a certificate of the
user's own authority. Keys are never written to a disk."""

import os
import ssl

from smartsched.core.credentials import Credentials
from smartsched.errors import StateError


def dispatchers_context(credentials: Credentials) -> ssl.SSLContext:
    """Raises StateError."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
    context.num_tickets = 0  # nobody resumes a session here
    return context


def agents_context(credentials: Credentials) -> ssl.SSLContext:
    """OpenSSL refuses a dispatcher whose certificate is not for servers: an agent's is not.

    Raises StateError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, credentials)


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Hosts are known by many names and addresses; the authority is the user's own, and what it has
    # signed for a dispatcher is a dispatcher of his wherever it runs.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=credentials.authority_pem)
        _show(context, credentials.certificate_pem + "\n" + credentials.key_pem)
    except (ssl.SSLError, ValueError) as error:
        raise StateError(f"the credentials of this run cannot be used: {error}") from error
    return context


def _show(context: ssl.SSLContext, pem: str) -> None:
    """`ssl` reads keys from files only: give it one that is in memory."""
    fd = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
