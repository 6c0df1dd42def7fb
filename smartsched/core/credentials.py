"""What a process shows to be one of ours: its certificate, its key, and the authority it trusts."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Credentials:
    """Each is text in the PEM format; no file's name."""

    authority_pem: str
    certificate_pem: str
    key_pem: str = field(repr=False)  # a key in a message or a log is a key given away
