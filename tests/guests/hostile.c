/* A guest that misbehaves in every way we know of: hostile MODE [NUMBER] */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned sink;
static volatile int zero;

static unsigned deeper(unsigned n)
{
    volatile char room[256];
    room[n % 256] = (char)n;
    return deeper(n + 1) + (unsigned)room[0];
}

/* Recursion that needs no stack in linear memory: it is the machine's own that runs out. */
__attribute__((noinline)) static unsigned recurse(unsigned n)
{
    sink = n;
    unsigned below = recurse(n + 1);
    return below * 3 + sink;
}

static void loop(void)
{
    for (;;)
        sink++;
}

/* Burn about *millions* of fuel in small steps, then say so. */
static int spin(unsigned long millions)
{
    for (unsigned long i = 0; i < millions * 100000; i++)
        sink += i ^ (sink >> 3);
    printf("spun to %u\n", sink);
    return 0;
}

static int eat_memory(int dies)
{
    for (unsigned long got = 0;; got++) {
        volatile char *piece = malloc(60000);
        if (!piece && dies)
            abort();
        if (!piece) {
            fprintf(stderr, "no memory after %lu pieces\n", got);
            return 3;
        }
        for (int i = 0; i < 60000; i += 4096)
            piece[i] = 1;
    }
}

static int flood_output(void)
{
    static char block[65536];
    memset(block, 'A', sizeof block);
    for (;;)
        if (fwrite(block, 1, sizeof block, stdout) != sizeof block)
            return 4;
}

static int flood_disk(void)
{
    static char block[65536];
    int file = open("/out/big", O_CREAT | O_WRONLY, 0600);
    while (write(file, block, sizeof block) > 0)
        ;
    fprintf(stderr, "%s\n", strerror(errno));
    return 5;
}

static int flood_sparse(void)
{
    int file = open("/out/sparse", O_CREAT | O_WRONLY, 0600);
    int failed = ftruncate(file, 1ll << 40) < 0;
    failed += pwrite(file, "x", 1, 1ll << 40) < 0;
    failed += posix_fallocate(file, 0, 1ll << 40) != 0;
    fprintf(stderr, "%d of 3 refused\n", failed);
    return 6;
}

static int flood_names(int folders)
{
    for (int i = 0;; i++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/%d", i);
        int made = folders ? mkdir(path, 0700) : open(path, O_CREAT | O_WRONLY, 0600);
        if (made < 0) {
            fprintf(stderr, "%s after %d\n", strerror(errno), i);
            return 7;
        }
        if (!folders)
            close(made);
    }
}

static int flood_descriptors(void)
{
    for (int i = 0;; i++)
        if (open("/out/one", O_CREAT | O_WRONLY, 0600) < 0) {
            fprintf(stderr, "%s after %d\n", strerror(errno), i);
            return 8;
        }
}

static void try_path(const char *path)
{
    int file = open(path, O_RDONLY);
    struct stat found;
    int there = stat(path, &found) == 0;
    printf("%s %s %s\n", path, file < 0 ? "closed" : "OPEN", there ? "SEEN" : "unseen");
}

static int escape(void)
{
    static const char *paths[] = {
        "/etc/passwd", "/in/../../../../etc/passwd", "/out/../../../etc/passwd", "../etc/passwd",
        "/in/link", "/in/folder/link", "/in/folder/link/passwd", "/proc/self/environ", "/out/..",
        "/out/../..", "/dev/null", "/in/fifo",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        try_path(paths[i]);
    printf("symlink %d\n", symlink("/etc/passwd", "/out/link"));
    printf("link %d\n", link("/in/file", "/out/link"));
    printf("write to /in %d\n", open("/in/file", O_WRONLY));
    printf("create in /in %d\n", open("/in/new", O_CREAT | O_WRONLY, 0600));
    printf("remove from /in %d\n", unlink("/in/file"));
    printf("rename out of /in %d\n", rename("/in/file", "/out/file"));
    return 0;
}

static int sleep_long(void)
{
    time_t before = time(NULL);
    sleep(100000);
    struct timespec nap = {1000, 0};
    nanosleep(&nap, NULL);
    printf("slept %lld s\n", (long long)(time(NULL) - before));
    return 0;
}

static int call_wrongly(void)
{
    int (*volatile wrong)(double) = (int (*)(double))(void *)sleep_long;
    return wrong(1.0);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    unsigned long number = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
#define IS(name) (!strcmp(mode, name))
    if (IS("exit"))
        exit((int)number);
    if (IS("loop"))
        loop();
    if (IS("spin"))
        return spin(number);
    if (IS("memory"))
        return eat_memory(0);
    if (IS("memory-abort"))
        return eat_memory(1);
    if (IS("output"))
        return flood_output();
    if (IS("disk"))
        return flood_disk();
    if (IS("sparse"))
        return flood_sparse();
    if (IS("files"))
        return flood_names(0);
    if (IS("folders"))
        return flood_names(1);
    if (IS("descriptors"))
        return flood_descriptors();
    if (IS("escape"))
        return escape();
    if (IS("sleep"))
        return sleep_long();
    if (IS("stack"))
        return (int)deeper(0);
    if (IS("recurse"))
        return (int)recurse(0);
    if (IS("abort"))
        abort();
    if (IS("divide"))
        return (int)sink / zero;
    if (IS("bounds"))
        return *(volatile int *)0x7fffff00;
    if (IS("wrong-call"))
        return call_wrongly();
    if (IS("block"))
        return (int)read(0, (char *)&sink, 4);
    fprintf(stderr, "no mode %s\n", mode);
    return 2;
}
