/* Primes below a limit by crossing out: bytes, strides, memory. sieve LIMIT */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    long limit = argc > 1 ? atol(argv[1]) : 1000, found = 0, last = 0;
    unsigned char *crossed = calloc((size_t)limit, 1);
    if (!crossed)
        return 1;
    for (long n = 2; n < limit; n++) {
        if (crossed[n])
            continue;
        found++;
        last = n;
        if (n > limit / n)
            continue;
        for (long m = n * n; m < limit; m += n)
            crossed[m] = 1;
    }
    printf("%ld primes, the last is %ld\n", found, last);
    return 0;
}
