"""Whether the end of a log says that the job failed for want of GPU memory."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.oom import out_of_memory, wanted_bytes

MIB, GIB = 2**20, 2**30
TORCH = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"
    " capacity of 23.65 GiB of which 11.06 MiB is free. Including non-PyTorch memory, this process"
    " has 23.60 GiB memory in use. If reserved but unallocated memory is large try setting"
    " PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
XLA = "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to"
TF = "on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
ORT = "void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*)"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (TORCH, 2.5 * GIB),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.00 MiB", 22 * MIB),
        ("RuntimeError: CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92", 12.5 * MIB),
        ("RuntimeError: CUDA out of memory. Tried to allocate 1024.00 KiB (GPU 0; 11", MIB),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate more than 1EB memory.", None),
        ("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 3.31 GiB.", 3.31 * GIB),
        ("torch.OutOfMemoryError: Allocation on device", None),
        ("torch.OutOfMemoryError", None),
        ("RuntimeError: CUDA error: out of memory", None),
        ("torch.AcceleratorError: CUDA error: out of memory", None),
        ("RuntimeError: HIP error: out of memory", None),
        ("cuda runtime error (2) : out of memory at /x/THCStorage.cu:66", None),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`",
         None),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", None),
        ("E cuda_dnn.cc:329] Could not create cudnn handle: CUDNN_STATUS_ALLOC_FAILED", None),
        ("RuntimeError: Triton Error [CUDA]: out of memory", None),
        (f"{XLA} allocate 17179869184 bytes.", 16 * GIB),
        (f"{XLA} allocate 16.00GiB.", 16 * GIB),
        ("XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 20029400304 bytes.",
         20029400304),
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB (2147483648B) on device"
         " ordinal 0", 2 * GIB),
        ("RuntimeError: Resource exhausted: Out of memory while trying to allocate 12582912 bytes.",
         12 * MIB),
        (f"ResourceExhaustedError: OOM when allocating tensor with shape[1,9] and type float {TF}",
         None),
        ("ResourceExhaustedError: failed to allocate memory [Op:AddV2]", None),
        ("ResourceExhaustedError: {{function_node __wrapped__AddV2_device_/job:localhost/"
         "replica:0/task:0/device:GPU:0}} failed to allocate memory [Op:AddV2]", None),
        ("cuda_driver.cc:828] failed to allocate 17.79G (19104890880 bytes) from device:"
         " CUDA_ERROR_OUT_OF_MEMORY: out of memory", 19104890880),
        ("cuda_driver.cc:764] failed to alloc 2740606464 bytes unified memory; result:"
         " CUDA_ERROR_OUT_OF_MEMORY: out of memory", 2740606464),
        ("rocm_driver.cc:600] failed to allocate 890.06M (933298432 bytes) from device:"
         " HIP_ERROR_OutOfMemory", 933298432),
        ("Allocator (GPU_0_bfc) ran out of memory trying to allocate 2.00GiB (rounded to"
         " 2147483648)requested by op Conv2D", 2 * GIB),
        ("numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in"
         " CUDA_ERROR_OUT_OF_MEMORY", None),
        ("cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 25,600,000 bytes"
         " (allocated so far: 3,635,267,072 bytes).", 25_600_000),
        ("Exception in main training loop: out of memory to allocate 1073741824 bytes (total 2"
         " bytes)", GIB),
        ("cupy_backends.cuda.api.runtime.CUDARuntimeError: cudaErrorMemoryAllocation: out of"
         " memory", None),
        ("MemoryError: std::bad_alloc: out_of_memory: CUDA error at: /rmm/mr/device/"
         "cuda_memory_resource.hpp:70: cudaErrorMemoryAllocation out of memory", None),
        ("MemoryError: std::bad_alloc: out_of_memory: RMM failure at:/rmm/mr/device/"
         "pool_memory_resource.hpp:196: Maximum pool size exceeded", None),
        ("ERROR: HIPError(code hipErrorOutOfMemory, out of memory)", None),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9866.00 MiB on device 1:"
         " cudaMalloc failed: out of memory", 9866 * MIB),
        ("  what():  parallel_for failed: out of memory", None),
        ("mshadow/stream_gpu-inl.h:184: Check failed: e == cudaSuccess: CUDA: out of memory", None),
        ("[E] [TRT] ../rtSafe/safeRuntime.cpp (25) - Cuda Error in allocate: 2 (out of memory)",
         None),
        ("node:392:494 [2] enqueue.cc:43 NCCL WARN Cuda failure 'out of memory'", None),
        ("node:392:494 [2] include/alloc.h:185 NCCL WARN Failed to CUDA calloc 6291456 bytes",
         6 * MIB),
        ("Out of memory error on GPU 0. Cannot allocate 3.125000GB memory on GPU 0, available"
         " memory is only 117.750000MB.", 3.125 * GIB),
        (f"bfc_arena.cc:376 {ORT} Failed to allocate memory for requested buffer of size 939524096",
         939524096),
        ("ValueError: Free memory on device cuda:0 (7.34/15.49 GiB) on startup is less than desired"
         " GPU memory utilization (0.8, 12.39 GiB).", None),
        ("ValueError: No available memory for the cache blocks. Try increasing", None),
        ("RuntimeError: No executable batch size found, reached zero.", None),
    ],
)  # fmt: skip
def test_the_words_of_each_framework(line: str, wanted: float | None):
    said = out_of_memory(f"epoch 1\nTraceback (most recent call last):\n{line}\n")

    assert said is not None
    assert said.strip("…") in line
    assert wanted_bytes(line) == (None if wanted is None else round(wanted))
    assert wanted_bytes(said) == wanted_bytes(line)


@pytest.mark.parametrize(
    "line",
    [
        "MemoryError",
        "numpy.core._exceptions.MemoryError: Unable to allocate 184. MiB for an array with shape",
        "Resource exhausted: MemoryError: Unable to allocate 184. MiB for an array with shape",
        "Killed",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't"
        " allocate memory: you tried to allocate 132426121216 bytes. Error code 12",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=1.batch",
        "Out of memory: Killed process 4711 (python) total-vm:123456kB",
        "java.lang.OutOfMemoryError: Java heap space",
        "OSError: [Errno 12] Cannot allocate memory",
        "Resource exhausted: OOM when allocating tensor with shape[1,416] and type float on"
        " /job:localhost/replica:0/task:0/device:CPU:0 by allocator cpu",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 131072",
        "XlaRuntimeError: RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 1",
        "grpc.RpcError: StatusCode.RESOURCE_EXHAUSTED: Received message larger than max",
        "google.api_core.exceptions.ResourceExhausted: 429 Quota exceeded",
        "RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled cuda error",
        "ncclUnhandledCudaError: Call to CUDA function failed.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(h)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "step 100 | loss 0.3 | GPU memory 22.1 GiB of 23.6 GiB",
        "Set PYTORCH_CUDA_ALLOC_CONF to avoid CUDA out of memory",
        "If you encounter CUDA out of memory, try to set --tile with a smaller number.",
        "warning: a batch of 64 may cause CUDA out of memory",
        '    if "CUDA out of memory" in str(error):',
        "    except torch.cuda.OutOfMemoryError:",
        "caught CUDA out of memory, retrying with batch size 16",
        "CUDA out of memory: reducing batch size to 16",
        "OOM: CUDA error: out of memory, skipping this batch",
        "bfc_allocator.cc:239] Allocator (GPU_0_bfc) ran out of memory trying to allocate 3.46GiB"
        " with freed_by_count=0. The caller indicates that this is not a failure, but may mean",
        "",
    ],
)
def test_what_only_resembles_them(line: str):
    assert out_of_memory(f"epoch 1\n{line}\nbye\n") is None


def test_what_the_next_line_copes_with_is_no_failure():
    log = "| WARNING: ran out of memory with exception: CUDA out of memory. Tried to\n{}\nstep 2\n"

    assert out_of_memory(log.format(" Skipping batch")) is None
    assert out_of_memory(log.format("attempting to recover from OOM in forward pass")) is None
    assert out_of_memory(log.format("")) is not None
    assert out_of_memory(log.format("Try reducing the batch size.")) is not None
    assert out_of_memory(log.format("It is fixed by reducing the batch size.")) is not None


@pytest.mark.parametrize(("lines", "counts"), [(0, True), (60, True), (61, False)])
def test_what_was_survived_for_long_is_no_failure(lines: int, counts: bool):
    log = f"{TORCH}\n" + "step | loss 0.3\n\n" * lines

    assert (out_of_memory(log) is not None) == counts


def test_progress_in_one_line_is_progress():
    bar = "\r".join(f"{percent}%|####" for percent in range(100))

    assert out_of_memory(f"{TORCH}\n{bar}\nValueError: x\n") is None


def test_tracebacks_and_dumps_below_do_not_count():
    dump = "".join(f"\tBuffer {n}:\n\t\tSize: 2.00GiB\n\t\t====\n" for n in range(500))

    assert out_of_memory(f"{XLA} allocate 17179869184 bytes.\nPeak buffers:\n{dump}") is not None


def test_the_last_line_that_says_so_is_shown():
    log = TORCH + "\n" + TORCH.replace("2.50 GiB", "3.50 GiB") + "\nfailed\n"

    said = out_of_memory(log)

    assert said is not None
    assert wanted_bytes(said) == 3.5 * GIB


@pytest.mark.parametrize(
    "log",
    [
        "RuntimeError: CUDA error: device-side assert triggered\n{}",
        "Indexing.cu:1146: indexSelect: block: [1,0,0]: Assertion `srcIndex < size` failed.\n{}",
    ],
)
def test_a_device_that_an_assertion_broke_says_what_it_likes(log: str):
    cublas = "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"

    assert out_of_memory(log.format(cublas)) is None
    assert out_of_memory(log.format(TORCH)) is not None


def test_the_hint_at_assertions_below_every_error_is_no_assertion():
    log = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED\nCompile with `TORCH_USE_CUDA_DSA` to enable"

    assert out_of_memory(f"{log} device-side assertions.\n") is not None


def test_the_line_fits_on_a_screen_and_carries_nothing_that_a_terminal_acts_on():
    colours = (
        "\x1b[1;31mtorch.OutOfMemoryError\x1b[0m: \x1b[35mCUDA out of memory\x1b[0m. \x07 \udcff"
    )
    deep = '{"level": "' + "x" * 3000 + '", "error": "' + TORCH + '"}'

    plain, shortened = out_of_memory(colours), out_of_memory(deep)

    assert plain == r"torch.OutOfMemoryError: CUDA out of memory. \x07 \xff"
    assert shortened is not None
    assert len(shortened) <= 160
    assert "CUDA out of memory. Tried to allocate 2.50 GiB" in shortened


@pytest.mark.parametrize(
    "line",
    ["", "allocate", "allocate 12", "tried to allocate GiB", "allocate 99999999 TiB",
     "allocate 0 bytes", f"allocate {'9' * 5000} bytes", f"allocate 1 GiB ({'9' * 5000} bytes)x",
     "requested buffer of size 4585490524328388608", "step 3 GiB"],
)  # fmt: skip
def test_lines_that_do_not_say_how_much(line: str):
    assert wanted_bytes(line) in {None, GIB}


@given(st.text() | st.lists(st.sampled_from([TORCH, XLA, ORT, TF, "\n", "\r", "x "])).map("".join))
def test_any_log_is_read(log: str):
    said = out_of_memory(log)

    assert said is None or (said.isprintable() and 0 < len(said) <= 160)
    assert wanted_bytes(log) is None or isinstance(wanted_bytes(log), int)


@pytest.mark.parametrize(
    "unit",
    ["RESOURCE_EXHAUSTED: ", "BFCArena ", "RMM failure at:", "Free memory on device ", "allocate ",
     "CUDA out of memory if you ", ": Assertion `", "out of memory allocating 1", "\x1b[", "9,"],
)  # fmt: skip
def test_a_long_line_takes_no_long_time(unit: str):
    log = unit * (2**16 // len(unit))
    began = time.perf_counter()

    out_of_memory(log)
    wanted_bytes(log)

    assert time.perf_counter() - began < 2
