/* cli_health.c - resnetd healthcheck: ask the server of this configuration whether it is ready, for container
 * engines whose images have no HTTP client. */

#include "cli.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { TIMEOUT_S = 5 };

/* The address to connect to; a server that listens on every address is asked on loopback. */
static socklen_t address_of(const struct config *config, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;

    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, config->server.host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)config->server.port);
        if (v4->sin_addr.s_addr == htonl(INADDR_ANY))
            v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof *v4;
    }
    inet_pton(AF_INET6, config->server.host, &v6->sin6_addr); /* config_load has checked it */
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)config->server.port);
    if (IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr))
        v6->sin6_addr = in6addr_loopback;
    return sizeof *v6;
}

int cli_healthcheck(struct cli *cli)
{
    static const char REQUEST[] = "GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    const struct timeval timeout = {.tv_sec = TIMEOUT_S};
    struct sockaddr_storage address;
    socklen_t length = address_of(&cli->config, &address);
    char reply[64] = "";
    size_t received = 0;
    int status = 0;
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    }
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, length) != 0 ||
        send(fd, REQUEST, sizeof REQUEST - 1, MSG_NOSIGNAL) != (ssize_t)sizeof REQUEST - 1) {
        fprintf(stderr, "resnetd: no answer on port %d: %s\n", cli->config.server.port, strerror(errno));
    } else {
        while (received < sizeof reply - 1) {
            ssize_t n = recv(fd, reply + received, sizeof reply - 1 - received, 0);
            if (n <= 0)
                break;
            received += (size_t)n;
        }
        if (sscanf(reply, "HTTP/1.1 %3d", &status) != 1)
            fprintf(stderr, "resnetd: no HTTP answer on port %d\n", cli->config.server.port);
        else
            printf("%s\n", status == 200 ? "ready" : "not ready");
    }
    if (fd >= 0)
        close(fd);
    return status == 200 ? CLI_OK : CLI_FAILED;
}
