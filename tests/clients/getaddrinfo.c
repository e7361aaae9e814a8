/* Looks each argument up by getaddrinfo(3) and prints a line: milliseconds, then the addresses or the error.
   Built once with glibc and once, static, with musl. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        struct addrinfo hints, *all = NULL;
        memset(&hints, 0, sizeof hints);
        hints.ai_socktype = SOCK_STREAM;
        double start = now();
        int error = getaddrinfo(argv[i], "80", &hints, &all);
        printf("%.3f", now() - start);
        if (error)
            printf(" error: %s", gai_strerror(error));
        for (struct addrinfo *one = all; one; one = one->ai_next) {
            char text[64];
            getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
            printf(" %s", text);
        }
        printf("\n");
        fflush(stdout);
        if (all)
            freeaddrinfo(all);
    }
    return 0;
}
