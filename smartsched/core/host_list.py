"""Which hosts to use, as the user wrote them: `--hosts`, and the lines of a `--hosts-file`.

What is accepted here is handed to ssh as an argument and shown to people. So nothing passes that
ssh could take for an option, or that a shell or a terminal would act on.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from smartsched.core.model import HostName
from smartsched.core.words import printable, shortened
from smartsched.errors import UsageError

_USER = r"(?:(?P<user>[\w.][\w.+@\\-]*)@)?"
_PLAIN = r"(?P<plain>\w[\w.-]*)"
_BRACKETED = r"\[(?P<bracketed>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?)\]"
_HOST = re.compile(rf"{_USER}(?:{_PLAIN}|{_BRACKETED})(?::(?P<port>[0-9]{{1,5}}))?")
_NAME = re.compile(r"\w[\w.-]{0,252}", re.ASCII)
_HIGHEST_PORT = 65535
_LONGEST_SHOWN = 80
_OPTION = "--hosts"


class HostSpec(Struct, frozen=True):
    name: HostName  # what people see, and what GPUs are called by; no two are the same
    user: str | None  # None: whom ssh takes
    address: str  # for ssh, perhaps a name of its configuration; IPv6 without brackets
    port: int | None  # None: which ssh takes


class _Entry(Struct, frozen=True):
    where: str  # the option or the file and line
    text: str
    user: str | None
    address: str
    port: int | None

    @property
    def same_host(self) -> str:
        """The names of hosts do not differ by case, for ssh neither."""
        return self.address.lower()


def parse_hosts(listed: str | None, files: Iterable[tuple[str, str]] = ()) -> tuple[HostSpec, ...]:
    """`listed`: what --hosts said, None: nothing. `files`: the name and text of each --hosts-file.

    In the order in which they stand there. Raises UsageError for what cannot be a host, for one
    that is named twice, and where there is none at all.
    """
    entries = [] if listed is None else [_entry(_OPTION, text) for text in listed.split(",")]
    for name, text in files:
        lines = list(_file_entries(name, text))
        if not lines:
            raise UsageError(f"{printable(name)} names no host: write one a line")
        entries += lines
    _refuse_twice(entries)
    ports = Counter(entry.same_host for entry in entries)
    return tuple(
        HostSpec(_name(entry, ports[entry.same_host] > 1), entry.user, entry.address, entry.port)
        for entry in entries
    )


def check_name(name: str) -> str:
    """What a host may be called by whoever joins by hand. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{_shown(name)} is no name of a host: write it as in gpu2")
    return name


def as_text(hosts: Iterable[HostSpec]) -> str:
    """What --hosts would say."""
    return ",".join(_words(host) for host in hosts)


def _words(host: HostSpec) -> str:
    user = "" if host.user is None else f"{host.user}@"
    address = f"[{host.address}]" if ":" in host.address else host.address
    return f"{user}{address}" + ("" if host.port is None else f":{host.port}")


def _file_entries(name: str, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        host = line.partition("#")[0].strip()
        if host:
            yield _entry(f"{printable(name)}:{number}", host)


def _entry(where: str, text: str) -> _Entry:
    text = text.strip(" \t\r")
    found = _HOST.fullmatch(text)
    if found is None:
        raise UsageError(f"{where}: {_shown(text)} is no host: {_why_not(text, where)}")
    port = None if found["port"] is None else int(found["port"])
    if port is not None and not 1 <= port <= _HIGHEST_PORT:
        raise UsageError(f"{where}: {_shown(text)} has no port: they are 1 to {_HIGHEST_PORT}")
    return _Entry(where, text, found["user"], found["plain"] or found["bracketed"], port)


def _why_not(text: str, where: str) -> str:
    if not text:
        return "there is nothing between the commas; write them as in gpu1,ada@gpu2:2222"
    if text.startswith("-") or "@-" in text:
        return "what begins with a - is an option to ssh"
    if "," in text or any(c.isspace() for c in text):
        how = "them with commas between" if where == _OPTION else "one a line"
        return f"write {how}, without blanks in it"
    if not text.startswith("[") and text.count(":") > 1:
        return "write an IPv6 address in brackets, as in [::1] or [::1]:22"
    return "write it as in gpu2, ada@gpu2, gpu2:2222 or [::1]:22"


def _shown(text: str) -> str:
    return f"'{shortened(printable(text), _LONGEST_SHOWN)}'"


def _refuse_twice(entries: Sequence[_Entry]) -> None:
    """Another user of the same host is no other host: each of its GPUs would count twice."""
    seen: dict[tuple[str, int | None], _Entry] = {}
    for entry in entries:
        first = seen.setdefault((entry.same_host, entry.port), entry)
        if first is not entry:
            raise UsageError(
                f"{entry.where}: {_shown(entry.text)} is named twice, first in {first.where}"
                f"{'' if first.text == entry.text else f' as {_shown(first.text)}'}"
            )


def _name(entry: _Entry, is_ambiguous: bool) -> HostName:
    if not is_ambiguous or entry.port is None:
        return HostName(entry.address)
    address = f"[{entry.address}]" if ":" in entry.address else entry.address
    return HostName(f"{address}:{entry.port}")
