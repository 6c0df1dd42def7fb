"""A fake training job: it holds memory on the GPUs of the stub driver for a while, then exits.

    python -I -S train.py --mem 8589934592 --seconds 1 --id job-7 --log runs.log

It takes its GPUs from CUDA_VISIBLE_DEVICES (indices, UUIDs, MIG UUIDs) as CUDA would, registers its
pid in $NVML_STUB_DIR/procs for each, waits, unregisters and exits. Options it does not know are
ignored, so that a test can give it any command line. Batches start hundreds of these: only modules
that are already loaded at start or cheap to load are imported, and no argparse.

    --mem BYTES              memory held per GPU (0)
    --seconds S              how long (0)
    --until PATH             instead: until that path exists, at most --seconds (600)
    --exit CODE              exit status (0)
    --id NAME                name in the log (the pid)
    --log FILE               appends lines `start|end|term|usr1 NAME UUIDS PID MONOTONIC`, UUIDS
                             with commas or `-` for a job without a GPU
    --kind compute|graphics|mps
    --util PERCENT           what the driver says it uses of each GPU (the driver says nothing)
    --ignore-term            survives SIGTERM, logs `term`
    --term-exit CODE         on SIGTERM logs `term`, unregisters and exits so
    --usr1-exit CODE         on SIGUSR1 logs `usr1`, unregisters and exits so
    --shown-pid PID          what the driver calls it, as in a container
    --linger-mem S           leaves a child behind that holds the memory S seconds longer
    --linger-detached        ... in a session of its own
    --assert-max-used BYTES  logs `violation ... BYTES` and exits 98 where more than this is in use
                             on one of its GPUs by anybody else

Exit statuses of its own: 95 no stub directory, 96 no such GPU, 97 CUDA_VISIBLE_DEVICES is not set,
98 violation.
"""

import os
import sys
import time

NO_STUB, NO_SUCH_GPU, NOT_ASSIGNED, VIOLATION = 95, 96, 97, 98


class Options:
    """What was asked for; the names are those on the command line, see above."""

    mem = 0
    seconds: float | None = None
    until: str | None = None
    exit = 0
    id = str(os.getpid())
    log: str | None = None
    kind = "compute"
    util: int | None = None
    ignore_term = False
    term_exit: int | None = None
    usr1_exit: int | None = None
    shown_pid: int | None = None
    linger_mem: float | None = None
    linger_detached = False
    assert_max_used: int | None = None


FLAGS = ("ignore_term", "linger_detached")
NUMBERS = {
    "mem": int,
    "seconds": float,
    "exit": int,
    "util": int,
    "term_exit": int,
    "usr1_exit": int,
    "shown_pid": int,
    "linger_mem": float,
    "assert_max_used": int,
}
TEXTS = ("until", "id", "log", "kind")


class Job:
    """One run: what it was asked for, and the GPUs it was given."""

    def __init__(self, options: Options, directory: str, uuids: list[str]) -> None:
        self.options = options
        self.directory = directory
        self.uuids = uuids
        self.pid = os.getpid()

    def run(self) -> int:
        self.register(self.pid)
        for uuid in self.uuids:
            others = used_by_others(self.directory, uuid, self.pid)
            allowed = self.options.assert_max_used
            if allowed is not None and others > allowed:
                self.log("violation", uuid, others)
                self.unregister(self.pid)
                return VIOLATION
        self.handle_signals()
        self.log("start", self.where())
        self.train()
        self.log("end", self.where())
        if self.options.linger_mem is not None:
            self.linger(self.options.linger_mem)
        self.unregister(self.pid)
        return self.options.exit

    def where(self) -> str:
        return ",".join(self.uuids) or "-"

    def train(self) -> None:
        gate, seconds = self.options.until, self.options.seconds
        if gate is None:
            time.sleep(seconds or 0)
            return
        deadline = time.monotonic() + (600 if seconds is None else seconds)
        while not os.path.exists(gate) and time.monotonic() < deadline:
            time.sleep(0.01)

    def linger(self, seconds: float) -> None:
        child = os.fork()
        if child:
            # The parent registers the child: the memory is never seen free in between.
            self.register(child)
            return
        if self.options.linger_detached:
            os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # whoever reads the job's output must not wait for this child
            os.dup2(nothing, stream)
        time.sleep(seconds)
        self.unregister(os.getpid())
        os._exit(0)

    def handle_signals(self) -> None:
        catches_term = self.options.ignore_term or self.options.term_exit is not None
        if not catches_term and self.options.usr1_exit is None:
            return
        import signal  # costs a third of the start time, most jobs need none

        if catches_term:
            signal.signal(signal.SIGTERM, self.on_term)
        if self.options.usr1_exit is not None:
            signal.signal(signal.SIGUSR1, self.on_usr1)

    def on_usr1(self, *_: object) -> None:
        self.log("usr1", self.where())
        self.unregister(self.pid)
        os._exit(self.options.usr1_exit or 0)

    def on_term(self, *_: object) -> None:
        self.log("term", self.where())
        if self.options.term_exit is not None:
            self.unregister(self.pid)
            os._exit(self.options.term_exit)

    def register(self, pid: int) -> None:
        """Written elsewhere and renamed: the driver must never see half a line."""
        waiting = self.directory + "/tmp"
        os.makedirs(waiting, exist_ok=True)
        more = "" if self.options.util is None else f" util={self.options.util}"
        if self.options.shown_pid is not None:
            more += f" shown_pid={self.options.shown_pid}"
        for uuid in self.uuids:
            name = f"{pid}-{uuid}"
            with open(f"{waiting}/{name}", "w") as file:
                file.write(
                    f"pid={pid} gpu={uuid} mem={self.options.mem}"
                    f" kind={self.options.kind} start={stat_of(pid)[19]}{more}\n"
                )
            os.rename(f"{waiting}/{name}", f"{self.directory}/procs/{name}")

    def unregister(self, pid: int) -> None:
        for uuid in self.uuids:
            os.unlink(f"{self.directory}/procs/{pid}-{uuid}")

    def log(self, word: str, uuids: str, *more: object) -> None:
        if self.options.log is None:
            return
        fields = (word, self.options.id, uuids, self.pid, f"{time.monotonic():.6f}", *more)
        line = " ".join(map(str, fields)) + "\n"
        file = os.open(self.options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())  # one write, so that lines of many jobs do not mix
        os.close(file)


