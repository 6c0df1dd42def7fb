/* To be preloaded: a disk that does not answer while the file DISK_HANGS is there. What is asked of
   it in threads that are not a process's first one, for which nobody waits, it notes beside that
   file: what waits for it, and what it has done. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(const char *hangs, const char *event, const char *call)
{
    char text[4096];
    int file;
    if (getpid() == gettid())
        return;
    snprintf(text, sizeof text, "%s.log", hangs);
    file = open(text, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    dprintf(file, "%s %s\n", call, event);
    close(file);
}

static int answered(const char *call, long number, int fd)
{
    const char *hangs = getenv("DISK_HANGS");
    int result;
    if (hangs == NULL)
        return (int)syscall(number, fd);
    if (access(hangs, F_OK) == 0)
        note(hangs, "waits", call);
    while (access(hangs, F_OK) == 0)
        usleep(10000);
    result = (int)syscall(number, fd);
    note(hangs, "done", call);
    return result;
}

int fdatasync(int fd)
{
    return answered("fdatasync", SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return answered("fsync", SYS_fsync, fd);
}
