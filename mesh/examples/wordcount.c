/* Count words: wordcount [NAME]...
 *
 * Reads the files and folders of these names under /in (all of them by default), writes every word with its
 * count to /out/counts.txt, the frequent ones first, and says in one line what it saw. A word is a
 * run of letters, digits and bytes beyond ASCII; capitals count as small letters.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_MAX = 63, DEPTH_MAX = 16, PATH_SIZE = 1024 };

struct word {
    char text[WORD_MAX + 1];
    unsigned long count;
};

static struct word *words;
static size_t different, room; /* room is a power of two */
static unsigned long files, total;

static void die(const char *what, const char *name)
{
    fprintf(stderr, "wordcount: %s %s\n", what, name);
    exit(1);
}

static struct word *place_of(const char *text)
{
    unsigned long hash = 5381;
    for (const char *c = text; *c; c++)
        hash = hash * 33 ^ (unsigned char)*c;
    size_t at = hash & (room - 1);
    while (words[at].count && strcmp(words[at].text, text))
        at = (at + 1) & (room - 1);
    return &words[at];
}

static void grow(void)
{
    struct word *old = words;
    size_t before = room;
    room = room ? 2 * room : 1024;
    words = calloc(room, sizeof *words);
    if (!words)
        die("no memory for", "more words");
    for (size_t i = 0; i < before; i++)
        if (old[i].count)
            *place_of(old[i].text) = old[i];
    free(old);
}

static void add(const char *text)
{
    if (2 * different >= room)
        grow();
    struct word *word = place_of(text);
    if (!word->count++) {
        strcpy(word->text, text);
        different++;
    }
    total++;
}

static int small_letter(int c)
{
    if (c >= 'A' && c <= 'Z')
        return c + 'a' - 'A';
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c >= 0x80 ? c : 0;
}

static void count_file(FILE *file)
{
    char text[WORD_MAX + 1];
    size_t length = 0;
    int c;
    do {
        c = getc(file);
        int letter = c == EOF ? 0 : small_letter(c);
        if (letter && length < WORD_MAX)
            text[length++] = (char)letter;
        if (!letter && length) {
            text[length] = 0;
            add(text);
            length = 0;
        }
    } while (c != EOF);
    files++;
}

static void count(const char *path, int depth)
{
    DIR *folder = opendir(path);
    if (!folder) {
        FILE *file = fopen(path, "r");
        if (!file)
            die("cannot open", path);
        count_file(file);
        if (ferror(file))
            die("cannot read", path);
        fclose(file);
        return;
    }
    if (depth == DEPTH_MAX)
        die("too deep:", path);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char inner[PATH_SIZE];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) >= PATH_SIZE)
            die("too long:", path);
        count(inner, depth + 1);
    }
    closedir(folder);
}

static int by_count_then_word(const void *left, const void *right)
{
    const struct word *a = left, *b = right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    return strcmp(a->text, b->text);
}

int main(int argc, char **argv)
{
    grow();
    if (argc < 2)
        count("/in", 0);
    for (int i = 1; i < argc; i++) {
        char path[PATH_SIZE];
        const char *form = argv[i][0] == '/' ? "%s" : "/in/%s";
        if (snprintf(path, sizeof path, form, argv[i]) >= PATH_SIZE)
            die("too long:", argv[i]);
        count(path, 0);
    }
    qsort(words, room, sizeof *words, by_count_then_word);
    FILE *out = fopen("/out/counts.txt", "w");
    if (!out)
        die("cannot write", "/out/counts.txt");
    for (size_t i = 0; i < different; i++)
        fprintf(out, "%lu\t%s\n", words[i].count, words[i].text);
    if (fclose(out))
        die("cannot write", "/out/counts.txt");
    printf("%lu files, %lu words, %zu different", files, total, different);
    if (different)
        printf("; most frequent: %s (%lu)", words[0].text, words[0].count);
    printf("\n");
    return 0;
}
