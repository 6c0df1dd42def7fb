"""What a process shows to be one of ours: its certificate, its key, and the authority it trusts."""

from msgspec import Struct


class Credentials(Struct, frozen=True):
    """Each is text in the PEM format; no file's name."""

    authority_pem: str
    certificate_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return "Credentials"  # a key in a message or a log is a key given away
