"""`smartsched doctor`: whether all is there that smartsched needs, a line each."""

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from smartsched.cli.host import this_place
from smartsched.cli.limits import settle
from smartsched.cli.parser import build_parser as build_main_parser
from smartsched.cli.parser import parse, parser_defaults
from smartsched.cli.sampling import SamplerProcess
from smartsched.cli.session import default_state, state_folder
from smartsched.cli.settings import blamed
from smartsched.cli.wiring import first_snapshot, start_sampler
from smartsched.core.model import GpuReading, GpuSample, GpuUnreadable
from smartsched.core.policy import Policy
from smartsched.core.strangers import is_compute, is_known
from smartsched.core.words import count, printable
from smartsched.edges import checkup
from smartsched.edges.claim_files import claims_of_others, default_folder
from smartsched.edges.claim_reader import ClaimReader
from smartsched.edges.clock import SteadyClock
from smartsched.edges.waiter import Waiter
from smartsched.errors import SmartschedError, StateError, UsageError


class Finding(Struct, frozen=True):
    topic: str
    ok: bool
    text: str  # what is so; if it is not ok, also what to do


def main(args: argparse.Namespace) -> int:
    findings = []
    for finding in _examine():
        findings.append(finding)
        if not args.json:
            print(_line(finding), flush=True)
    if args.json:
        rows = [{"topic": f.topic, "ok": f.ok, "text": f.text} for f in findings]
        print(json.dumps({"smartsched_doctor": 1, "findings": rows}, indent=2))
    return 0 if all(finding.ok for finding in findings) else 1


def _line(finding: Finding) -> str:
    return f"{'ok' if finding.ok else 'FIX':<4} {finding.topic:<12} {printable(finding.text)}"


def _examine() -> Iterator[Finding]:
    """One after the other: the driver may take its time."""
    args, found = _settings()
    yield found
    yield from _packages()
    yield from _gpus()
    yield _container()
    state = state_folder(args)
    yield _folder("state", state, "--state", private=True)
    yield _folder("logs", Path(args.logs), "--logs")
    yield from _claims(args)
    yield _dispatchers(state)
    yield _hosts(state)
    yield from _several("limits", checkup.tight_limits(), "of this shell are wide enough")
    yield _place()


def _settings() -> tuple[argparse.Namespace, Finding]:
    """What cannot be meant must not keep from looking at the rest."""
    args = argparse.Namespace(**parser_defaults(build_main_parser()))
    try:
        args = parse([])
        settle(args, "doctor")
    except UsageError as error:
        why = blamed(error, args.settings) if "settings" in args else error
        args.state = args.state or str(default_state())
        return args, Finding("settings", ok=False, text=str(why))
    places = {setting.place.rsplit(":", 1)[0] for setting in args.settings.by_option.values()}
    notes = "; ".join(args.settings.notes)
    if notes:
        return args, Finding("settings", ok=False, text=notes)
    text = f"from {', '.join(sorted(places))}" if places else "nothing is set"
    return args, Finding("settings", ok=True, text=text)


def _packages() -> Iterator[Finding]:
    fine = f"nvidia-ml-py {checkup.binding_version()}"
    yield from _several("packages", checkup.packages_in_the_way(), fine)


def _several(topic: str, troubles: Iterator[str], fine: str) -> Iterator[Finding]:
    found = list(troubles)
    for trouble in found:
        yield Finding(topic, ok=False, text=trouble)
    if not found:
        yield Finding(topic, ok=True, text=fine)


# --- what the driver says


def _gpus() -> Iterator[Finding]:
    clock = SteadyClock()
    with closing(Waiter(clock)) as waiter:
        patience = Policy("doctor").stale_after_seconds
        process = SamplerProcess(("sample", "--interval", "1s"))
        sampler = start_sampler(waiter, clock, process, patience)
        try:
            snapshot, _ = first_snapshot(sampler, waiter, clock, Policy("doctor"))
        except SmartschedError as error:
            yield Finding("driver", ok=False, text=_with_advice(str(error)))
            return
        finally:
            sampler.close()
    yield Finding("driver", ok=True, text="answers")
    yield from _several("GPUs", _ailing(snapshot.gpus), _names(snapshot.gpus))
    yield _mig(snapshot.gpus)
    yield _attribution([gpu for gpu in snapshot.gpus if isinstance(gpu, GpuSample)])


def _with_advice(why: str) -> str:
    return why if ":" in why or ";" in why else f"{why}: see whether nvidia-smi does better"


def _ailing(gpus: tuple[GpuReading, ...]) -> Iterator[str]:
    for gpu in gpus:
        name = f"GPU {_label(gpu)}"
        if isinstance(gpu, GpuUnreadable):
            if "MIG" not in gpu.why:
                yield f"{name}: {gpu.why}: it takes a reset (nvidia-smi -r) or a reboot"
        elif gpu.ailment is not None:
            yield f"{name}: {gpu.ailment}: ask the administrator for it"
        elif gpu.compute_mode == "prohibited":
            yield f"{name} may not compute: sudo nvidia-smi -i {gpu.index} -c DEFAULT"


