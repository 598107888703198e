/* A guest that writes down all it can find out about where it runs; the same for the same job. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void show_clock(const char *name, clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    printf("%s %lld.%09ld\n", name, (long long)now.tv_sec, now.tv_nsec);
}

static void show_folder(const char *path)
{
    DIR *folder = opendir(path);
    if (!folder)
        return;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char inner[512];
        struct stat found;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] == '.' || stat(inner, &found))
            continue;
        printf("%s inode %llu size %lld mode %o time %lld\n", inner,
               (unsigned long long)found.st_ino, (long long)found.st_size, found.st_mode,
               (long long)found.st_mtime);
        show_folder(inner);
    }
    closedir(folder);
}

int main(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        printf("arg %s\n", argv[i]);
    for (char **e = environ; *e; e++)
        printf("env %s\n", *e);
    show_clock("real", CLOCK_REALTIME);
    show_clock("monotonic", CLOCK_MONOTONIC);
    uint64_t chance[4];
    if (getentropy(chance, sizeof chance))
        return 1;
    printf("chance %llx %llx\n", (unsigned long long)chance[0], (unsigned long long)chance[3]);
    mkdir("/out/b", 0700);
    for (int i = 9; i >= 0; i--) {
        char path[32];
        snprintf(path, sizeof path, "/out/b/%d", i);
        FILE *file = fopen(path, "w");
        fprintf(file, "%d %llu\n", i, (unsigned long long)chance[1] % 1000);
        fclose(file);
    }
    rename("/out/b/3", "/out/a");
    unlink("/out/b/4");
    show_folder("/in");
    show_folder("/out");
    show_clock("monotonic", CLOCK_MONOTONIC);
    printf("stdin %d\n", getchar());
    return 0;
}