def main(arguments: list[str]) -> int:
    directory = os.environ.get("NVML_STUB_DIR")
    if directory is None:
        return complain(NO_STUB, "NVML_STUB_DIR is not set")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return complain(NOT_ASSIGNED, "CUDA_VISIBLE_DEVICES is not set: no GPU was assigned")
    try:
        uuids = visible_uuids(visible, directory)
    except LookupError as error:
        return complain(NO_SUCH_GPU, f"CUDA_VISIBLE_DEVICES={visible}: no such GPU: {error}")
    return Job(options_from(arguments), directory, uuids).run()


def complain(code: int, text: str) -> int:
    sys.stderr.write(f"train.py: {text}\n")
    return code


def options_from(arguments: list[str]) -> Options:
    options = Options()
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in FLAGS:
            setattr(options, name, True)
        elif name in NUMBERS or name in TEXTS:
            setattr(options, name, NUMBERS.get(name, str)(value if equals else next(words)))
    return options


def devices(directory: str) -> list[dict[str, str]]:
    """The `gpu` and `mig` lines of the state file, each as a dict with its first word as `line`."""
    found = []
    with open(directory + "/state") as file:
        for text in file:
            words = text.split("#", 1)[0].split()
            if words and words[0] in ("gpu", "mig"):
                found.append({"line": words[0], **dict(w.split("=", 1) for w in words[1:])})
    return found


def visible_uuids(visible: str, directory: str) -> list[str]:
    known = devices(directory)
    return [uuid_of(word.strip(), known) for word in visible.split(",") if word.strip()]


def uuid_of(word: str, known: list[dict[str, str]]) -> str:
    """As CUDA reads it: an index, or the beginning of a UUID where only one starts so."""
    if word.isdigit():
        matching = [d["uuid"] for d in known if d["line"] == "gpu" and d["index"] == word]
    else:
        matching = [d["uuid"] for d in known if d["uuid"].startswith(word)]
        matching = [word] if word in matching else matching
    if len(matching) != 1:
        raise LookupError(word)
    return matching[0]


def used_by_others(directory: str, uuid: str, own_pid: int) -> int:
    """Bytes in use on a device by anybody but this process, dead processes left out.

    Called after this process registered: of two jobs that overlap, the later one sees the other.
    """
    total = sum(int(d.get("used", 0)) for d in devices(directory) if d["uuid"] == uuid)
    for name in os.listdir(directory + "/procs"):
        if not name.startswith(".") and not name.startswith(f"{own_pid}-"):
            total += held_by(f"{directory}/procs/{name}", uuid)
    return total


def held_by(path: str, uuid: str) -> int:
    try:
        with open(path) as file:
            entry = dict(word.split("=", 1) for word in file.read().split())
    except FileNotFoundError:  # unregistered since the folder was listed
        return 0
    if entry["gpu"] != uuid:
        return 0
    stat = stat_of(int(entry["pid"]))
    gone = stat[0] in ("Z", "X") or entry.get("start", stat[19]) != stat[19]
    return 0 if gone else int(entry.get("mem", 0))


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state first, start time at 19."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"] * 20


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # there is nothing to tear down, and teardown is a third of a short run
