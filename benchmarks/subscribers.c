/* Subscribers: many WebSocket clients in one process that costs little.

   Usage: subscribers [-c CREDENTIALS] PORT PATH COUNT IN_FLIGHT BEHAVIOUR
                      [SUBPROTOCOL MESSAGES [EXTENSIONS]]
   COUNT connections are opened, IN_FLIGHT of them at a time. BEHAVIOUR is one of
     listen  stay, and read
     stall   stay, and never read
     cycle   leave with a close frame after the first message
     knock   be refused: COUNT connections are opened each second, until the end

   With CREDENTIALS, each asks with a line of that file as its bearer token, another one by turns.
   With a SUBPROTOCOL, each says one line of the file MESSAGES once it is in, another one by turns.

   When all are in (or, of a cycle, out; or, of a knock, at once), prints a report. Then each line on standard input asks
   for another one, about the time since the last. Ends with standard input.

   A report is a line of JSON. `lags` are in microseconds, from the time a text frame says it was
   made at (its last member) to its receipt: the 50th and 99th percentile of all; `last` has those
   of the last receiver of each distinct frame. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_FDS = 65536,
    EVENTS = 512,
    TICKS = 16384,    /* distinct frames of one report */
    MAX_LAGS = 1 << 22,
    BUFFER = 1 << 21,
    STALLED_BUFFER = 2048, /* what the kernel takes in for one that does not read */
    MAX_MESSAGES = 1024,
    MESSAGE = 1024,        /* bytes of one */
    MAX_CREDENTIALS = 8192,
    CREDENTIAL = 1024,     /* bytes of one */
    STAMP = 32,            /* 2026-01-31T12:34:56.789123+00:00 */
};
enum state { NEW, ASKING, OPEN, LEAVING };
enum behaviour { LISTEN, STALL, CYCLE, KNOCK };

static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==", ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

static struct connection {
    enum state state;
    char *kept; /* the start of a message that is not whole yet */
    size_t size;
} connections[MAX_FDS];

static struct tick {
    int64_t made, last;
} ticks[TICKS];

static int epoll, port, wanted, in_flight;
static enum behaviour behaviour;
static char request[1024], buffer[BUFFER];
static char credentials[MAX_CREDENTIALS][CREDENTIAL];
static int credential_count, shown;
static int answered; /* a knock that ends was answered by 401 */
static char messages[MAX_MESSAGES][MESSAGE];
static int message_count, said;
static int started, pending, joined, open_now, refused, lost, done;
static int64_t since, frames, bytes, busy;
static int tick_count, lag_count;
static int32_t lags[MAX_LAGS];

static int64_t now_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static int64_t busy_us(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL + used.ru_utime.tv_usec +
           used.ru_stime.tv_usec;
}

/* -- reports ---------------------------------------------------------------------------------- */

static void reset(void) {
    since = now_us(CLOCK_REALTIME);
    busy = busy_us();
    frames = bytes = tick_count = lag_count = 0;
}

static int by_size(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void report(void) {
    double seconds = (now_us(CLOCK_REALTIME) - since) / 1e6, worked = (busy_us() - busy) / 1e6;
    qsort(lags, lag_count, sizeof *lags, by_size);
    printf("{\"seconds\":%.6f,\"busy\":%.6f,\"joined\":%d,\"open\":%d,\"refused\":%d,\"lost\":%d,"
           "\"done\":%d,\"frames\":%ld,\"bytes\":%ld,\"lags\":[%d,%d],\"last\":[",
           seconds, worked, joined, open_now, refused, lost, done, (long)frames, (long)bytes,
           lag_count ? lags[lag_count / 2] : 0, lag_count ? lags[lag_count / 100 * 99] : 0);
    for (int i = 0; i < tick_count; i++) printf("%s%ld", i ? "," : "", (long)ticks[i].last);
    puts("]}");
    fflush(stdout);
    reset();
}

static int64_t parse_stamp(const char *text) {
    static char seen[STAMP];
    static int64_t made;
    struct tm utc = {0};
    int fraction;
    if (!memcmp(text, seen, STAMP)) return made;
    if (sscanf(text, "%d-%d-%dT%d:%d:%d.%6d+00:00", &utc.tm_year, &utc.tm_mon, &utc.tm_mday,
               &utc.tm_hour, &utc.tm_min, &utc.tm_sec, &fraction) != 7)
        return 0;
    utc.tm_year -= 1900, utc.tm_mon -= 1;
    memcpy(seen, text, STAMP);
    return made = timegm(&utc) * 1000000LL + fraction;
}

/* Note when a text came. One that was made before this report began is no part of it. */
static void note(const char *text, size_t size) {
    int64_t made = size > STAMP + 2 ? parse_stamp(text + size - STAMP - 2) : 0;
    if (made < since) return;
    int64_t lag = now_us(CLOCK_REALTIME) - made;
    int i = tick_count - 1;
    while (i >= 0 && ticks[i].made != made) i--;
    if (i < 0 && tick_count < TICKS) ticks[i = tick_count++].made = made;
    if (i >= 0) ticks[i].last = lag;
    if (lag_count < MAX_LAGS) lags[lag_count++] = lag;
}

/* -- connections ------------------------------------------------------------------------------ */

static void watch(int fd, int operation, int events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, operation, fd, &event)) perror("epoll_ctl"), exit(1);
}

