/*
 * A stand-in for NVIDIA's driver library that unmodified pynvml can load.
 *
 * It owns no truth of its own: every call re-reads the file `state` and the folder `procs` in the
 * directory that the environment variable NVML_STUB_DIR names, so a test changes the machine by
 * replacing a file. Words it does not know end the process: a test must not silently mis-spell.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25
};

#define MAX_GPUS 64
#define MAX_MIGS 128
#define MAX_FAULTS 128
#define MAX_HANDLES 512
#define MAX_SAMPLES 2048
#define MAX_MIG_SLOTS 7
#define WORD 96
#define NO_INSTANCE 0xFFFFFFFFu
#define MEMORY_V2 0x02000028u
#define GPU_UTILIZATION_SAMPLES 1
#define VALUE_IS_UNSIGNED_INT 1
#define FIELD_RECOVERY_ACTION 230

struct gpu {
    long long index, total, used, reserved, util, error, handle_error, compute_mode, recovery;
    long long remap_failure, clock_reasons, history_util, mig, bus, persistence;
    long long no_process_samples; /* the answer where there are none; -1: not supported */
    double history, history_from;
    char uuid[WORD], name[WORD], history_at[2048], process_samples[2048];
};

struct mig {
    long long parent, slot, total, used, reserved, gi, ci, slices;
    char uuid[WORD], name[WORD];
};

struct fault {
    bool hangs;
    long long code;
    double seconds;
    char call[WORD], gpu[WORD];
};

struct state {
    char driver[WORD];
    long long init, count_error;
    int gpu_count, mig_count, fault_count;
    struct gpu gpus[MAX_GPUS];
    struct mig migs[MAX_MIGS];
    struct fault faults[MAX_FAULTS];
};

struct target { /* mig is NULL for a whole GPU; gpu is the parent of an instance */
    const struct gpu *gpu;
    const struct mig *mig;
};

struct process {
    long long pid, shown_pid, mem, mem_visible, start, util;
    char gpu[WORD], kind[WORD];
    const struct mig *mig;
};

