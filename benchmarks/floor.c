/* The floor of fan-out: WebSocket on epoll, and nothing else.

   It answers upgrades; at each tick it makes one frame, and one send() for each connection. What
   clients say is thrown away.

   Usage: floor PORT INTERVAL_MS PHASE_MS DOCUMENT [VIEWS]
   Ticks are PHASE_MS after multiples of the interval, by the monotonic clock. DOCUMENT is a file: a
   JSON object up to the value of its last member, the time of the tick. Each VIEWS-th connection is
   served first, then each one after these, as by a server whose clients have taken so many views by
   turns. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 65536, EVENTS = 512, SEND_BUFFER = 65536, DOCUMENT = 65000 };

static int epoll, views = 1;
static int streams[MAX_FDS], count; /* who gets frames, in the order they came */
static int place[MAX_FDS];          /* by descriptor: where in `streams`, counted from 1; 0 if not */
static char document[DOCUMENT], frame[DOCUMENT + 100];
static size_t document_size;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* -- the handshake (RFC 6455, 4.2.2) ---------------------------------------------------------- */

static uint32_t turn(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

/* SHA-1 (FIPS 180-4) of a text of less than 120 bytes: it fits two blocks. */
static void sha1(const char *text, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t padded[128] = {0};
    size_t size = strlen(text), end = size < 56 ? 64 : 128;
    memcpy(padded, text, size);
    padded[size] = 0x80;
    padded[end - 2] = size * 8 >> 8;
    padded[end - 1] = size * 8;
    for (uint8_t *block = padded; block < padded + end; block += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int t = 0; t < 80; t++) {
            if (t < 16)
                w[t] = (uint32_t)block[4 * t] << 24 | block[4 * t + 1] << 16 |
                       block[4 * t + 2] << 8 | block[4 * t + 3];
            else
                w[t] = turn(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
            uint32_t f = t < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                         : t < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                         : t < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                  : (b ^ c ^ d) + 0xca62c1d6;
            uint32_t next = turn(a, 5) + f + e + w[t];
            e = d, d = c, c = turn(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - i % 4 * 8);
}

static void base64(const uint8_t digest[20], char text[29]) {
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t padded[21] = {0};
    memcpy(padded, digest, 20);
    for (int i = 0; i < 28; i++) {
        const uint8_t *three = padded + i / 4 * 3;
        uint32_t bits = three[0] << 16 | three[1] << 8 | three[2];
        text[i] = letters[bits >> (18 - i % 4 * 6) & 63];
    }
    strcpy(text + 27, "=");
}

/* A request comes in one piece from the clients there are here. Returns whether it is answered. */
static int shake_hands(int fd, char *request) {
    char *key = strcasestr(request, "\r\nSec-WebSocket-Key: ");
    if (!key) {
        static const char no[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        (void)!write(fd, no, sizeof no - 1);
        return 0;
    }
    char salted[80], accept[29], answer[256];
    uint8_t digest[20];
    snprintf(salted, sizeof salted, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key + 21);
    sha1(salted, digest);
    base64(digest, accept);
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                        accept);
    return write(fd, answer, size) == size;
}

/* -- connections ------------------------------------------------------------------------------ */

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void leave(int fd) {
    if (place[fd]) {
        int last = streams[--count];
        streams[place[fd] - 1] = last;
        place[last] = place[fd];
        place[fd] = 0;
    }
    close(fd);
}

static void hear(int fd) {
    char data[4096];
    ssize_t size = read(fd, data, sizeof data - 1);
    if (size <= 0) {
        if (size == 0 || errno != EAGAIN) leave(fd);
        return;
    }
    if (place[fd]) return;
    data[size] = 0;
    if (!shake_hands(fd, data)) return leave(fd);
    streams[count++] = fd;
    place[fd] = count;
}

static void admit(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (fd >= MAX_FDS) close(fd);
        else watch(fd);
    }
}

/* -- ticks ------------------------------------------------------------------------------------ */

static size_t make_frame(void) {
    struct timespec now;
    struct tm utc;
    char when[48];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t end = strftime(when, sizeof when, "\"%Y-%m-%dT%H:%M:%S", &utc);
    end += sprintf(when + end, ".%06ld+00:00\"}", now.tv_nsec / 1000);
    size_t size = document_size + end, head = size < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    frame[1] = size < 126 ? size : 126;
    if (head == 4) frame[2] = size >> 8, frame[3] = size;
    memcpy(frame + head, document, document_size);
    memcpy(frame + head + document_size, when, end);
    return head + size;
}

static void tick(void) {
    size_t size = make_frame();
    for (int view = 0; view < views; view++)
        for (int i = view; i < count; i += views) send(streams[i], frame, size, MSG_NOSIGNAL);
}

static struct timespec at(long milliseconds) {
    return (struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000L};
}

/* Rings each interval, a phase after its multiples. */
static int every(long interval, long phase) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long first = (now.tv_sec * 1000 / interval + 2) * interval + phase;
    struct itimerspec ticks = {at(interval), at(first)};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (timer < 0 || timerfd_settime(timer, TFD_TIMER_ABSTIME, &ticks, NULL)) die("timerfd");
    return timer;
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, buffer = SEND_BUFFER;
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("listen");
    return listener;
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6)
        return fprintf(stderr, "usage: floor PORT INTERVAL_MS PHASE_MS DOCUMENT [VIEWS]\n"), 2;
    if (argc == 6) views = atoi(argv[5]);
    FILE *file = fopen(argv[4], "r");
    if (!file) die(argv[4]);
    document_size = fread(document, 1, DOCUMENT, file);
    fclose(file);
    epoll = epoll_create1(0);
    int listener = listen_on(atoi(argv[1])), timer = every(atoi(argv[2]), atoi(argv[3]));
    watch(listener);
    watch(timer);
    for (struct epoll_event events[EVENTS];;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            uint64_t times;
            if (fd == listener) admit(listener);
            else if (fd != timer) hear(fd);
            else if (read(timer, &times, sizeof times) > 0)
                while (times--) tick();
        }
    }
}