static void start(void) {
    struct sockaddr_in server = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, small = STALLED_BUFFER;
    if (fd < 0 || fd >= MAX_FDS) perror("socket"), exit(1);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (behaviour == STALL) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    connections[fd].state = NEW;
    started++, pending++;
    if (connect(fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
        perror("connect"), exit(1);
    watch(fd, EPOLL_CTL_ADD, EPOLLOUT);
}

static void end(int fd) {
    struct connection *connection = connections + fd;
    if (connection->state == OPEN) lost++, open_now--;
    else if (connection->state == LEAVING) done++, pending--;
    else if (behaviour == KNOCK && !answered) lost++, pending--;
    else refused++, pending--;
    free(connection->kept);
    memset(connection, 0, sizeof *connection);
    close(fd);
}

/* Send a control frame: masked, with a mask of zeros. */
static void control(int fd, int opcode, const void *payload, size_t size) {
    uint8_t out[6 + 125] = {0x80 | opcode, 0x80 | size};
    memcpy(out + 6, payload, size);
    send(fd, out, 6 + size, MSG_NOSIGNAL);
}

/* Say the next message: a text, masked with zeros. */
static void say(int fd) {
    char out[8 + MESSAGE] = {(char)0x81, (char)(0x80 | 126)}, *text = messages[said++ % message_count];
    size_t size = strlen(text);
    out[2] = size >> 8, out[3] = size;
    memcpy(out + 8, text, size);
    send(fd, out, 8 + size, MSG_NOSIGNAL);
}

/* Ask for the upgrade, with the next credential if there are any. */
static void ask(int fd) {
    char out[sizeof request + CREDENTIAL + 64];
    int size = snprintf(out, sizeof out, "%s", request);
    if (credential_count)
        size += snprintf(out + size, sizeof out - size, "Authorization: Bearer %s\r\n",
                         credentials[shown++ % credential_count]);
    size += snprintf(out + size, sizeof out - size, "\r\n");
    send(fd, out, size, MSG_NOSIGNAL);
}

static void leave(int fd) {
    static const uint8_t normal[] = {1000 >> 8, 1000 & 255};
    control(fd, 8, normal, sizeof normal);
    connections[fd].state = LEAVING;
    open_now--;
}

/* Take whole frames; returns how many bytes they were. */
static size_t take(int fd, char *data, size_t size) {
    char *at = data, *stop = data + size;
    while (stop - at >= 2) {
        uint8_t opcode = at[0] & 15, length = at[1] & 127;
        size_t head = length < 126 ? 2 : length == 126 ? 4 : 10, payload = length;
        if (stop - at < (ptrdiff_t)head) break;
        for (size_t i = 2, big = payload = head > 2 ? 0 : length; i < head; i++)
            payload = big = big << 8 | (uint8_t)at[i];
        if ((size_t)(stop - at) < head + payload) break;
        if (opcode == 9) control(fd, 10, at + head, payload);
        if (opcode == 1) {
            frames++;
            note(at + head, payload);
            if (behaviour == CYCLE && connections[fd].state == OPEN) leave(fd);
        }
        at += head + payload;
    }
    return at - data;
}

/* Returns the size of the answer to the upgrade, 0 when it is not whole yet, -1 when it is no. */
static ssize_t shaken(int fd, char *data, size_t size) {
    char *end_of_head = memmem(data, size, "\r\n\r\n", 4);
    if (!end_of_head) return 0;
    if (memcmp(data, "HTTP/1.1 101", 12) || !memmem(data, size, ACCEPT, sizeof ACCEPT - 1))
        return -1;
    connections[fd].state = OPEN;
    joined++, open_now++;
    if (behaviour != CYCLE) pending--;
    if (message_count) say(fd);
    return end_of_head + 4 - data;
}

static void hear(int fd) {
    struct connection *connection = connections + fd;
    size_t had = connection->size, used = 0;
    if (had) memcpy(buffer, connection->kept, had);
    ssize_t size = recv(fd, buffer + had, BUFFER - had, 0);
    if (size <= 0) {
        if (size == 0 || errno != EAGAIN) end(fd);
        return;
    }
    bytes += size;
    size += had;
    if (connection->state == ASKING) {
        ssize_t head = shaken(fd, buffer, size);
        if (head < 0) {
            /* What a knock measures is a refusal for its credential, and not, say, a 503. */
            answered = !memcmp(buffer, "HTTP/1.1 401", 12);
            end(fd);
            answered = 0;
            return;
        }
        used = head;
        if (used && behaviour == STALL) return watch(fd, EPOLL_CTL_MOD, 0);
    }
    if (connection->state != ASKING) used += take(fd, buffer + used, size - used);
    connection->size = size - used;
    if (connection->size) {
        connection->kept = realloc(connection->kept, connection->size);
        memcpy(connection->kept, buffer + used, connection->size);
    }
}

static void handle(int fd, int events) {
    if (connections[fd].state != NEW) {
        if (events & EPOLLIN) hear(fd);
        else end(fd); /* reset, while it was not reading */
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        end(fd);
    } else {
        connections[fd].state = ASKING;
        watch(fd, EPOLL_CTL_MOD, EPOLLIN);
        ask(fd);
    }
}

/* -- the course of it ------------------------------------------------------------------------- */

static void set_up(char **argv) {
    port = atoi(argv[1]);
    wanted = atoi(argv[3]);
    in_flight = atoi(argv[4]);
    behaviour = !strcmp(argv[5], "stall")   ? STALL
                : !strcmp(argv[5], "cycle") ? CYCLE
                : !strcmp(argv[5], "knock") ? KNOCK
                                            : LISTEN;
    size_t size = snprintf(request, sizeof request,
                           "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                           "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                           "Sec-WebSocket-Key: %s\r\n",
                           argv[2], KEY);
    if (argv[6])
        size += snprintf(request + size, sizeof request - size, "Sec-WebSocket-Protocol: %s\r\n",
                         argv[6]);
    if (argv[6] && argv[8])
        size += snprintf(request + size, sizeof request - size, "Sec-WebSocket-Extensions: %s\r\n",
                         argv[8]);
}

static void read_messages(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) perror(path), exit(1);
    while (message_count < MAX_MESSAGES && fgets(messages[message_count], MESSAGE, file))
        messages[message_count][strcspn(messages[message_count], "\n")] = 0, message_count++;
    fclose(file);
}

static void read_credentials(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) perror(path), exit(1);
    while (credential_count < MAX_CREDENTIALS && fgets(credentials[credential_count], CREDENTIAL, file))
        credentials[credential_count][strcspn(credentials[credential_count], "\n")] = 0,
        credential_count++;
    fclose(file);
}

