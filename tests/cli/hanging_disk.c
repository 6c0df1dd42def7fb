/* To be preloaded: a disk that does not answer while the file DISK_HANGS is there. It says so in a
   file beside that one. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int fd)
{
    const char *hangs = getenv("DISK_HANGS");
    char waits[4096];
    while (hangs != NULL && access(hangs, F_OK) == 0) {
        snprintf(waits, sizeof waits, "%s-and-somebody-waits", hangs);
        close(open(waits, O_CREAT | O_CLOEXEC, 0600));
        usleep(10000);
    }
    return (int)syscall(SYS_fdatasync, fd);
}
