"""The user's own certificate authority: real files, real processes, real TLS."""

import errno
import os
import re
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from smartsched.core.credentials import Credentials
from smartsched.edges import authority as module
from smartsched.edges.authority import Authority
from smartsched.errors import StateError, UsageError
from tests.waiting import wait_until

x509 = pytest.importorskip("cryptography.x509", reason="needs smartsched[cluster]")

DAY_SECONDS = 86400.0
T0 = 1_800_000_000.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
# what Python 3.13 asks of certificates unless told otherwise
STRICT = ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "smartsched" / "authority"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate_of(credentials: Credentials):
    return x509.load_pem_x509_certificate(credentials.certificate_pem.encode())


# --- what lies in the folder


def test_it_is_made_at_first_use_for_its_user_alone(folder: Path):
    authority = Authority(folder)
    assert not folder.exists()

    authority.issue("agent", "gpu1")

    assert mode_of(folder) == 0o700
    assert {path.name: mode_of(path) for path in folder.iterdir()} == {
        "authority.pem": 0o600,
        "lock": 0o600,
    }


@pytest.mark.parametrize("umask", [0o000, 0o177])
def test_no_umask_makes_it_more_or_less_open(folder: Path, umask: int):
    folder.parent.mkdir()
    before = os.umask(umask)
    try:
        Authority(folder).issue("agent", "gpu1")
    finally:
        os.umask(before)

    assert (mode_of(folder), mode_of(folder / "authority.pem")) == (0o700, 0o600)


def test_it_stays_the_same_for_whoever_comes_later(folder: Path):
    first = Authority(folder).issue("dispatcher", "here")
    second = Authority(folder).issue("agent", "gpu1")

    assert first.authority_pem == second.authority_pem
    assert first.key_pem != second.key_pem


def test_what_it_issues_lets_nobody_else_sign(folder: Path):
    issued = Authority(folder).issue("agent", "gpu1")

    assert "PRIVATE KEY" not in issued.authority_pem + issued.certificate_pem
    assert issued.key_pem not in (folder / "authority.pem").read_text()
    assert issued.key_pem not in repr(issued)


def test_a_folder_that_others_may_look_into_is_closed_to_them(folder: Path):
    folder.mkdir(parents=True)
    folder.chmod(0o755)

    Authority(folder).issue("agent", "gpu1")

    assert mode_of(folder) == 0o700


def is_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def has_another_name(path: Path) -> None:
    path.with_name("elsewhere").hardlink_to(path)


def is_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def is_written_by_the_group(path: Path) -> None:
    path.chmod(0o620)


def is_written_by_all(path: Path) -> None:
    path.chmod(0o602)


def is_read_by_all(path: Path) -> None:
    path.chmod(0o644)


def has_a_linked_folder(path: Path) -> None:
    is_link(path.parent)


def has_a_folder_that_is_a_file(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.touch()


def has_a_folder_that_others_write(path: Path) -> None:
    path.parent.chmod(0o770)


def has_a_state_folder_that_others_write(path: Path) -> None:
    path.parent.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (is_link, "authority.pem: it is a link"),
        (has_another_name, "no plain file of yours alone"),
        (is_pipe, "no plain file of yours alone"),
        (is_folder, "no plain file of yours alone"),
        (is_written_by_the_group, "others may write to it"),
        (is_written_by_all, "others may write to it"),
        (is_read_by_all, "others may read it"),
        (has_a_linked_folder, "authority: it is no folder, or a link to one"),
        (has_a_folder_that_is_a_file, "authority: it is no folder, or a link to one"),
        (has_a_folder_that_others_write, "authority: others may write there: chmod go-w it"),
        (has_a_state_folder_that_others_write, "smartsched: others may write there"),
    ],
)
def test_what_others_may_have_had_a_hand_in_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], None], says: str
):
    Authority(folder).issue("agent", "gpu1")
    spoil(folder / "authority.pem")

    with pytest.raises(StateError, match=re.escape(says)) as refused:
        Authority(folder).issue("agent", "gpu1")

    assert "\n" not in str(refused.value)
    assert str(folder.parent) in str(refused.value)