/* Returns how many connections should have been opened by now. */
static int due(int64_t began) {
    return behaviour == KNOCK ? (now_us(CLOCK_MONOTONIC) - began) * wanted / 1000000 : wanted;
}

int main(int argc, char **argv) {
    for (int option; (option = getopt(argc, argv, "+c:")) != -1;)
        if (option == 'c') read_credentials(optarg);
        else return 2;
    argc -= optind - 1, argv += optind - 1;
    if (argc != 6 && argc != 8 && argc != 9)
        return fprintf(stderr, "usage: subscribers [-c CREDENTIALS] PORT PATH COUNT IN_FLIGHT "
                               "BEHAVIOUR [SUBPROTOCOL MESSAGES [EXTENSIONS]]\n"), 2;
    set_up(argv);
    if (argc >= 8) read_messages(argv[7]);
    epoll = epoll_create1(0);
    watch(STDIN_FILENO, EPOLL_CTL_ADD, EPOLLIN);
    reset();
    int reported = 0;
    int64_t began = now_us(CLOCK_MONOTONIC);
    for (struct epoll_event events[EVENTS];;) {
        while (started < due(began) && pending < in_flight) start();
        if (!reported && (behaviour == KNOCK || (started == wanted && !pending))) {
            report();
            reported = 1;
        }
        int ready = epoll_wait(epoll, events, EVENTS, behaviour == KNOCK ? 1 : -1);
        for (int i = 0; i < ready; i++) {
            char asked;
            if (events[i].data.fd != STDIN_FILENO) handle(events[i].data.fd, events[i].events);
            else if (read(STDIN_FILENO, &asked, 1) <= 0) return 0;
            else report();
        }
    }
}
