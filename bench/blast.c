/*
 * blast: send L2TP data messages or plain UDP packets as fast as asked, and count what arrives.
 *
 *   blast l2tp  FROM PORT TO PORT SIZE SECONDS RATE DEST   stdin: "tunnel session inner-address" a line
 *   blast udp   FROM PORT TO-PORT SIZE SECONDS RATE        stdin: one destination address a line
 *   blast count ADDRESS PORT SECONDS                       stops early when nothing came for a second
 *
 * SIZE is that of the IP packet (in `udp` mode of the packet with its UDP header), RATE packets a second, 0 for all
 * that goes. The lines are used in turn. Inner packets are UDP to port 9 of DEST, PPP with FF 03, no L2TP option.
 * One line of results on stdout: packets octets seconds.
 *
 * Build: cc -O2 -o blast blast.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define LARGEST 4096
#define L2TP_AND_PPP 10

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_in address(const char *host, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, host, &a.sin_addr) != 1) {
        fprintf(stderr, "blast: %s is not an IPv4 address\n", host);
        exit(2);
    }
    return a;
}

static int open_socket(const char *host, const char *port)
{
    struct sockaddr_in a = address(host, port);
    int size = 16 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0)
        fail("bind");
    return fd;
}

static uint16_t checksum(const uint8_t *p, int n)
{
    uint32_t sum = 0;
    for (int i = 0; i < n; i += 2)
        sum += p[i] << 8 | p[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = v >> 8;
    p[1] = v;
}

/* L2TP, PPP, IP and UDP headers of one session's packets. */
static void fill(uint8_t *p, unsigned tunnel, unsigned session, struct in_addr from, struct in_addr to, int size)
{
    uint8_t *ip = p + L2TP_AND_PPP;
    memset(p, 0, L2TP_AND_PPP + 28);
    put16(p, 0x0002);
    put16(p + 2, tunnel);
    put16(p + 4, session);
    put16(p + 6, 0xff03);
    put16(p + 8, 0x0021);
    ip[0] = 0x45;
    put16(ip + 2, size);
    ip[8] = 64;
    ip[9] = 17;
    memcpy(ip + 12, &from, 4);
    memcpy(ip + 16, &to, 4);
    put16(ip + 10, checksum(ip, 20));
    put16(ip + 20, 1024 + session % 60000);
    put16(ip + 22, 9);
    put16(ip + 24, size - 20);
}

/* Send the prepared messages in turn, BATCH a call, until the time is over. */
static void blast(int fd, struct mmsghdr *m, int count, int octets, double seconds, double rate)
{
    double start = now(), end = start + seconds, t = start;
    uint64_t sent = 0;
    int at = 0;
    while ((t = now()) < end) {
        if (rate > 0 && sent > (t - start) * rate) {
            usleep(200);
            continue;
        }
        int n = count - at < BATCH ? count - at : BATCH;
        int done = sendmmsg(fd, m + at, n, 0);
        if (done < 0) {
            if (errno != ENOBUFS && errno != EAGAIN && errno != ECONNREFUSED && errno != EPERM && errno != EHOSTUNREACH)
                fail("sendmmsg");
            usleep(100);
            continue;
        }
        sent += done;
        at = at + done >= count ? 0 : at + done;
    }
    printf("%llu %llu %.3f\n", (unsigned long long)sent, (unsigned long long)sent * octets, t - start);
}

