/* Gravity among a few bodies: floating point, square roots, little memory. nbody STEPS */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BODIES 6

static struct body {
    double at[3], speed[3], mass;
} bodies[BODIES];

static void place(void)
{
    for (int i = 0; i < BODIES; i++) {
        bodies[i].mass = 1.0 / (1 + i * i);
        for (int k = 0; k < 3; k++) {
            bodies[i].at[k] = i * (k == 0) + 0.25 * i * (k == 1) + 0.0625 * ((i * 5 + k) % 7);
            bodies[i].speed[k] = 0.03125 * ((i * 3 + k * 2) % 5) - 0.0625;
        }
    }
}

static void step(double dt)
{
    for (int i = 0; i < BODIES; i++)
        for (int j = i + 1; j < BODIES; j++) {
            double away[3], square = 0.01;
            for (int k = 0; k < 3; k++) {
                away[k] = bodies[i].at[k] - bodies[j].at[k];
                square += away[k] * away[k];
            }
            double pull = dt / (square * sqrt(square));
            for (int k = 0; k < 3; k++) {
                bodies[i].speed[k] -= away[k] * bodies[j].mass * pull;
                bodies[j].speed[k] += away[k] * bodies[i].mass * pull;
            }
        }
    for (int i = 0; i < BODIES; i++)
        for (int k = 0; k < 3; k++)
            bodies[i].at[k] += dt * bodies[i].speed[k];
}

int main(int argc, char **argv)
{
    long steps = argc > 1 ? atol(argv[1]) : 1000;
    place();
    for (long n = 0; n < steps; n++)
        step(0.001);
    printf("%.9f %.9f\n", bodies[0].at[0], bodies[5].at[1]);
    return 0;
}
