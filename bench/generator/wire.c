/*
 * Time, checksums, sockets, batches of datagrams, percentiles and commands, for all modes of the generator.
 */
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

double now(void)
{
    return now_ns() / 1e9;
}

void fail(const char *what)
{
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(1);
}

void refuse(const char *format, ...)
{
    va_list arguments;
    fputs("loadgen: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

unsigned checksum(const uint8_t *data, size_t octets)
{
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < octets; i += 2)
        sum += get16(data + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum & 0xffff;
}

unsigned long number(const char *option, const char *text, unsigned long least, unsigned long most)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most)
        refuse("%s takes a number from %lu to %lu, not %s", option, least, most, text);
    return value;
}

struct in_addr host(const char *option, const char *text)
{
    struct in_addr address;
    if (inet_pton(AF_INET, text, &address) != 1)
        refuse("%s takes an IPv4 address, not %s", option, text);
    return address;
}

int open_udp(struct in_addr address, unsigned port, int buffer)
{
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address};
    int one = 1, fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    /* Without root the buffers are those that the system allows, and the drops counter shows what they lack. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&local, sizeof local) < 0)
        fail("bind");
    return fd;
}

void outgoing_init(struct outgoing *out, int fd, bool connected)
{
    memset(out, 0, offsetof(struct outgoing, data));
    out->fd = fd;
    for (int i = 0; i < BATCH; i++) {
        out->part[i].iov_base = out->data[i];
        out->message[i].msg_hdr = (struct msghdr){.msg_iov = &out->part[i], .msg_iovlen = 1};
        if (!connected) {
            out->message[i].msg_hdr.msg_name = &out->to[i];
            out->message[i].msg_hdr.msg_namelen = sizeof out->to[i];
        }
    }
}

uint8_t *outgoing_room(struct outgoing *out)
{
    return out->data[out->count];
}

void commit(struct outgoing *out, size_t octets, const struct sockaddr_in *to)
{
    out->part[out->count].iov_len = octets;
    if (to)
        out->to[out->count] = *to;
    if (++out->count == BATCH)
        flush(out);
}

/* Send the batch. A datagram that the kernel refuses (closed port, no buffer) is counted in `errors`. */
void flush(struct outgoing *out)
{
    for (int at = 0; at < out->count;) {
        int done = sendmmsg(out->fd, out->message + at, out->count - at, 0);
        if (done > 0) {
            out->sent += done;
            at += done;
        } else if (errno != EINTR) {
            out->errors++;
            at++;
        }
    }
    out->count = 0;
}

int receive(struct incoming *in, int fd)
{
    for (int i = 0; i < BATCH; i++) {
        in->part[i] = (struct iovec){in->data[i], LARGEST};
        in->message[i].msg_hdr = (struct msghdr){
            .msg_name = &in->from[i],
            .msg_namelen = sizeof in->from[i],
            .msg_iov = &in->part[i],
            .msg_iovlen = 1,
            .msg_control = in->control[i].octets,
            .msg_controllen = sizeof in->control[i].octets,
        };
    }
    int count = recvmmsg(fd, in->message, BATCH, MSG_DONTWAIT, NULL);
    if (count <= 0)
        return 0;
    struct msghdr *last = &in->message[count - 1].msg_hdr;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(last); c; c = CMSG_NXTHDR(last, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL)
            memcpy(&in->drops, CMSG_DATA(c), sizeof in->drops);
    return count;
}

void samples_add(struct samples *samples, double value)
{
    if (samples->count == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 1024;
        samples->value = realloc(samples->value, samples->room * sizeof *samples->value);
        if (!samples->value)
            fail("realloc");
    }
    samples->value[samples->count++] = value;
}

void samples_clear(struct samples *samples)
{
    samples->count = 0;
}

static int compare(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

/* The smallest sample that at least `share` of all do not exceed. */
static double percentile(const struct samples *samples, double share)
{
    if (!samples->count)
        return 0.0;
    size_t at = samples->count * share;
    return samples->value[at < samples->count ? at : samples->count - 1];
}

void samples_print(struct samples *samples, const char *name)
{
    qsort(samples->value, samples->count, sizeof *samples->value, compare);
    printf("\"%s\":{\"count\":%zu,\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,\"max\":%.4f}", name, samples->count,
           1e3 * percentile(samples, 0.5), 1e3 * percentile(samples, 0.9), 1e3 * percentile(samples, 0.99),
           1e3 * percentile(samples, 1.0));
}

void lines_read(struct lines *lines, void (*execute)(char *line))
{
    ssize_t got = read(STDIN_FILENO, lines->data + lines->used, sizeof lines->data - lines->used);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        lines->ended = true;
    if (got <= 0)
        return;
    lines->used += got;
    char *start = lines->data, *end;
    while ((end = memchr(start, '\n', lines->data + lines->used - start))) {
        *end = 0;
        execute(start);
        start = end + 1;
    }
    lines->used -= start - lines->data;
    memmove(lines->data, start, lines->used);
    if (lines->used == sizeof lines->data)
        refuse("a command is longer than %zu octets", sizeof lines->data);
}
