/* main.c - resnetd: an HTTP server that classifies images, and the same without HTTP. */

#include <unistd.h>

#include "cli.h"

int main(int argc, char **argv)
{
    return cli_run(argc, argv, environ);
}
