/* The area of the Mandelbrot set: mandelbrot [SIZE [STEPS]]
 *
 * Looks at SIZE times SIZE points of the square from -2-1.25i to 0.5+1.25i (700 by default), and
 * takes those for members that have not left the circle of radius 2 after STEPS steps (20000). A line
 * tells of each row: how many members, and a checksum over all points so far. The picture grows in
 * /out/mandelbrot.pgm; the area, with all members counted, is the last line, and /out/area.txt.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { SIZE = 700, WIDEST = 4096, STEPS = 20000, STEPS_MAX = 1000000000 };

static const double LEFT = -2.0, BOTTOM = -1.25, SIDE = 2.5;

static void die(const char *what)
{
    fprintf(stderr, "mandelbrot: %s\n", what);
    exit(1);
}

static int number(const char *text, long most)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || value < 1 || value > most)
        die("usage: mandelbrot [SIZE [STEPS]], whole numbers, SIZE at most 4096");
    return (int)value;
}

/* Steps until z = z^2 + c leaves the circle; most if it does not. */
static int steps_of(double cx, double cy, int most)
{
    double x = 0, y = 0, xx = 0, yy = 0;
    int n = 0;
    while (n < most && xx + yy <= 4) {
        y = 2 * x * y + cy;
        x = xx - yy + cx;
        xx = x * x;
        yy = y * y;
        n++;
    }
    return n;
}

int main(int argc, char **argv)
{
    int size = argc > 1 ? number(argv[1], WIDEST) : SIZE;
    int most = argc > 2 ? number(argv[2], STEPS_MAX) : STEPS;
    FILE *picture = fopen("/out/mandelbrot.pgm", "wb");
    if (!picture)
        die("cannot write /out/mandelbrot.pgm");
    fprintf(picture, "P5 %d %d 255\n", size, size);
    uint64_t members = 0, sum = 0xcbf29ce484222325;
    for (int row = 0; row < size; row++) {
        double cy = BOTTOM + SIDE * (row + 0.5) / size;
        uint64_t before = members;
        for (int column = 0; column < size; column++) {
            int n = steps_of(LEFT + SIDE * (column + 0.5) / size, cy, most);
            members += n == most;
            sum = (sum ^ (uint64_t)n) * 0x100000001b3; /* FNV-1a over whole counts */
            putc(n == most ? 0 : 255 - n % 256, picture);
        }
        printf("row %d of %d: %" PRIu64 " members, %016" PRIx64 "\n", row + 1, size,
               members - before, sum);
        if (fflush(stdout) || fflush(picture))
            die("cannot write");
    }
    double area = (double)members * SIDE * SIDE / ((double)size * size);
    FILE *out = fopen("/out/area.txt", "w");
    if (!out)
        die("cannot write /out/area.txt");
    fprintf(out, "%.9f\n", area);
    if (fclose(out) || fclose(picture))
        die("cannot write");
    printf("area %.9f, %" PRIu64 " members of %d points\n", area, members, size * size);
    return 0;
}
