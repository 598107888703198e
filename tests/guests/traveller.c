/* A guest with something of everything in its luggage: traveller ROUNDS WORK. Between any two steps
 * it works for about WORK thousand units of fuel, so that it may be moved at each of them. Without any
 * it is for ever in a loop within a loop, where it cannot be moved. */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { NAMES = 40, DEPTH = 60 };

static volatile uint32_t sink;
static volatile int left;
static unsigned long work;

static void toil(void)
{
    for (unsigned long i = 0; i < work * 100; i++)
        sink = sink * 1664525u + (uint32_t)i;
}

/* Works at the bottom, and on the way back up. */
static uint32_t descend(int depth)
{
    volatile char room[64];
    room[depth % 64] = (char)depth;
    if (depth == DEPTH)
        toil();
    uint32_t below = depth < DEPTH ? descend(depth + 1) : sink;
    if (depth % 16 == 0)
        toil();
    return below * 31 + (uint32_t)room[depth % 64];
}

static void linger(void)
{
    while (!left)
        while (!left)
            sink++;
}

static void make_names(void)
{
    mkdir("/tmp/names", 0700);
    for (int i = 0; i < NAMES; i++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/names/%d", i);
        close(open(path, O_CREAT | O_WRONLY, 0600));
    }
}

int main(int argc, char **argv)
{
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    work = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    if (!rounds)
        linger();
    make_names();
    DIR *names = opendir("/tmp/names");
    int appended = open("/out/appended", O_CREAT | O_WRONLY | O_APPEND, 0600);
    int both = open("/out/both", O_CREAT | O_RDWR, 0600);
    FILE *log = fopen("/out/log", "w");
    if (!names || appended < 0 || both < 0 || !log)
        return 1;
    for (unsigned long round = 0; round < rounds; round++) {
        unsigned char drawn[8];
        struct timespec now;
        char seen[9] = "";
        printf("round %lu: ", round); /* half a line */
        fflush(stdout);
        toil();
        getentropy(drawn, sizeof drawn);
        toil();
        clock_gettime(CLOCK_REALTIME, &now);
        fprintf(log, "%lu %02x%02x %lld.%09ld\n", round, drawn[0], drawn[1], (long long)now.tv_sec,
                now.tv_nsec);
        struct dirent *entry = readdir(names);
        if (!entry) {
            rewinddir(names);
            entry = readdir(names);
        }
        toil();
        dprintf(appended, "%s ", entry->d_name);
        pwrite(both, entry->d_name, 1, (off_t)(round * 3));
        lseek(both, (off_t)(round / 2), SEEK_SET);
        toil();
        ssize_t length = read(both, seen, 8);
        printf("%zd %08x\n", length, descend(0));
        if (round % 8 == 7)
            fprintf(stderr, "%lu done\n", round + 1);
    }
    fclose(log);
    return (int)(sink % 7);
}