static void send_all(int argc, char **argv, int l2tp)
{
    if (argc != (l2tp ? 10 : 8)) {
        fprintf(stderr, "blast: wrong number of arguments, see the head of blast.c\n");
        exit(2);
    }
    int fd = open_socket(argv[2], argv[3]);
    struct sockaddr_in to = {0};
    struct in_addr dest = {0};
    const char **rest = (const char **)argv + (l2tp ? 6 : 5);
    int size = atoi(rest[0]);
    if (size < 28 || size > LARGEST - L2TP_AND_PPP) {
        fprintf(stderr, "blast: bad size\n");
        exit(2);
    }
    if (l2tp) {
        to = address(argv[4], argv[5]);
        dest = address(argv[9], "0").sin_addr;
    }
    int octets = l2tp ? size + L2TP_AND_PPP : size - 28, count = 0, room = 0;
    static uint8_t payload[LARGEST];
    uint8_t *data = NULL;
    struct sockaddr_in *names = NULL;
    char line[128], inner[64];
    unsigned tunnel = 0, session = 0;
    while (fgets(line, sizeof line, stdin)) {
        if (l2tp ? sscanf(line, "%u %u %63s", &tunnel, &session, inner) != 3 : sscanf(line, "%63s", inner) != 1)
            continue;
        if (count == room) {
            room = room ? room * 2 : 64;
            names = realloc(names, room * sizeof *names);
            if (l2tp)
                data = realloc(data, (size_t)room * 64);
            if (!names || (l2tp && !data))
                fail("realloc");
        }
        names[count] = l2tp ? to : address(inner, argv[4]);
        if (l2tp)
            fill(data + (size_t)count * 64, tunnel, session, address(inner, "0").sin_addr, dest, size);
        count++;
    }
    if (!count) {
        fprintf(stderr, "blast: nothing on stdin\n");
        exit(2);
    }
    /* Few lines are repeated, so that every call still carries a full batch. */
    int messages = count < BATCH ? count * ((BATCH + count - 1) / count) : count;
    struct mmsghdr *m = calloc(messages, sizeof *m);
    struct iovec *v = calloc(messages, 2 * sizeof *v);
    if (!m || !v)
        fail("calloc");
    for (int i = 0; i < messages; i++) {
        struct iovec *parts = v + 2 * i;
        int headers = l2tp ? L2TP_AND_PPP + 28 : 0;
        parts[0].iov_base = l2tp ? data + (size_t)(i % count) * 64 : payload;
        parts[0].iov_len = headers;
        parts[1].iov_base = payload;
        parts[1].iov_len = octets - headers;
        m[i].msg_hdr.msg_name = names + i % count;
        m[i].msg_hdr.msg_namelen = sizeof *names;
        m[i].msg_hdr.msg_iov = parts;
        m[i].msg_hdr.msg_iovlen = 2;
    }
    blast(fd, m, messages, l2tp ? size : octets + 28, atof(rest[1]), atof(rest[2]));
}

static void count_all(int argc, char **argv)
{
    static uint8_t data[BATCH][LARGEST];
    struct mmsghdr m[BATCH] = {0};
    struct iovec v[BATCH];
    uint64_t packets = 0, octets = 0;
    if (argc != 5) {
        fprintf(stderr, "blast: count ADDRESS PORT SECONDS\n");
        exit(2);
    }
    int fd = open_socket(argv[2], argv[3]);
    struct timeval second = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    for (int i = 0; i < BATCH; i++) {
        v[i].iov_base = data[i];
        v[i].iov_len = LARGEST;
        m[i].msg_hdr.msg_iov = &v[i];
        m[i].msg_hdr.msg_iovlen = 1;
    }
    double deadline = now() + atof(argv[4]), first = 0, last = 0;
    while (now() < deadline) {
        int n = recvmmsg(fd, m, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINTR)
                fail("recvmmsg");
            if (packets)
                break;
            continue;
        }
        last = now();
        if (!packets)
            first = last;
        packets += n;
        for (int i = 0; i < n; i++)
            octets += m[i].msg_len;
    }
    printf("%llu %llu %.3f\n", (unsigned long long)packets, (unsigned long long)octets, last - first);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "l2tp"))
        send_all(argc, argv, 1);
    else if (!strcmp(mode, "udp"))
        send_all(argc, argv, 0);
    else if (!strcmp(mode, "count"))
        count_all(argc, argv);
    else {
        fprintf(stderr, "blast: l2tp, udp or count; see the head of blast.c\n");
        return 2;
    }
    return 0;
}