/* Layouts as in nvml.h. */
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct utilization { unsigned gpu, memory; };
union value { double d; unsigned ui; unsigned long long ull; };
struct sample { unsigned long long at; union value value; };
struct process_info { unsigned pid; unsigned long long mem; unsigned gi, ci; };
struct process_sample { unsigned pid; unsigned long long at; unsigned sm, memory, encoder, decoder; };
struct pci_info {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct field_value {
    unsigned field, scope;
    long long timestamp, latency;
    int type, code;
    union value value;
};
struct attributes {
    unsigned sms, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mib;
};

/* Every call that a `fail` or `hang` line may name, with or without its version suffix. */
static const char *const CALLS[] = {
    "nvmlInitWithFlags", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion",
    "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleByPciBusId_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetName",
    "nvmlDeviceGetIndex", "nvmlDeviceGetMinorNumber", "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetSamples", "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2",
    "nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetComputeMode", "nvmlDeviceGetPersistenceMode", "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetRemappedRows", "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId", "nvmlDeviceGetAttributes_v2"};

#define LENGTH(array) ((int)(sizeof(array) / sizeof((array)[0])))

__attribute__((noreturn, format(printf, 1, 2))) static void misspelt(const char *format, ...)
{
    struct rlimit no_core = {0, 0};
    va_list arguments;

    va_start(arguments, format);
    fputs("nvml_stub: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    setrlimit(RLIMIT_CORE, &no_core);
    abort();
}

/* ---- Reading the state file ---- */

enum kind { TEXT, INTEGER, REAL };

struct field {
    const char *key;
    enum kind kind;
    size_t offset, size;
};

#define FIELD(type, name, kind) {#name, kind, offsetof(struct type, name), sizeof(((struct type *)0)->name)}

static const struct field GPU_FIELDS[] = {
    FIELD(gpu, index, INTEGER), FIELD(gpu, uuid, TEXT), FIELD(gpu, name, TEXT),
    FIELD(gpu, total, INTEGER), FIELD(gpu, used, INTEGER), FIELD(gpu, reserved, INTEGER),
    FIELD(gpu, util, INTEGER), FIELD(gpu, error, INTEGER), FIELD(gpu, handle_error, INTEGER),
    FIELD(gpu, compute_mode, INTEGER), FIELD(gpu, recovery, INTEGER),
    FIELD(gpu, remap_failure, INTEGER), FIELD(gpu, clock_reasons, INTEGER),
    FIELD(gpu, history, REAL), FIELD(gpu, history_util, INTEGER), FIELD(gpu, history_at, TEXT),
    FIELD(gpu, history_from, REAL), FIELD(gpu, mig, INTEGER), FIELD(gpu, bus, INTEGER),
    FIELD(gpu, persistence, INTEGER), FIELD(gpu, process_samples, TEXT),
    FIELD(gpu, no_process_samples, INTEGER)};
static const struct field MIG_FIELDS[] = {
    FIELD(mig, parent, INTEGER), FIELD(mig, slot, INTEGER), FIELD(mig, uuid, TEXT),
    FIELD(mig, name, TEXT), FIELD(mig, total, INTEGER), FIELD(mig, used, INTEGER),
    FIELD(mig, reserved, INTEGER), FIELD(mig, gi, INTEGER), FIELD(mig, ci, INTEGER),
    FIELD(mig, slices, INTEGER)};
static const struct field FAIL_FIELDS[] = {FIELD(fault, gpu, TEXT), FIELD(fault, code, INTEGER)};
static const struct field HANG_FIELDS[] = {FIELD(fault, gpu, TEXT), FIELD(fault, seconds, REAL)};
static const struct field PROCESS_FIELDS[] = {
    FIELD(process, pid, INTEGER), FIELD(process, gpu, TEXT), FIELD(process, mem, INTEGER),
    FIELD(process, kind, TEXT), FIELD(process, mem_visible, INTEGER),
    FIELD(process, shown_pid, INTEGER), FIELD(process, start, INTEGER),
    FIELD(process, util, INTEGER)};

static void copy_text(char *into, size_t size, const char *text)
{
    if (strlen(text) >= size)
        misspelt("too long: %s", text);
    memcpy(into, text, strlen(text) + 1);
}

static long long integer(const char *key, const char *text)
{
    char *end;
    long long number = strtoll(text, &end, 10);

    if (*text == '\0' || *end != '\0')
        misspelt("not an integer: %s=%s", key, text);
    return number;
}

static double real(const char *key, const char *text)
{
    char *end;
    double number = strtod(text, &end);

    if (*text == '\0' || *end != '\0')
        misspelt("not a number: %s=%s", key, text);
    return number;
}

static void assign(const struct field *field, char *record, const char *text)
{
    long long number;
    double fraction;

    switch (field->kind) {
    case TEXT:
        copy_text(record + field->offset, field->size, text);
        break;
    case INTEGER:
        number = integer(field->key, text);
        memcpy(record + field->offset, &number, sizeof number);
        break;
    case REAL:
        fraction = real(field->key, text);
        memcpy(record + field->offset, &fraction, sizeof fraction);
        break;
    }
}

static void read_fields(char *words, const struct field *fields, int count, void *record)
{
    char *rest = NULL;

    for (char *word = strtok_r(words, " \t\n", &rest); word; word = strtok_r(NULL, " \t\n", &rest)) {
        char *equals = strchr(word, '=');
        int i = 0;

        if (equals == NULL)
            misspelt("expected key=value, found: %s", word);
        *equals = '\0';
        while (i < count && strcmp(fields[i].key, word) != 0)
            i++;
        if (i == count)
            misspelt("unknown word: %s", word);
        assign(&fields[i], record, equals + 1);
    }
}

static void spaces_for_underscores(char *text)
{
    for (; *text; text++)
        if (*text == '_')
            *text = ' ';
}

static void read_gpu(struct state *state, char *words)
{
    struct gpu *gpu = &state->gpus[state->gpu_count];

    if (state->gpu_count++ == MAX_GPUS)
        misspelt("more than %d GPUs", MAX_GPUS);
    *gpu = (struct gpu){.index = -1, .total = 85899345920LL, .history = 20, .bus = -1,
                        .persistence = 1, .no_process_samples = NOT_FOUND, .name = "Stub_A100"};
    read_fields(words, GPU_FIELDS, LENGTH(GPU_FIELDS), gpu);
    if (gpu->index < 0 || gpu->uuid[0] == '\0')
        misspelt("a gpu line needs index and uuid");
    if (gpu->bus < 0)
        gpu->bus = gpu->index + 1;
    spaces_for_underscores(gpu->name);
}

static void read_mig(struct state *state, char *words)
{
    struct mig *mig = &state->migs[state->mig_count];

    if (state->mig_count++ == MAX_MIGS)
        misspelt("more than %d instances", MAX_MIGS);
    *mig = (struct mig){.parent = -1, .slot = -1, .total = 10737418240LL, .slices = 1,
                        .name = "Stub_A100_MIG_1g.10gb"};
    read_fields(words, MIG_FIELDS, LENGTH(MIG_FIELDS), mig);
    if (mig->parent < 0 || mig->slot < 0 || mig->slot >= MAX_MIG_SLOTS || mig->uuid[0] == '\0')
        misspelt("a mig line needs parent, uuid and a slot from 0 to %d", MAX_MIG_SLOTS - 1);
    spaces_for_underscores(mig->name);
}

/* `nvmlDeviceGetMemoryInfo` names all versions of that call, `..._v2` only that one. */
static bool names_call(const char *named, const char *call)
{
    size_t length = strlen(named);

    if (strncmp(named, call, length) != 0)
        return false;
    call += length;
    return *call == '\0' || (call[0] == '_' && call[1] == 'v' && isdigit(call[2]) && !call[3]);
}

static bool known_call(const char *named)
{
    for (int i = 0; i < LENGTH(CALLS); i++)
        if (names_call(named, CALLS[i]))
            return true;
    return false;
}

static void read_fault(struct state *state, bool hangs, char *words)
{
    struct fault *fault = &state->faults[state->fault_count];
    char *rest = NULL;
    char *call = strtok_r(words, " \t\n", &rest);

    if (state->fault_count++ == MAX_FAULTS)
        misspelt("more than %d faults", MAX_FAULTS);
    if (call == NULL || !known_call(call))
        misspelt("unknown call: %s", call ? call : "");
    *fault = (struct fault){.hangs = hangs, .gpu = "*"};
    copy_text(fault->call, sizeof fault->call, call);
    if (hangs)
        read_fields(rest, HANG_FIELDS, LENGTH(HANG_FIELDS), fault);
    else
        read_fields(rest, FAIL_FIELDS, LENGTH(FAIL_FIELDS), fault);
}

static const char *only_word(char *words)
{
    char *rest = NULL;
    char *word = strtok_r(words, " \t\n", &rest);

    if (word == NULL || strtok_r(NULL, " \t\n", &rest) != NULL)
        misspelt("expected exactly one word");
    return word;
}

static void read_line(struct state *state, char *line)
{
    char *rest = NULL, *word;

    line[strcspn(line, "#")] = '\0';
    word = strtok_r(line, " \t\n", &rest);
    if (word == NULL)
        return;
    if (strcmp(word, "gpu") == 0)
        read_gpu(state, rest);
    else if (strcmp(word, "mig") == 0)
        read_mig(state, rest);
    else if (strcmp(word, "fail") == 0)
        read_fault(state, false, rest);
    else if (strcmp(word, "hang") == 0)
        read_fault(state, true, rest);
    else if (strcmp(word, "driver") == 0)
        copy_text(state->driver, sizeof state->driver, only_word(rest));
    else if (strcmp(word, "init") == 0)
        state->init = integer(word, only_word(rest));
    else if (strcmp(word, "count_error") == 0)
        state->count_error = integer(word, only_word(rest));
    else
        misspelt("unknown word: %s", word);
}

static bool stub_path(char *into, size_t size, const char *name)
{
    const char *directory = getenv("NVML_STUB_DIR");

    return directory != NULL && snprintf(into, size, "%s/%s", directory, name) < (int)size;
}

static bool load(struct state *state)
{
    char path[4096];
    char *line = NULL;
    size_t size = 0;
    FILE *file = stub_path(path, sizeof path, "state") ? fopen(path, "re") : NULL;

    if (file == NULL)
        return false;
    memset(state, 0, offsetof(struct state, gpus));
    strcpy(state->driver, "580.95.05");
    while (getline(&line, &size, file) >= 0)
        read_line(state, line);
    free(line);
    fclose(file);
    return true;
}

/* ---- Handles: a stable pointer per UUID, whatever the state file does later ---- */

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static char handles[MAX_HANDLES][WORD];
static int handle_count;

static void *handle_of(const char *uuid)
{
    int i = 0;

    pthread_mutex_lock(&handles_lock);
    while (i < handle_count && strcmp(handles[i], uuid) != 0)
        i++;
    if (i == MAX_HANDLES)
        misspelt("more than %d UUIDs in one process", MAX_HANDLES);
    if (i == handle_count)
        strcpy(handles[handle_count++], uuid);
    pthread_mutex_unlock(&handles_lock);
    return handles[i];
}

static const char *uuid_of(const void *handle)
{
    const char *uuid = handle;
    ptrdiff_t offset = uuid - handles[0];

    if (uuid == NULL || offset < 0 || offset >= (ptrdiff_t)sizeof handles || offset % WORD != 0)
        return NULL;
    return uuid;
}

/* ---- What every call does first ---- */

static int initialised_count;
static pid_t initialised_by; /* a fork has to initialise again: NVML is not fork-safe */

static bool initialised(void)
{
    return initialised_count > 0 && initialised_by == getpid();
}

static double monotonic(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static const struct gpu *gpu_at(const struct state *state, long long index)
{
    for (int i = 0; i < state->gpu_count; i++)
        if (state->gpus[i].index == index)
            return &state->gpus[i];
    return NULL;
}

static bool find_uuid(const struct state *state, const char *uuid, struct target *target)
{
    *target = (struct target){NULL, NULL};
    for (int i = 0; uuid && i < state->gpu_count; i++)
        if (strcmp(state->gpus[i].uuid, uuid) == 0)
            target->gpu = &state->gpus[i];
    for (int i = 0; uuid && i < state->mig_count; i++)
        if (strcmp(state->migs[i].uuid, uuid) == 0) {
            target->mig = &state->migs[i];
            target->gpu = gpu_at(state, target->mig->parent);
        }
    return target->gpu != NULL;
}

static bool names_target(const char *named, const struct target *target)
{
    char index[24];

    if (strcmp(named, "*") == 0)
        return true;
    if (target->mig != NULL)
        return strcmp(named, target->mig->uuid) == 0;
    if (target->gpu == NULL)
        return false;
    snprintf(index, sizeof index, "%lld", target->gpu->index);
    return strcmp(named, index) == 0 || strcmp(named, target->gpu->uuid) == 0;
}

static const struct fault *fault_of(const struct state *state, bool hangs, const char *call,
                                    const struct target *target)
{
    for (int i = 0; i < state->fault_count; i++) {
        const struct fault *fault = &state->faults[i];

        if (fault->hangs == hangs && names_call(fault->call, call) &&
            names_target(fault->gpu, target))
            return fault;
    }
    return NULL;
}

/* Which device a call is about, by whichever of these the caller gave. */
struct about {
    const char *uuid;   /* NULL: see index */
    long long index;    /* -1: see bus_id */
    const char *bus_id; /* NULL: about no device */
};

static bool on_bus(const struct gpu *gpu, const char *bus_id)
{
    char text[32];

    snprintf(text, sizeof text, "00000000:%02llX:00.0", (unsigned long long)gpu->bus);
    return strcasecmp(bus_id, text) == 0 || strcasecmp(bus_id, text + 4) == 0;
}

static bool find(const struct state *state, const struct about *about, struct target *target)
{
    *target = (struct target){NULL, NULL};
    if (about->uuid != NULL)
        return find_uuid(state, about->uuid, target);
    if (about->index >= 0)
        target->gpu = gpu_at(state, about->index);
    for (int i = 0; about->bus_id && i < state->gpu_count; i++)
        if (on_bus(&state->gpus[i], about->bus_id))
            target->gpu = &state->gpus[i];
    return target->gpu != NULL;
}

/* Reads the state, waits out a `hang`, answers a `fail`. A target that is not there is no error. */
static int settle(const char *call, const struct about *about, struct state *state,
                  struct target *target)
{
    const struct timespec fifty_ms = {0, 50 * 1000 * 1000};
    const double since = monotonic();
    const struct fault *fault;

    if (!known_call(call))
        misspelt("the stub's own table lacks %s", call);
    for (;;) {
        if (!load(state))
            return DRIVER_NOT_LOADED;
        find(state, about, target);
        fault = fault_of(state, true, call, target);
        if (fault == NULL || monotonic() - since >= fault->seconds)
            break;
        nanosleep(&fifty_ms, NULL);
    }
    fault = fault_of(state, false, call, target);
    return fault ? (int)fault->code : SUCCESS;
}

static int enter(const char *call, const void *handle, struct state *state, struct target *target)
{
    const struct about about = {uuid_of(handle), -1, NULL};
    int code;

    if (!initialised())
        return UNINITIALIZED;
    if (about.uuid == NULL)
        return INVALID_ARGUMENT;
    code = settle(call, &about, state, target);
    if (code != SUCCESS)
        return code;
    if (target->gpu == NULL) /* a destroyed instance, or a GPU that fell off the bus */
        return strncmp(about.uuid, "MIG-", 4) == 0 ? INVALID_ARGUMENT : GPU_IS_LOST;
    return (int)target->gpu->error;
}

static int enter_system(const char *call, struct state *state)
{
    const struct about nothing = {NULL, -1, NULL};
    struct target none;

    return initialised() ? settle(call, &nothing, state, &none) : UNINITIALIZED;
}

#define ENTER(handle)                                          \
    struct state state;                                        \
    struct target target;                                      \
    const int entered = enter(__func__, handle, &state, &target); \
    if (entered != SUCCESS)                                    \
        return entered

static int answer(char *into, unsigned size, const char *text)
{
    if (into == NULL)
        return INVALID_ARGUMENT;
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(into, text);
    return SUCCESS;
}

/* ---- Processes ---- */

/* A dead pid or a zombie holds no memory: that is how `kill -9` frees it. */
static bool alive(const struct process *process)
{
    char path[64], text[1024];
    char status = 'X';
    long long start = 0;
    const char *after_name;
    ssize_t length;
    int file;

    snprintf(path, sizeof path, "/proc/%lld/stat", process->pid);
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = '\0';
    after_name = strrchr(text, ')');
    if (after_name == NULL ||
        sscanf(after_name + 1,
               " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lld",
               &status, &start) != 2)
        return false;
    if (process->start >= 0 && process->start != start) /* the pid was given to somebody else */
        return false;
    return status != 'Z' && status != 'X';
}

static bool read_process(const char *name, struct process *process)
{
    char path[4096], inside[512], line[1024];
    FILE *file;
    bool found;

    snprintf(inside, sizeof inside, "procs/%s", name);
    file = stub_path(path, sizeof path, inside) ? fopen(path, "re") : NULL;
    if (file == NULL) /* unregistered since the folder was listed */
        return false;
    found = fgets(line, sizeof line, file) != NULL;
    fclose(file);
    if (!found)
        misspelt("empty file procs/%s", name);
    *process = (struct process){.pid = -1, .shown_pid = -1, .start = -1, .mem_visible = 1,
                                .util = -1, .kind = "compute"};
    read_fields(line, PROCESS_FIELDS, LENGTH(PROCESS_FIELDS), process);
    if (process->pid < 0 || process->gpu[0] == '\0')
        misspelt("procs/%s needs pid and gpu", name);
    if (strcmp(process->kind, "compute") != 0 && strcmp(process->kind, "graphics") != 0 &&
        strcmp(process->kind, "mps") != 0)
        misspelt("unknown word: kind=%s", process->kind);
    return true;
}

/* A whole GPU also shows what runs on its instances; an instance shows only its own. */
static bool runs_on(struct process *process, const struct state *state, const struct target *target)
{
    struct target own;

    if (!find_uuid(state, process->gpu, &own) || own.gpu != target->gpu)
        return false;
    process->mig = own.mig;
    return target->mig == NULL || target->mig == own.mig;
}

/* The caller frees *found. */
static unsigned live_processes(const struct state *state, const struct target *target,
                               struct process **found)
{
    char path[4096];
    unsigned count = 0, room = 0;
    DIR *folder = stub_path(path, sizeof path, "procs") ? opendir(path) : NULL;

    *found = NULL;
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        struct process process;

        if (entry->d_name[0] == '.' || !read_process(entry->d_name, &process) ||
            !runs_on(&process, state, target) || !alive(&process))
            continue;
        if (count == room) {
            room = room * 2 + 16;
            *found = realloc(*found, room * sizeof process);
            if (*found == NULL)
                misspelt("out of memory");
        }
        (*found)[count++] = process;
    }
    if (folder != NULL)
        closedir(folder);
    return count;
}

static int list_processes(const char *call, const void *handle, const char *kind, unsigned *count,
                          struct process_info *infos)
{
    struct state state;
    struct target target;
    struct process *live;
    unsigned room, all, matching = 0;
    int code = enter(call, handle, &state, &target);

    if (code != SUCCESS)
        return code;
    if (count == NULL)
        return INVALID_ARGUMENT;
    room = infos ? *count : 0;
    all = live_processes(&state, &target, &live);
    for (unsigned i = 0; i < all; i++) {
        const struct process *process = &live[i];

        if (strcmp(process->kind, kind) != 0)
            continue;
        if (matching < room)
            infos[matching] = (struct process_info){
                (unsigned)(process->shown_pid >= 0 ? process->shown_pid : process->pid),
                process->mem_visible ? (unsigned long long)process->mem : ~0ULL,
                process->mig ? (unsigned)process->mig->gi : NO_INSTANCE,
                process->mig ? (unsigned)process->mig->ci : NO_INSTANCE};
        matching++;
    }
    free(live);
    *count = matching;
    return matching > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESS_LIST(symbol, kind)                                               \
    int symbol(void *handle, unsigned *count, struct process_info *infos)        \
    {                                                                            \
        return list_processes(__func__, handle, kind, count, infos);             \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps")
#ifndef STUB_OLD_DRIVER
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

/* ---- Library and system ---- */

static int initialise(void)
{
    const struct about nothing = {NULL, -1, NULL};
    struct state state;
    struct target none;
    int code = settle("nvmlInitWithFlags", &nothing, &state, &none);

    if (code == SUCCESS)
        code = (int)state.init;
    if (code != SUCCESS)
        return code;
    if (initialised_by != getpid())
        initialised_count = 0;
    initialised_by = getpid();
    initialised_count++;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    return initialise();
}

int nvmlInit_v2(void)
{
    return initialise();
}

int nvmlShutdown(void)
{
    struct state state;
    int code = enter_system(__func__, &state);

    if (code == UNINITIALIZED)
        return code;
    initialised_count--;
    return code == DRIVER_NOT_LOADED ? SUCCESS : code;
}

const char *nvmlErrorString(int code)
{
    static const char *const words[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "IRQ Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "GPU access blocked by the operating system", "Driver/library version mismatch",
        "In use by another client", "Insufficient Memory", "No data", "ECC not supported with vGPU",
        "Insufficient Resources", "Frequency Not Supported", "Argument Version Mismatch"};

    return code >= 0 && code < LENGTH(words) ? words[code] : "Unknown Error";
}

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    struct state state;
    int code = enter_system(__func__, &state);

    return code == SUCCESS ? answer(version, length, state.driver) : code;
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    struct state state;
    char text[WORD + 4];
    int code = enter_system(__func__, &state);

    if (code != SUCCESS)
        return code;
    snprintf(text, sizeof text, "13.%s", state.driver);
    return answer(version, length, text);
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    struct state state;
    int code = enter_system(__func__, &state);

    if (code != SUCCESS || state.count_error != SUCCESS)
        return code ? code : (int)state.count_error;
    *count = (unsigned)state.gpu_count;
    return SUCCESS;
}

/* ---- Finding devices: these still answer for a lost GPU, unless handle_error says otherwise ---- */

static int hand_out(const char *call, const struct about *about, int when_absent, void **handle)
{
    struct state state;
    struct target target;
    int code;

    if (!initialised())
        return UNINITIALIZED;
    code = settle(call, about, &state, &target);
    if (code != SUCCESS)
        return code;
    if (target.gpu == NULL)
        return when_absent;
    if (target.gpu->handle_error != SUCCESS)
        return (int)target.gpu->handle_error;
    *handle = handle_of(target.mig ? target.mig->uuid : target.gpu->uuid);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    const struct about about = {NULL, index, NULL};

    return hand_out(__func__, &about, INVALID_ARGUMENT, handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    const struct about about = {uuid, -1, NULL};

    return uuid ? hand_out(__func__, &about, NOT_FOUND, handle) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **handle)
{
    const struct about about = {NULL, -1, bus_id};

    return bus_id ? hand_out(__func__, &about, NOT_FOUND, handle) : INVALID_ARGUMENT;
}

/* ---- What a device says of itself ---- */

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length)
{
    ENTER(handle);
    return answer(uuid, length, target.mig ? target.mig->uuid : target.gpu->uuid);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length)
{
    ENTER(handle);
    return answer(name, length, target.mig ? target.mig->name : target.gpu->name);
}

int nvmlDeviceGetIndex(void *handle, unsigned *index)
{
    ENTER(handle);
    *index = (unsigned)(target.mig ? target.mig->slot : target.gpu->index);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor)
{
    ENTER(handle);
    if (target.mig != NULL)
        return INVALID_ARGUMENT;
    *minor = (unsigned)target.gpu->index;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(void *handle, struct pci_info *info)
{
    ENTER(handle);
    if (target.mig != NULL)
        return INVALID_ARGUMENT;
    *info = (struct pci_info){.bus = (unsigned)target.gpu->bus, .device_id = 0x20B210DEu};
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus & 0xFFu);
    snprintf(info->legacy, sizeof info->legacy, "0000:%02X:00.0", info->bus & 0xFFu);
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(void *handle, int *mode)
{
    ENTER(handle);
    *mode = (int)target.gpu->compute_mode;
    return SUCCESS;
}

int nvmlDeviceGetPersistenceMode(void *handle, int *mode)
{
    ENTER(handle);
    *mode = (int)target.gpu->persistence;
    return SUCCESS;
}

/* ---- Memory ---- */

static struct memory_v2 memory_of(const struct state *state, const struct target *target)
{
    const struct gpu *gpu = target->gpu;
    const struct mig *mig = target->mig;
    struct memory_v2 memory = {0, 0, 0, 0, 0};
    struct process *live;
    unsigned count = live_processes(state, target, &live);

    memory.total = (unsigned long long)(mig ? mig->total : gpu->total);
    memory.reserved = (unsigned long long)(mig ? mig->reserved : gpu->reserved);
    memory.used = (unsigned long long)(mig ? mig->used : gpu->used);
    for (int i = 0; mig == NULL && i < state->mig_count; i++)
        if (state->migs[i].parent == gpu->index)
            memory.used += (unsigned long long)state->migs[i].used;
    for (unsigned i = 0; i < count; i++)
        memory.used += (unsigned long long)live[i].mem;
    free(live);
    if (memory.total > memory.reserved + memory.used)
        memory.free = memory.total - memory.reserved - memory.used;
    return memory;
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory)
{
    ENTER(handle);
    const struct memory_v2 split = memory_of(&state, &target);

    *memory = (struct memory){split.total, split.free, split.used + split.reserved};
    return SUCCESS;
}

#ifndef STUB_OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *memory)
{
    ENTER(handle);
    if (memory->version != MEMORY_V2)
        return ARGUMENT_VERSION_MISMATCH;
    *memory = memory_of(&state, &target);
    memory->version = MEMORY_V2;
    return SUCCESS;
}
#endif

/* ---- Utilisation ---- */

static bool has_utilisation(const struct target *target)
{
    return target->mig == NULL && target->gpu->mig != 1;
}

int nvmlDeviceGetUtilizationRates(void *handle, struct utilization *rates)
{
    ENTER(handle);
    if (!has_utilisation(&target) || target.gpu->util < 0)
        return NOT_SUPPORTED;
    *rates = (struct utilization){(unsigned)target.gpu->util, 0};
    return SUCCESS;
}

static int older_first(const void *left, const void *right)
{
    const struct sample *a = left, *b = right;

    return (a->at > b->at) - (a->at < b->at);
}

static double unix_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int add_sample(struct sample *samples, int count, unsigned long long at, long long percent)
{
    if (count == MAX_SAMPLES)
        misspelt("more than %d samples", MAX_SAMPLES);
    samples[count].value.ull = 0;
    samples[count].at = at;
    samples[count].value.ui = (unsigned)percent;
    return count + 1;
}

static int listed_samples(const struct gpu *gpu, unsigned long long last, struct sample *samples)
{
    const double from = gpu->history_from > 0 ? gpu->history_from : unix_seconds();
    const double now = unix_seconds();
    char list[sizeof gpu->history_at];
    char *rest = NULL;
    int count = 0;

    strcpy(list, gpu->history_at);
    for (char *pair = strtok_r(list, ",", &rest); pair; pair = strtok_r(NULL, ",", &rest)) {
        char *colon = strchr(pair, ':');
        double at;

        if (colon == NULL)
            misspelt("history_at takes SECONDS_AGO:PERCENT, found %s", pair);
        *colon = '\0';
        at = from - real("history_at", pair);
        if (at <= now && (unsigned long long)(at * 1e6) > last)
            count = add_sample(samples, count, (unsigned long long)(at * 1e6),
                               integer("history_at", colon + 1));
    }
    qsort(samples, (size_t)count, sizeof *samples, older_first);
    return count;
}

/* On a fixed grid of sixths of a second, so that a sample keeps its timestamp between calls. */
static int regular_samples(const struct gpu *gpu, unsigned long long last, struct sample *samples)
{
    const unsigned long long now = (unsigned long long)(unix_seconds() * 1e6);
    const unsigned long long span = (unsigned long long)(gpu->history * 1e6);
    const unsigned long long after = now - span > last ? now - span : last;
    int count = 0;

    for (unsigned long long tick = after * 6 / 1000000; tick * 1000000 / 6 <= now; tick++)
        if (tick * 1000000 / 6 > after)
            count = add_sample(samples, count, tick * 1000000 / 6, gpu->history_util);
    return count;
}

int nvmlDeviceGetSamples(void *handle, int type, unsigned long long last, int *value_type,
                         unsigned *count, struct sample *into)
{
    ENTER(handle);
    struct sample samples[MAX_SAMPLES];
    unsigned found;

    if (type != GPU_UTILIZATION_SAMPLES || !has_utilisation(&target) || target.gpu->history < 0)
        return NOT_SUPPORTED;
    found = (unsigned)(target.gpu->history_at[0] ? listed_samples(target.gpu, last, samples)
                                                 : regular_samples(target.gpu, last, samples));
    if (found == 0)
        return NOT_FOUND;
    *value_type = VALUE_IS_UNSIGNED_INT;
    if (into != NULL) {
        /* A sample born since the probe waits for the next call: the oldest come first. */
        found = found < *count ? found : *count;
        memcpy(into, samples, found * sizeof *into);
    }
    *count = found;
    return SUCCESS;
}

/* The driver credits its samples, here one every sixth of a second, to processes. */
static unsigned long long newest_tick(void)
{
    const unsigned long long now = (unsigned long long)(unix_seconds() * 1e6);

    return now * 6 / 1000000 * 1000000 / 6;
}

static int add_process_sample(struct process_sample *samples, int count, long long pid,
                              unsigned long long at, long long percent)
{
    if (count == MAX_SAMPLES)
        misspelt("more than %d samples", MAX_SAMPLES);
    samples[count] = (struct process_sample){(unsigned)pid, at, (unsigned)percent, 0, 0, 0};
    return count + 1;
}

static int samples_of_live(const struct state *state, const struct target *target,
                           unsigned long long last, struct process_sample *samples)
{
    const unsigned long long tick = newest_tick();
    struct process *live;
    const unsigned all = live_processes(state, target, &live);
    int count = 0;

    for (unsigned i = 0; i < all; i++)
        if (live[i].util >= 0 && tick > last)
            count = add_process_sample(samples, count,
                                       live[i].shown_pid >= 0 ? live[i].shown_pid : live[i].pid,
                                       tick, live[i].util);
    free(live);
    return count;
}

static int listed_process_samples(const struct gpu *gpu, unsigned long long last,
                                  struct process_sample *samples)
{
    char list[sizeof gpu->process_samples];
    char *rest = NULL;
    int count = 0;

    strcpy(list, gpu->process_samples);
    for (char *entry = strtok_r(list, ",", &rest); entry; entry = strtok_r(NULL, ",", &rest)) {
        long long pid, percent;
        unsigned long long at;
        char more;

        if (sscanf(entry, "%lld:%llu:%lld%c", &pid, &at, &percent, &more) != 3)
            misspelt("process_samples takes PID:MICROSECONDS:PERCENT, found %s", entry);
        if (at > last)
            count = add_process_sample(samples, count, pid, at, percent);
    }
    return count;
}

int nvmlDeviceGetProcessUtilization(void *handle, struct process_sample *into, unsigned *count,
                                    unsigned long long last)
{
    ENTER(handle);
    struct process_sample samples[MAX_SAMPLES];
    const unsigned room = into ? *count : 0;
    unsigned found;

    if (!has_utilisation(&target) || target.gpu->no_process_samples < 0)
        return NOT_SUPPORTED;
    found = (unsigned)(target.gpu->process_samples[0]
                           ? listed_process_samples(target.gpu, last, samples)
                           : samples_of_live(&state, &target, last, samples));
    *count = found;
    if (found == 0)
        return (int)target.gpu->no_process_samples;
    if (found > room)
        return INSUFFICIENT_SIZE;
    memcpy(into, samples, found * sizeof *into);
    return SUCCESS;
}

/* ---- Health ---- */

int nvmlDeviceGetFieldValues(void *handle, int count, struct field_value *values)
{
    ENTER(handle);
    for (int i = 0; i < count; i++) {
        const bool known = values[i].field == FIELD_RECOVERY_ACTION && target.gpu->recovery >= 0;

        values[i].code = known ? SUCCESS : NOT_SUPPORTED;
        values[i].type = VALUE_IS_UNSIGNED_INT;
        values[i].value.ull = 0;
        values[i].value.ui = known ? (unsigned)target.gpu->recovery : 0;
    }
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *correctable, unsigned *uncorrectable,
                              unsigned *pending, unsigned *failure)
{
    ENTER(handle);
    if (target.mig != NULL || target.gpu->remap_failure < 0)
        return NOT_SUPPORTED;
    *correctable = *uncorrectable = *pending = 0;
    *failure = (unsigned)target.gpu->remap_failure;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons)
{
    ENTER(handle);
    *reasons = (unsigned long long)target.gpu->clock_reasons;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons)
{
    ENTER(handle);
    *reasons = (unsigned long long)target.gpu->clock_reasons;
    return SUCCESS;
}

/* ---- MIG ---- */

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending)
{
    ENTER(handle);
    if (target.mig != NULL)
        return INVALID_ARGUMENT;
    if (target.gpu->mig < 0)
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)target.gpu->mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count)
{
    ENTER(handle);
    *count = target.mig == NULL && target.gpu->mig == 1 ? MAX_MIG_SLOTS : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned slot, void **instance)
{
    ENTER(handle);
    if (target.mig != NULL || slot >= MAX_MIG_SLOTS)
        return INVALID_ARGUMENT;
    for (int i = 0; target.gpu->mig == 1 && i < state.mig_count; i++)
        if (state.migs[i].parent == target.gpu->index && state.migs[i].slot == slot) {
            *instance = handle_of(state.migs[i].uuid);
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **handle)
{
    ENTER(instance);
    if (target.mig == NULL)
        return INVALID_ARGUMENT;
    *handle = handle_of(target.gpu->uuid);
    return SUCCESS;
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is_instance)
{
    ENTER(handle);
    *is_instance = target.mig != NULL;
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id)
{
    ENTER(handle);
    if (target.mig == NULL)
        return NOT_SUPPORTED;
    *id = (unsigned)target.mig->gi;
    return SUCCESS;
}

int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *id)
{
    ENTER(handle);
    if (target.mig == NULL)
        return NOT_SUPPORTED;
    *id = (unsigned)target.mig->ci;
    return SUCCESS;
}

int nvmlDeviceGetAttributes_v2(void *handle, struct attributes *attributes)
{
    ENTER(handle);
    if (target.mig == NULL)
        return NOT_SUPPORTED;
    const unsigned slices = (unsigned)target.mig->slices;

    *attributes = (struct attributes){.sms = 14 * slices,
                                      .gpu_slices = slices,
                                      .compute_slices = slices,
                                      .memory_mib = (unsigned long long)target.mig->total >> 20};
    return SUCCESS;
}
