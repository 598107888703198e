/* Sorting through a pointer to a function, and a search that calls itself. sort COUNT */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Ways to put queens on a board, row by row. */
static int queens(int size, unsigned columns, unsigned left, unsigned right, int row)
{
    if (row == size)
        return 1;
    int ways = 0;
    for (int column = 0; column < size; column++) {
        unsigned place = 1u << column;
        if (!((columns | left | right) & place))
            ways += queens(size, columns | place, (left | place) << 1, (right | place) >> 1, row + 1);
    }
    return ways;
}

int main(int argc, char **argv)
{
    long count = argc > 1 ? atol(argv[1]) : 1000;
    uint32_t *values = malloc(sizeof *values * count), state = 1;
    if (!values)
        return 1;
    for (long i = 0; i < count; i++)
        values[i] = state = state * 1664525 + 1013904223;
    qsort(values, count, sizeof *values, compare);
    int size = 6;
    for (long n = count; n > 20000; n /= 6)
        size++;
    printf("%u %u, %d ways for %d queens\n", values[0], values[count / 2], queens(size, 0, 0, 0, 0), size);
    return 0;
}
