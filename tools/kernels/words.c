/* Words made up, counted in a hash table that grows, and listed: strings and pointers. words COUNT */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    char *word;
    unsigned count;
};

static struct entry *table;
static size_t room, used;

static uint32_t hash(const char *word)
{
    uint32_t value = 2166136261u;
    for (; *word; word++)
        value = (value ^ (unsigned char)*word) * 16777619u;
    return value;
}

static struct entry *find(const char *word)
{
    size_t at = hash(word) & (room - 1);
    while (table[at].word && strcmp(table[at].word, word))
        at = (at + 1) & (room - 1);
    return table + at;
}

static void grow(void)
{
    struct entry *old = table;
    size_t before = room;
    room = room ? room * 2 : 64;
    table = calloc(room, sizeof *table);
    if (!table)
        exit(1);
    for (size_t i = 0; i < before; i++)
        if (old[i].word)
            *find(old[i].word) = old[i];
    free(old);
}

static void count_word(const char *word)
{
    if (used * 2 >= room)
        grow();
    struct entry *entry = find(word);
    if (!entry->word) {
        entry->word = strdup(word);
        used++;
    }
    entry->count++;
}

int main(int argc, char **argv)
{
    static const char *parts[] = {"me", "sh", "ar", "ka", "to", "ri", "un", "ol", "es", "ima"};
    long count = argc > 1 ? atol(argv[1]) : 1000;
    uint32_t state = 7;
    unsigned most = 0;
    const char *best = "";
    for (long i = 0; i < count; i++) {
        char word[32] = "";
        state = state * 1103515245 + 12345;
        uint32_t left = state >> 16;
        for (int n = 2 + left % 4; n > 0; n--, left /= 10)
            strcat(word, parts[left % 10]);
        count_word(word);
    }
    for (size_t i = 0; i < room; i++)
        if (table[i].word && (table[i].count > most || (table[i].count == most && strcmp(table[i].word, best) < 0))) {
            most = table[i].count;
            best = table[i].word;
        }
    printf("%zu different, %s %u times\n", used, best, most);
    return 0;
}