def _label(gpu: GpuReading) -> str:
    return str(gpu.index) if gpu.slot is None else f"{gpu.index}:{gpu.slot}"


def _names(gpus: tuple[GpuReading, ...]) -> str:
    kinds = list(dict.fromkeys(gpu.name for gpu in gpus))
    return f"{len(gpus)} of them: {', '.join(kinds)}"


def _mig(gpus: tuple[GpuReading, ...]) -> Finding:
    for gpu in gpus:
        if isinstance(gpu, GpuUnreadable) and "MIG" in gpu.why:
            do = f"sudo nvidia-smi mig -i {gpu.index} -cgi 1g.10gb -C, or switch it off"
            return Finding("MIG", ok=False, text=f"GPU {_label(gpu)}: {gpu.why}: make some ({do})")
    instances = sum(gpu.slot is not None for gpu in gpus)
    return Finding("MIG", ok=True, text=count(instances, "instance") if instances else "is off")


def _attribution(gpus: list[GpuSample]) -> Finding:
    """Whether the driver says whose memory is whose."""
    topic = "attribution"
    there = [process for gpu in gpus for process in gpu.processes if is_compute(process)]
    if not there:
        text = "not known as long as no process is on a GPU: look again then"
        return Finding(topic, ok=True, text=text)
    so = "until then all memory counts as other people's, and no jobs share a GPU"
    if not any(is_known(process) for process in there):
        text = "the driver names processes by numbers that are not known here: in a container,"
        return Finding(topic, ok=False, text=f"{text} start it with --pid=host; {so}")
    if all(process.memory_bytes is None for process in there):
        text = "the driver does not say how much memory a process uses: run outside of WSL and"
        return Finding(topic, ok=False, text=f"{text} containers; {so}")
    people = len({process.user for process in there if is_known(process)})
    whose = f"{len(there)} process{'es' * (len(there) > 1)} of {count(people, 'user')}"
    return Finding(topic, ok=True, text=f"the driver says how much memory {whose} has")


# --- the machine


def _container() -> Finding:
    sign, sees = checkup.container(), checkup.sees_the_hosts_processes()
    if not sees:
        text = (
            "processes have numbers of their own here, by which the driver does not know them:"
            " start the container with --pid=host (and --ipc=host, so that claims are shared)"
        )
        return Finding("container", ok=False, text=text)
    if sign is None:
        return Finding("container", ok=True, text="none")
    text = f"in one ({sign}) that sees the host's processes; for claims it takes --ipc=host too"
    return Finding("container", ok=True, text=text)


def _folder(topic: str, folder: Path, option: str, *, private: bool = False) -> Finding:
    health = checkup.examine_folder(folder, option=option, private=private)
    if health.trouble is not None:
        return Finding(topic, ok=False, text=health.trouble)
    kind = f" ({health.file_system})" if health.file_system else ""
    return Finding(topic, ok=True, text=f"{folder}{kind} can be written and locked")


def _claims(args: argparse.Namespace) -> Iterator[Finding]:
    if args.no_claims:
        do = "take no-claims out of the settings"
        yield Finding("claims", ok=False, text=f"others are neither told nor asked: {do}")
        return
    folder = Path(args.claims) if args.claims else default_folder()
    complaints: list[str] = []
    try:
        claims = claims_of_others(folder, ClaimReader(tidy_up=False), complaints.append)
    except StateError as error:
        yield Finding("claims", ok=False, text=str(error))
        return
    for complaint in complaints:
        yield Finding("claims", ok=False, text=f"{complaint}: have it removed")
    others = sorted(set(claims.values()))
    held = f"{count(len(claims), 'GPU')} {', '.join(others)}" if claims else "nothing is claimed"
    yield Finding("claims", ok=True, text=f"{folder}: {held}")


def _dispatchers(state: Path) -> Finding:
    alive = checkup.own_dispatchers(state)
    text = f"yours: {', '.join(alive)}" if alive else "none of yours runs"
    return Finding("dispatchers", ok=True, text=text)


def _hosts(state: Path) -> Finding:
    """Who has never used others lacks nothing."""
    if (why := checkup.why_others_may_join(state / "authority")) is not None:
        return Finding("hosts", ok=False, text=why)
    if missing := checkup.missing_for_hosts():
        return Finding("hosts", ok=True, text=f"to use others (--hosts): {'; '.join(missing)}")
    return Finding("hosts", ok=True, text="others can be used (--hosts, --slurm)")


def _place() -> Finding:
    machine, boot, _ = this_place().split("/")
    if not boot:
        text = "the boot cannot be told (/proc/sys/kernel/random/boot_id): mount /proc"
        return Finding("boot", ok=False, text=text)
    named = "" if machine else "; the machine has no id (/etc/machine-id)"
    return Finding("boot", ok=True, text=f"{boot}{named}")
