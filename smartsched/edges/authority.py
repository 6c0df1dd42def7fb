"""The user's own certificate authority: made at first use, and what it signs is what we trust.

The only importer of `cryptography`. Key and certificate are one file, which appears whole or not at
all. Only the user may read it; nothing is opened through a link, and what belongs to somebody else
or may be written by others is refused: whoever holds this key may run commands as the user.
"""

import datetime
import errno
import fcntl
import importlib.util
import ipaddress
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from smartsched.core.credentials import Credentials
from smartsched.core.extras import cluster_is_missing
from smartsched.core.model import Timestamp
from smartsched.errors import StateError

if TYPE_CHECKING:
    from cryptography import x509  # takes long to import, and not everybody has it
    from cryptography.hazmat.primitives.asymmetric import ec

_FILE = "authority.pem"
_LOCK = "lock"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO would wait for ever
_LARGEST_BYTES = 1 << 16
_LOCK_PATIENCE_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.01
_DAY = datetime.timedelta(days=1)
_CLOCK_SKEW = _DAY  # how far the clocks of two hosts may be apart
_CERTIFICATE_LIFE = 365 * _DAY
_AUTHORITY_LIFE = 20 * 365 * _DAY
_LONGEST_COMMON_NAME = 64  # RFC 5280: ub-common-name
_DNS_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)
_ADVICE = "name another place with --state DIR"
_ANEW = "once none of your runs is alive, remove it: a new one is made then"


class _Loaded(NamedTuple):
    pem: str  # of the certificate alone
    certificate: "x509.Certificate"
    key: "ec.EllipticCurvePrivateKey"


