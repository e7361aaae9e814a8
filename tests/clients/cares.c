/* Looks each argument up by c-ares, search domains included, and prints a line: milliseconds, then the addresses or the
   error. */
#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

struct answer {
    int status;
    char text[4096];
};

static void found(void *to, int status, int timeouts, struct ares_addrinfo *all) {
    struct answer *answer = to;
    (void)timeouts;
    answer->status = status;
    if (status != ARES_SUCCESS)
        return;
    for (struct ares_addrinfo_node *one = all->nodes; one; one = one->ai_next) {
        char text[64] = " ";
        if (one->ai_family == AF_INET)
            inet_ntop(AF_INET, &((struct sockaddr_in *)one->ai_addr)->sin_addr, text + 1, sizeof text - 1);
        else
            inet_ntop(AF_INET6, &((struct sockaddr_in6 *)one->ai_addr)->sin6_addr, text + 1, sizeof text - 1);
        strncat(answer->text, text, sizeof answer->text - strlen(answer->text) - 1);
    }
    ares_freeaddrinfo(all);
}

int main(int argc, char **argv) {
    ares_channel channel;
    if (ares_library_init(ARES_LIB_INIT_ALL) || ares_init(&channel))
        return 1;
    for (int i = 1; i < argc; i++) {
        struct answer answer = {-1, ""};
        struct ares_addrinfo_hints hints = {0};
        hints.ai_family = AF_UNSPEC;
        double start = now();
        ares_getaddrinfo(channel, argv[i], "80", &hints, found, &answer);
        for (;;) {
            fd_set reads, writes;
            struct timeval wait;
            FD_ZERO(&reads);
            FD_ZERO(&writes);
            int count = ares_fds(channel, &reads, &writes);
            if (count == 0)
                break;
            select(count, &reads, &writes, NULL, ares_timeout(channel, NULL, &wait));
            ares_process(channel, &reads, &writes);
        }
        printf("%.3f", now() - start);
        if (answer.status != ARES_SUCCESS)
            printf(" error: %s", ares_strerror(answer.status));
        printf("%s\n", answer.text);
        fflush(stdout);
    }
    ares_destroy(channel);
    return 0;
}
