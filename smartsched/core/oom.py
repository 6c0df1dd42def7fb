"""Tells by the tail of a log whether a job failed for want of GPU memory.

Frameworks say so in words only, so this is a list of the words of each, and of what resembles them
and means something else. Two rules hold for all of them:

- What is said must be near the end. A program that caught such a failure goes on and prints what
  it does next; one that died of it prints at most a traceback, a dump of its buffers (both
  indented) and the complaints of its launcher and other ranks. So at most 60 lines may follow,
  blank and indented ones not counted.
- A line that says, or whose next line says, that the program makes do with less is no failure.

In doubt the answer is yes: it costs one more attempt with more room, a wrong no loses the job. Two
things are not in doubt but unknowable, and the answer is no. CUDNN_STATUS_NOT_INITIALIZED and
CUBLAS_STATUS_NOT_INITIALIZED come from a lack of memory, but as well from a driver that does not
fit and from an index out of range: taken for the former, a broken installation would be tried
again for every job. And what the host lacks (MemoryError, std::bad_alloc, Killed,
DefaultCPUAllocator) no other GPU can give.
"""

import re

from smartsched.core import words

_LINES_THAT_MAY_FOLLOW = 60
_LONGEST = 160
_LARGEST_BYTES = 1 << 50  # more than any GPU has: a size that was computed wrongly

_OUT_OF_MEMORY = re.compile(
    "|".join(
        (
            # PyTorch, c10/cuda/CUDACachingAllocator.cpp: "CUDA out of memory. Tried to allocate
            # 2.50 GiB. GPU 0 has ..."; HIP in its ROCm build, XPU in Intel's. With rich's and
            # other handlers only the class may be left: torch.cuda.OutOfMemoryError until 2.4,
            # torch.OutOfMemoryError since (pytorch#121702)
            r"\b(?:CUDA|HIP|XPU|NPU) out of memory",
            r"\btorch\.(?:cuda\.)?OutOfMemoryError(?::|\s*$)",
            # PyTorch, c10/cuda/CUDAException.cpp: "CUDA error: out of memory", a RuntimeError and
            # since 2.8 a torch.AcceleratorError; Triton: "Triton Error [CUDA]: out of memory";
            # also MXNet's "Check failed: e == cudaSuccess: CUDA: out of memory"
            r"\b(?:CUDA|HIP)\]?(?: error)?: ?out of memory",
            # PyTorch until 1.0 (pytorch#465): "cuda runtime error (2) : out of memory at ..."
            r"\bcuda runtime error \(2\) ?: out of memory",
            # cuBLAS and cuDNN, where they say that it was an allocation: "CUDA error:
            # CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error:
            # CUDNN_STATUS_ALLOC_FAILED", TensorFlow's "Could not create cudnn handle: ..."
            r"\b(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUFFT)_(?:STATUS_)?ALLOC_FAILED\b",
            # the driver's and the runtime's own names: Numba ("Call to cuMemAlloc results in
            # CUDA_ERROR_OUT_OF_MEMORY"), TensorFlow and XLA ("failed to allocate 17.79G
            # (19104890880 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory"), CuPy
            # before 2.0 and RMM ("std::bad_alloc: out_of_memory: CUDA error at: ...:
            # cudaErrorMemoryAllocation out of memory"), JuliaGPU and AMReX (hipErrorOutOfMemory),
            # TensorFlow for ROCm (HIP_ERROR_OutOfMemory)
            r"\b(?:CUDA|HIP)_ERROR_OUT_?OF_?MEMORY\b",
            r"\bcudaErrorMemoryAllocation\b",
            r"\bhipError(?:OutOfMemory|MemoryAllocation)\b",
            # RMM's pool: "out_of_memory: RMM failure at: ...: Maximum pool size exceeded"
            r"\bRMM failure at:.{0,400}?Maximum pool size exceeded",
            # ggml and llama.cpp: "allocating 9866.00 MiB on device 1: cudaMalloc failed: out of
            # memory"; thrust: "parallel_for failed: out of memory"
            r"\bfailed: out of memory",
            # TensorRT says "Cuda Error in allocate: 2 (out of memory)"
            r"\bCuda Error in \w+: 2 \(out of memory\)",
            # NCCL: "NCCL WARN Cuda failure 2 'out of memory'", "Failed to CUDA calloc 6291456
            # bytes"; its plain "unhandled cuda error" does not say which
            r"\bCuda failure (?:2 )?'out of memory'",
            r"\bFailed to CUDA (?:calloc|malloc)\b",
            # TensorFlow: "ResourceExhaustedError: OOM when allocating tensor with shape[...] and
            # type float on /job:.../device:GPU:0 by allocator GPU_0_bfc"; on the host it is
            # device:CPU:0 and "by allocator cpu", see below
            r"\bOOM when allocating tensor\b",
            # XLA, thus JAX: "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to
            # allocate 17179869184 bytes." or "... Out of memory allocating ...", "... Failed to
            # allocate request for 2.00GiB (2147483648B) on device ordinal 0"; TensorFlow:
            # "ResourceExhaustedError: failed to allocate memory [Op:AddV2]". Bare it is also what
            # gRPC says of quotas and long messages, and XLA of a block's shared memory
            r"\bRESOURCE[_ ]?EXHAUSTED(?:Error)?:.{0,200}?\b"
            r"(?:Out of memory|Failed to allocate|OOM)\b",
            # XLA's and TensorFlow's allocator: "Allocator (GPU_0_bfc) ran out of memory trying to
            # allocate 2.00GiB ..."
            r"\bAllocator \(GPU_\d+_bfc\) ran out of memory",
            # CuPy: "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 25,600,000 bytes
            # (allocated so far: ...)"; before 6.0 "out of memory to allocate 1073741824 bytes"
            r"\bcupy\.cuda\.memory\.OutOfMemoryError(?::|\s*$)",
            r"\bout of memory (?:allocating|to allocate) [\d,]+ bytes \((?:allocated|total)",
            # PaddlePaddle says "Out of memory error on GPU 0. Cannot allocate 3.125000GB memory"
            r"\bOut of memory error on GPU",
            # ONNX Runtime: "BFCArena::AllocateRawInternal(...) Failed to allocate memory for
            # requested buffer of size 939524096"; it does not say whose
            r"\bBFCArena\b.{0,200}?Failed to allocate memory",
            # vLLM at its start: "Free memory on device cuda:0 (7.34/15.49 GiB) on startup is less
            # than desired GPU memory utilization"; "No available memory for the cache blocks."
            r"\bFree memory on device.{0,100}?is less than desired GPU memory",
            r"\bNo available memory for the cache blocks",
            # Accelerate, once even a batch of one does not fit
            r"\bNo executable batch size found",
        )
    ),
    re.IGNORECASE,
)