@needs_root
@pytest.mark.parametrize("what", ["authority.pem", "lock", ".", ".."])
def test_what_belongs_to_somebody_else_is_refused(folder: Path, what: str):
    Authority(folder).issue("agent", "gpu1")
    if what == "lock":
        (folder / "authority.pem").unlink()
    os.chown(folder / what, 12345, 12345)

    with pytest.raises(StateError, match=r"somebody else|yours alone"):
        Authority(folder).issue("agent", "gpu1")


def test_a_link_in_place_of_what_is_written_leads_nowhere(folder: Path, tmp_path: Path):
    folder.mkdir(parents=True, mode=0o700)
    target = tmp_path / "target"
    target.write_text("mine")
    (folder / "authority.pem.new").symlink_to(target)

    Authority(folder).issue("agent", "gpu1")

    assert target.read_text() == "mine"


def test_a_linked_lock_is_refused(folder: Path, tmp_path: Path):
    folder.mkdir(parents=True, mode=0o700)
    (folder / "lock").symlink_to(tmp_path / "target")

    with pytest.raises(StateError, match="it is a link"):
        Authority(folder).issue("agent", "gpu1")

    assert not (tmp_path / "target").exists()


def test_a_state_folder_may_be_reached_by_a_link(folder: Path, tmp_path: Path):
    Authority(folder).issue("agent", "gpu1")
    (tmp_path / "link").symlink_to(folder.parent)

    again = Authority(tmp_path / "link" / "authority").issue("agent", "gpu1")

    assert again.authority_pem in (folder / "authority.pem").read_text()


def test_where_nothing_can_be_written_it_says_where_and_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StateError, match=r"authority: No space left on device; .*--state DIR"):
        Authority(folder).issue("agent", "gpu1")

    assert [path.name for path in folder.iterdir()] == ["lock"]


# --- several at once

MAKER = """
import sys
from pathlib import Path
from smartsched.edges.authority import Authority

authority = Authority(Path(sys.argv[1]))
import cryptography.x509
print("ready", flush=True)
sys.stdin.readline()
print(authority.issue("agent", "gpu1").authority_pem)
"""


def test_two_that_make_it_at_the_same_moment_have_the_same(folder: Path):
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()

    said = [maker.communicate(timeout=60)[0] for maker in makers]

    assert said[0] == said[1]
    assert said[0].strip() in (folder / "authority.pem").read_text()


HOLDER = """
import fcntl, os, sys
from pathlib import Path

folder = Path(sys.argv[1])
fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
(folder / "authority.pem.new").write_text("unfinished")
"""


def test_whoever_dies_while_making_it_leaves_nothing_in_the_way(folder: Path):
    folder.mkdir(parents=True, mode=0o700)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waiting = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdin is not None
    waiting.stdin.write("\n")
    waiting.stdin.flush()
    lock = folder / "lock"
    wait_until(lambda: os.stat(lock).st_ino in _open_files(waiting.pid), "it waits for the lock")
    assert not (folder / "authority.pem").exists()

    holder.communicate(b"\n", timeout=60)

    assert "BEGIN CERTIFICATE" in waiting.communicate(timeout=60)[0]
    assert "unfinished" not in (folder / "authority.pem").read_text()


def _open_files(pid: int) -> set[int]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(fd.stat().st_ino)
        except OSError:
            continue
    return found


def test_a_lock_that_is_never_released_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LOCK_PATIENCE_SECONDS", 0.05)
    folder.mkdir(parents=True, mode=0o700)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    with pytest.raises(StateError, match=r"authority/lock: another smartsched holds it"):
        Authority(folder).issue("agent", "gpu1")

    holder.communicate(b"\n", timeout=60)


# --- damaged, expired, or not to be had


