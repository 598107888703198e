/* A task that only reads its arguments: what is left is the price of a task. blank … */
int main(int argc, char **argv)
{
    return argc > 999 ? argv[999][0] : 0;
}