class Authority:
    """Signs for as long as this object lives with what it found, or made, first."""

    def __init__(self, folder: Path, *, now: Callable[[], Timestamp] = time.time) -> None:
        """`folder`: below the state folder, which need not be there yet. Touches nothing.
        `now`: the wall clock, in seconds since 1970."""
        self._folder = folder.absolute()
        self._now = now
        self._loaded: _Loaded | None = None

    @property
    def path(self) -> Path:
        return self._folder / _FILE

    def issue(self, role: Literal["dispatcher", "agent"], name: str) -> Credentials:
        """A new key, and a certificate that is good for that role alone. `name`: whose, for people.

        Raises UsageError without the packages that it takes, and StateError if the authority
        cannot be made, is damaged or has expired.
        """
        if importlib.util.find_spec("cryptography") is None:
            raise cluster_is_missing()
        now = datetime.datetime.fromtimestamp(self._now(), datetime.UTC).replace(microsecond=0)
        if self._loaded is None:
            self._loaded = self._load_or_make(now)
        authority = self._loaded
        self._check_dates(authority.certificate, now)
        key = _new_key()
        certificate = _sign(authority, key, role, name, now)
        return Credentials(authority.pem, _pem(certificate), _key_pem(key))

    def _load_or_make(self, now: datetime.datetime) -> _Loaded:
        try:
            with self._open_folder() as folder:
                data = _read(folder)
                if data is None:
                    with _locked(folder):
                        data = _read(folder)  # somebody else may have been quicker
                        if data is None:
                            data = _make(now)
                            _publish(folder, data)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return _parse(data)
        except ValueError as error:
            raise StateError(
                f"the certificate authority in {self.path} is damaged ({error}): {_ANEW}"
            ) from error

    def _check_dates(self, certificate: "x509.Certificate", now: datetime.datetime) -> None:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now >= ends:
            raise StateError(
                f"the certificate authority in {self.path} has expired on {ends:%Y-%m-%d}: {_ANEW}"
            )
        if now < begins:
            raise StateError(
                f"the certificate authority in {self.path} is valid only from {begins:%Y-%m-%d}:"
                " set the clock of this host"
            )

    @contextmanager
    def _open_folder(self) -> Iterator[int]:
        """Where the state folder is, is the user's choice, also by a link; below it there are
        none."""
        state = self._folder.parent
        state.mkdir(0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            state_fd = os.open(state, _FOLDER_FLAGS)
            stack.callback(os.close, state_fd)
            _check(state_fd, str(state))
            with suppress(FileExistsError):
                os.mkdir(self._folder.name, 0o700, dir_fd=state_fd)
            fd = _open_unlinked(self._folder, state_fd)
            stack.callback(os.close, fd)
            _check(fd, str(self._folder))
            if stat.S_IMODE(os.fstat(fd).st_mode) != 0o700:
                os.fchmod(fd, 0o700)
            yield fd

    def _unusable(self, error: OSError) -> StateError:
        place = self._folder / os.fsdecode(error.filename or "")
        return StateError(
            f"cannot keep a certificate authority in {place}: {error.strerror}; {_ADVICE}"
        )


def _open_unlinked(path: Path, parent_fd: int) -> int:
    try:
        return os.open(path.name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(error.errno, "it is no folder, or a link to one", str(path)) from error
        raise


def _check(folder_fd: int, path: str) -> None:
    """Whoever may rename what lies there could put something of his own in its place."""
    status = os.fstat(folder_fd)
    if status.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "it belongs to somebody else", path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise OSError(errno.EPERM, "others may write there: chmod go-w it", path)


def _open_own_file(folder_fd: int, name: str, flags: int) -> int:
    try:
        fd = os.open(name, flags | _FILE_FLAGS, 0o600, dir_fd=folder_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", name) from error
        raise
    status = os.fstat(fd)
    why = None
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        why = "it is no plain file of yours alone"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = f"others may write to it, so it may be theirs: {_ANEW}"
    elif status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        why = f"others may read it, so its key is no secret: {_ANEW}"
    if why is not None:
        os.close(fd)
        raise OSError(errno.EPERM, why, name)
    return fd


def _read(folder_fd: int) -> bytes | None:
    """None: there is none yet."""
    try:
        fd = _open_own_file(folder_fd, _FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read(_LARGEST_BYTES)


@contextmanager
def _locked(folder_fd: int) -> Iterator[None]:
    """Nobody else makes one meanwhile. Raises OSError where that cannot be had."""
    until = time.monotonic() + _LOCK_PATIENCE_SECONDS
    fd = _open_own_file(folder_fd, _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    why = "another smartsched holds it, and does not let go"
                    raise OSError(errno.EWOULDBLOCK, why, _LOCK) from error
            time.sleep(_LOOK_EVERY_SECONDS)
        yield
    finally:
        os.close(fd)


def _publish(folder_fd: int, data: bytes) -> None:
    """Under the lock: it appears whole or not at all, whatever crashes."""
    unfinished = f"{_FILE}.new"
    with suppress(FileNotFoundError):  # of one that died here
        os.unlink(unfinished, dir_fd=folder_fd)
    fd = _open_own_file(folder_fd, unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # whatever the umask takes away
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(unfinished, _FILE, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        os.fsync(folder_fd)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=folder_fd)
        raise


def _make(now: datetime.datetime) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _new_key()
    name = _subject("smartsched")
    ours = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _dated(x509.CertificateBuilder(), now, now + _AUTHORITY_LIFE)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(ours, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return (_key_pem(key) + _pem(certificate)).encode("ascii")


def _sign(
    authority: _Loaded,
    key: "ec.EllipticCurvePrivateKey",
    role: Literal["dispatcher", "agent"],
    name: str,
    now: datetime.datetime,
) -> "x509.Certificate":
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose

    ends = min(now + _CERTIFICATE_LIFE, authority.certificate.not_valid_after_utc)
    purpose = Purpose.SERVER_AUTH if role == "dispatcher" else Purpose.CLIENT_AUTH
    ours = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    theirs = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    builder = (
        _dated(x509.CertificateBuilder(), now, ends)
        .subject_name(_subject(name))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        .add_extension(ours, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(theirs), critical=False
        )
    )
    if (also := _alternative_name(name)) is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([also]), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def _dated(
    builder: "x509.CertificateBuilder", now: datetime.datetime, ends: datetime.datetime
) -> "x509.CertificateBuilder":
    from cryptography import x509

    return (
        builder.not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(ends)
        .serial_number(x509.random_serial_number())
    )


def _subject(name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    shown = name.encode("utf-8", "replace").decode()[:_LONGEST_COMMON_NAME] or "?"
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shown)])


def _alternative_name(name: str) -> "x509.GeneralName | None":
    """As what a client that looks for names would find it; None: it is no name of that kind."""
    from cryptography import x509

    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name) if _DNS_NAME.fullmatch(name) else None


def _usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key() -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(certificate: "x509.Certificate") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _key_pem(key: "ec.EllipticCurvePrivateKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data.decode("ascii")


def _parse(data: bytes) -> _Loaded:
    """Raises ValueError for what is no authority of ours."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
        certificate = x509.load_pem_x509_certificate(data)
        public = certificate.public_key()
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise ValueError("it holds no key with a certificate") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or public != key.public_key():
        raise ValueError("its key and its certificate do not belong together")
    if not constraints.ca:
        raise ValueError("its certificate may not sign others")
    return _Loaded(_pem(certificate), certificate, key)