@pytest.mark.parametrize("text", ["", "garbage\n", "\0" * 1000])
def test_a_damaged_one_is_said_and_what_to_do(folder: Path, text: str):
    Authority(folder).issue("agent", "gpu1")
    (folder / "authority.pem").write_text(text)

    with pytest.raises(StateError, match=r"authority.pem is damaged \(.*\): .*remove it"):
        Authority(folder).issue("agent", "gpu1")


def test_a_torn_or_foreign_half_is_damage(folder: Path, tmp_path: Path):
    Authority(folder).issue("agent", "gpu1")
    Authority(tmp_path / "other" / "authority").issue("agent", "gpu1")
    mine, other = (
        re.split(r"(?=-----BEGIN CERT)", path.read_text())
        for path in (folder / "authority.pem", tmp_path / "other" / "authority" / "authority.pem")
    )

    for text, says in [
        (mine[0], "no key with a certificate"),
        (mine[1], "no key with a certificate"),
        (mine[0] + mine[1][:100], "no key with a certificate"),
        (mine[0] + other[1], "do not belong together"),
    ]:
        (folder / "authority.pem").write_text(text)
        with pytest.raises(StateError, match=says):
            Authority(folder).issue("agent", "gpu1")


def test_what_may_not_sign_is_no_authority(folder: Path):
    issued = Authority(folder).issue("agent", "gpu1")
    (folder / "authority.pem").write_text(issued.key_pem + issued.certificate_pem)

    with pytest.raises(StateError, match="may not sign others"):
        Authority(folder).issue("agent", "gpu1")


def test_an_expired_one_is_said_and_what_to_do(folder: Path):
    Authority(folder, now=lambda: T0).issue("agent", "gpu1")
    later = Authority(folder, now=lambda: T0 + 20 * 365 * DAY_SECONDS)

    with pytest.raises(StateError, match=r"authority.pem has expired on 2047-01-10: .*remove it"):
        later.issue("agent", "gpu1")


def test_a_dispatcher_that_lives_long_notices_that_it_expired(folder: Path):
    at = [T0]
    authority = Authority(folder, now=lambda: at[0])
    authority.issue("agent", "gpu1")

    at[0] += 21 * 365 * DAY_SECONDS

    with pytest.raises(StateError, match="has expired"):
        authority.issue("agent", "gpu1")


def test_a_clock_that_is_far_behind_is_told_of(folder: Path):
    Authority(folder, now=lambda: T0).issue("agent", "gpu1")

    with pytest.raises(StateError, match="valid only from 2027-01-14: set the clock"):
        Authority(folder, now=lambda: T0 - 3 * DAY_SECONDS).issue("agent", "gpu1")


def test_without_the_package_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(UsageError, match=re.escape("pip install 'smartsched[cluster]'")):
        Authority(folder).issue("agent", "gpu1")

    assert not folder.exists()


def test_the_package_is_imported_only_when_it_is_needed():
    code = "import sys, smartsched.edges.authority as _; sys.exit('cryptography' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- the certificates themselves


def test_a_certificate_is_valid_from_a_day_ago_for_a_year(folder: Path):
    issued = certificate_of(Authority(folder, now=lambda: T0).issue("agent", "gpu1"))

    assert issued.not_valid_before_utc.timestamp() == T0 - DAY_SECONDS
    assert issued.not_valid_after_utc.timestamp() == T0 + 365 * DAY_SECONDS


def test_no_certificate_outlives_its_authority(folder: Path):
    Authority(folder, now=lambda: T0).issue("agent", "gpu1")
    late = Authority(folder, now=lambda: T0 + (20 * 365 - 10) * DAY_SECONDS)

    issued = certificate_of(late.issue("agent", "gpu1"))

    assert issued.not_valid_after_utc.timestamp() == T0 + 20 * 365 * DAY_SECONDS


@pytest.mark.parametrize(
    "name", ["gpu1", "c:22", "::1", "10.0.0.7", "x" * 300, "bücher", "\udcff", "a_b", ""]
)
def test_any_name_can_be_certified(folder: Path, name: str):
    Authority(folder).issue("agent", name)


