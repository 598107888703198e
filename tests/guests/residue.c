/* Tells all that an earlier task could have left behind, then leaves as much itself. residue … */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int marks = 1;
static char blank[4096];

static void list(const char *path)
{
    DIR *folder = opendir(path);
    struct dirent *entry;
    while (folder && (entry = readdir(folder)))
        printf("%s/%s\n", path, entry->d_name);
    if (folder)
        closedir(folder);
}

static void tell(int argc, char **argv)
{
    unsigned char chance[8];
    int dirty = 0, open_ones = 0;
    struct timespec now;
    for (size_t i = 0; i < sizeof blank; i++)
        dirty += blank[i] != 0;
    for (int number = 3; number < 256; number++)
        open_ones += fcntl(number, F_GETFD) >= 0;
    getentropy(chance, sizeof chance);
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%d marks, %d dirty, %d open, at %lld.%09ld\n", marks, dirty, open_ones, (long long)now.tv_sec, now.tv_nsec);
    for (size_t i = 0; i < sizeof chance; i++)
        printf("%02x", chance[i]);
    printf("\n");
    for (int i = 0; i < argc; i++)
        printf("arg %s\n", argv[i]);
    for (char **pair = environ; *pair; pair++)
        printf("env %s\n", *pair);
    list("/in");
    list("/out");
    list("/tmp");
}

static void leave(const char *name)
{
    char path[300];
    marks++;
    memset(blank, 'x', sizeof blank);
    char *more = malloc(1 << 20);
    if (more)
        memset(more, 'y', 1 << 20);
    setenv("LEFT", "behind", 1);
    static const char *folders[] = {"/out", "/tmp"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/folder", folders[i]);
        mkdir(path, 0700);
        snprintf(path, sizeof path, "%s/folder/%s", folders[i], name);
        int file = open(path, O_CREAT | O_RDWR, 0600); /* stays open */
        write(file, name, strlen(name));
    }
    sleep(1000);
}

int main(int argc, char **argv)
{
    tell(argc, argv);
    if (argc > 1)
        leave(argv[1]);
    if (argc > 2 && !strcmp(argv[2], "abort"))
        abort();
    if (argc > 2 && !strcmp(argv[2], "exit"))
        exit(9);
    fflush(stdout);
    fprintf(stderr, "%s\n", argc > 1 ? argv[1] : "nothing left");
    return 0;
}
