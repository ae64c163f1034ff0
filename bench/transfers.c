// transfers.c - bytes over networks, folders and disks, timed where they go. gcc -O2 -static.
//   transfers up HOST PORT SECONDS    sends 'u', then bytes for so long, then ends the stream
//   transfers down HOST PORT          sends 'd', reads to the end, answers with the count (8 bytes, little endian)
//   transfers serve PORT              one connection of each kind after the other, for ever; says SERVING when it can be reached
//   transfers to|from HOST PORT SECONDS   the same against `serve`, and says BENCH NAME bytes-per-second 0
//   transfers write|read FILE BYTES   in order, 1 MiB at a time; a write ends with fsync
//   transfers random FILE SECONDS     4 KiB pieces at random places, read past the page cache
//   transfers time NAME COMMAND…      how long a command takes: BENCH NAME seconds 0
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (128 << 10)
#define PIECE (1 << 20)
static char buffer[PIECE] __attribute__((aligned(4096)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    fprintf(stderr, "transfers: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void say(const char *name, double value) {
    printf("BENCH %s %.6f 0\n", name, value);
    fflush(stdout);
}

static int reach(const char *host, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1) die(host);
    // Cards and servers need a moment.
    for (int attempt = 0; attempt < 100; attempt++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (void *)&to, sizeof to) == 0) return fd;
        close(fd);
        usleep(100000);
    }
    die("connect");
    return -1;
}

static void all(int fd, const void *from, size_t len) {
    for (const char *at = from; len > 0;) {
        ssize_t done = write(fd, at, len);
        if (done < 0) die("write");
        at += done, len -= done;
    }
}

// Sends until the time is over.
static uint64_t pour(int fd, double seconds) {
    uint64_t count = 0;
    for (double end = now() + seconds; now() < end; count += CHUNK) all(fd, buffer, CHUNK);
    shutdown(fd, SHUT_WR);
    return count;
}

// Reads to the end.
static uint64_t drain(int fd) {
    uint64_t count = 0;
    for (ssize_t len; (len = read(fd, buffer, CHUNK)) > 0; count += len);
    return count;
}

// The client's word of one byte says who sends; whoever reads tells how much came, so that nobody counts what is on its way.
static void serve(const char *port) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (bind(listener, (void *)&any, sizeof any) || listen(listener, 8)) die("listen");
    puts("SERVING");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        char kind[2];
        if (fd < 0) die("accept");
        if (read(fd, kind, 1) == 1) {
            if (kind[0] == 'u') {
                uint64_t count = drain(fd);
                all(fd, &count, sizeof count);
            } else if (read(fd, kind + 1, 1) == 1) {
                pour(fd, kind[1]);
                drain(fd);
            }
        }
        close(fd);
    }
}

static void exchange(const char *way, const char *host, const char *port, int seconds) {
    int fd = reach(host, port);
    char ask[2] = {'d', (char)seconds};
    double begun = now();
    uint64_t count = 0;
    if (!strcmp(way, "to")) {
        all(fd, "u", 1);
        pour(fd, seconds);
        if (recv(fd, &count, sizeof count, MSG_WAITALL) != sizeof count) die("answer");
    } else {
        all(fd, ask, 2);
        count = drain(fd);
    }
    say(way, count / (now() - begun));
}

static void in_order(const char *how, const char *path, uint64_t bytes) {
    int writes = !strcmp(how, "write");
    double begun = now();
    int fd = open(path, writes ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0644);
    if (fd < 0) die(path);
    uint64_t left = bytes;
    while (left > 0) {
        size_t len = left < PIECE ? left : PIECE;
        ssize_t done = writes ? write(fd, buffer, len) : read(fd, buffer, len);
        if (done <= 0) die(how);
        left -= done;
    }
    if (writes && fsync(fd)) die("fsync");
    close(fd);
    say(how, now() - begun);
}

static void at_random(const char *path, double seconds) {
    int fd = open(path, O_RDONLY | O_DIRECT);
    if (fd < 0) die(path);
    uint64_t pieces = lseek(fd, 0, SEEK_END) / 4096, state = 88172645463325252ull, count = 0;
    if (pieces == 0) die("size");
    double begun = now(), end = begun + seconds;
    for (; now() < end; count++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        if (pread(fd, buffer, 4096, (state % pieces) * 4096) != 4096) die("pread");
    }
    say("random", (now() - begun) / count * 1e6);
}

static void timed(const char *name, char **command) {
    double begun = now();
    pid_t child = fork();
    int status = 0;
    if (child == 0) {
        execvp(command[0], command);
        die(command[0]);
    }
    if (waitpid(child, &status, 0) != child || status != 0) die(name);
    say(name, now() - begun);
}

int main(int count, char **words) {
    const char *verb = count > 1 ? words[1] : "";
    memset(buffer, 0x5a, sizeof buffer);
    if (!strcmp(verb, "up") && count == 5) {
        int fd = reach(words[2], words[3]);
        all(fd, "u", 1);
        pour(fd, atof(words[4]));
        drain(fd);
    } else if (!strcmp(verb, "down") && count == 4) {
        int fd = reach(words[2], words[3]);
        all(fd, "d", 1);
        uint64_t got = drain(fd);
        all(fd, &got, sizeof got);
    } else if (!strcmp(verb, "serve") && count == 3) {
        serve(words[2]);
    } else if ((!strcmp(verb, "to") || !strcmp(verb, "from")) && count == 5) {
        exchange(verb, words[2], words[3], atoi(words[4]));
    } else if ((!strcmp(verb, "write") || !strcmp(verb, "read")) && count == 4) {
        in_order(verb, words[2], strtoull(words[3], 0, 10));
    } else if (!strcmp(verb, "random") && count == 4) {
        at_random(words[2], atof(words[3]));
    } else if (!strcmp(verb, "time") && count > 3) {
        timed(words[2], words + 3);
    } else {
        fprintf(stderr, "transfers: what is at the head of transfers.c\n");
        return 2;
    }
    return 0;
}