# Somebody copes: fairseq ("Skipping batch", "attempting to recover from OOM"), llama.cpp
# ("compute buffer allocation failed, retrying without ..."), XLA's allocator ("The caller
# indicates that this is not a failure"). Not so advice: "try reducing the batch size"
_COPES = re.compile(
    r"\b(?:skipping|skipped|retrying|will retry|recovering|to recover from|recovered"
    r"|falling back|not a failure"
    r"|(?<!try )(?<!consider )(?<!by )(?<!recommend )(?<!suggest )(?:reducing|halving|decreasing)"
    r"|trying (?:a )?(?:smaller|batch))\b",
    re.IGNORECASE,
)
# Somebody explains, before naming it: "If you encounter CUDA out of memory, try to set --tile"
# is what Real-ESRGAN prints after any error
_EXPLAINS = re.compile(
    r"\b(?:if you|in case of|avoids?|prevents?"
    r"|(?:may|might|could|can) (?:cause|lead|result|run|trigger|get|give))\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"\s*(?:if|elif|except|assert)\b")  # of a program that looks for it
_ON_THE_HOST = re.compile(r"device:CPU\b|allocator (?:mkl)?cpu\b")
# An index out of range leaves the device unusable, and what comes next complains of anything;
# PyTorch's hint at "device-side assertions", below every CUDA error, is not it
_BROKEN_DEVICE = re.compile(r"device-side assert triggered|: Assertion `.{0,200}?` failed")
_LIBRARY = re.compile(r"\b\w+_ALLOC_FAILED\b")

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_WANTED = re.compile(
    r"(?:\b(?:allocate|allocating|alloc|calloc(?: async)?|malloc|allocate request for)"
    r"|\bbuffer of size)\s+"
    r"(?P<amount>[\d,]{0,30}\d(?:\.\d{1,30})?)\s?(?P<unit>(?:[KMGT]i?B?|bytes|B)\b)?"
    r"(?:\s?\((?:rounded to )?(?P<exact>\d{1,20})(?: ?bytes|B)?\))?",
    re.IGNORECASE,
)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def out_of_memory(tail: str) -> str | None:
    """The line that says so, fit to be shown; None: nothing says so."""
    lines = _TERMINAL_CODES.sub("", tail).replace("\r", "\n").split("\n")
    broken = _BROKEN_DEVICE.search(tail) is not None
    followed_by, below = 0, ""
    for line in reversed(lines):
        if followed_by > _LINES_THAT_MAY_FOLLOW:
            return None
        if (found := _said_in(line, below)) and not (broken and _LIBRARY.search(found[0])):
            return _shown(line, found.start())
        if line.strip():
            below = line
            followed_by += not line[0].isspace()
    return None


def wanted_bytes(line: str) -> int | None:
    """How much it tried to allocate at once, on top of what it had; None: the line does not say."""
    for found in _WANTED.finditer(line):
        amount = _amount_bytes(found)
        if amount is not None and 0 < amount <= _LARGEST_BYTES:
            return amount
    return None


def _said_in(line: str, below: str) -> re.Match[str] | None:
    found = _OUT_OF_MEMORY.search(line)
    if found is None or _COPES.search(line) or _COPES.search(below):
        return None
    if _CODE.match(line) or _ON_THE_HOST.search(line):
        return None
    return None if _EXPLAINS.search(line, 0, found.start()) else found


def _shown(line: str, start: int) -> str:
    """The line; of a long one what follows from where it says so, or its end if that is more."""
    begin = min(start, len(line) - _LONGEST + 1)
    text = line if begin <= 0 else "…" + line[begin:]
    return words.shortened(words.printable(text).strip(), _LONGEST)


def _amount_bytes(found: re.Match[str]) -> int | None:
    """All of them count in powers of 1024, also where they write GB."""
    if found["exact"]:
        return int(found["exact"])
    unit = found["unit"]
    if unit is None and not found[0].startswith("buffer"):
        return None
    amount = float(found["amount"].replace(",", ""))
    power = _POWERS.get(unit[0].upper(), 0) if unit else 0
    return round(amount * 1024.0**power)