def test_a_certificate_says_whose_it_is(folder: Path):
    issued = certificate_of(Authority(folder).issue("agent", "gpu1.lab"))

    assert issued.subject.rfc4514_string() == "CN=gpu1.lab"
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gpu1.lab"]


# --- real handshakes


def context(
    folder: Path, credentials: Credentials | None, trusted: str, *, server: bool
) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= STRICT
    made.load_verify_locations(cadata=trusted)
    if credentials is not None:
        (folder / "certificate").write_text(credentials.certificate_pem)
        (folder / "key").write_text(credentials.key_pem)
        made.load_cert_chain(folder / "certificate", folder / "key")
    return made


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """What the client received in the end. Raises what either side refuses the other for."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[0].write(b"welcome")  # with TLS 1.3 a client believes it is in before it is
    return ends[1].read().decode()


Role = Literal["dispatcher", "agent"]


def meet(tmp_path: Path, authority: Authority, server: Role, client: Role) -> str:
    serving, calling = authority.issue(server, "one"), authority.issue(client, "other")
    return shake_hands(
        context(tmp_path, serving, serving.authority_pem, server=True),
        context(tmp_path, calling, calling.authority_pem, server=False),
    )


def test_an_agent_and_its_dispatcher_trust_each_other(folder: Path, tmp_path: Path):
    assert meet(tmp_path, Authority(folder), "dispatcher", "agent") == "welcome"


@pytest.mark.parametrize(
    ("server", "client"),
    [("agent", "agent"), ("dispatcher", "dispatcher"), ("agent", "dispatcher")],
)
def test_nobody_can_pose_as_the_other(folder: Path, tmp_path: Path, server: Role, client: Role):
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        meet(tmp_path, Authority(folder), server, client)


@pytest.mark.parametrize("foreign", ["dispatcher", "agent"])
def test_what_another_authority_signed_is_refused(folder: Path, tmp_path: Path, foreign: Role):
    mine, other = Authority(folder), Authority(tmp_path / "other" / "authority")
    serving = (other if foreign == "dispatcher" else mine).issue("dispatcher", "one")
    calling = (other if foreign == "agent" else mine).issue("agent", "gpu1")
    trusted = mine.issue("agent", "x").authority_pem

    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            context(tmp_path, serving, trusted, server=True),
            context(tmp_path, calling, trusted, server=False),
        )


def test_whoever_shows_no_certificate_is_refused(folder: Path, tmp_path: Path):
    serving = Authority(folder).issue("dispatcher", "one")

    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake_hands(
            context(tmp_path, serving, serving.authority_pem, server=True),
            context(tmp_path, None, serving.authority_pem, server=False),
        )


def test_an_agent_cannot_sign_for_others(folder: Path, tmp_path: Path):
    mine = Authority(folder)
    agent = mine.issue("agent", "gpu1")
    forger = Authority(tmp_path / "forged" / "authority")
    forger._loaded = module._Loaded(agent.certificate_pem, certificate_of(agent), _key_of(agent))
    fake = forger.issue("dispatcher", "one")
    chained = Credentials(
        agent.authority_pem, fake.certificate_pem + agent.certificate_pem, fake.key_pem
    )

    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            context(tmp_path, chained, agent.authority_pem, server=True),
            context(tmp_path, agent, agent.authority_pem, server=False),
        )


def _key_of(credentials: Credentials):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(credentials.key_pem.encode(), None)


@pytest.mark.parametrize("age_days", [-2, 366])
def test_a_certificate_is_refused_before_and_after_its_time(
    folder: Path, tmp_path: Path, age_days: int
):
    now = time.time()
    Authority(folder, now=lambda: now - 400 * DAY_SECONDS).issue("agent", "x")
    then = Authority(folder, now=lambda: now - age_days * DAY_SECONDS)

    with pytest.raises(ssl.SSLCertVerificationError, match=r"expired|not yet valid"):
        meet(tmp_path, then, "dispatcher", "agent")
