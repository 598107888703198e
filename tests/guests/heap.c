/* A guest with much to take along: heap MEGABYTES ROUNDS. It fills its memory, half of it with chance,
 * changes the first megabyte of it each round, and says at the end what it has become. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t chance = 88172645463325252ull;

static uint64_t next(void)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return chance;
}

int main(int argc, char **argv)
{
    size_t words = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1) << 17;
    unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    size_t page = __builtin_wasm_memory_grow(0, words >> 13); /* malloc would take twice as much */
    if (page == (size_t)-1)
        return 1;
    uint64_t *heap = (uint64_t *)(page << 16);
    for (size_t i = 0; i < words; i++)
        heap[i] = next() & 0xffffffffull;
    fprintf(stderr, "filled\n");
    for (unsigned long r = 0; r < rounds; r++) {
        for (size_t i = 0; i < 1 << 17; i++)
            heap[i] += next() & 0xff;
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i++)
        sum = sum * 31 + heap[i];
    printf("%lu MiB, %lu rounds: %016llx\n", (unsigned long)(words >> 17), rounds,
           (unsigned long long)sum);
    return 0;
}
