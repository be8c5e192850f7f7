/*
 * What all modes of the generator share: time, octets in network order, checksums, MD5, sockets, batches, samples.
 */
#ifndef WIRE_H
#define WIRE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* struct mmsghdr, epoll_pwait2; so each file includes this header, or one that does, first */
#endif

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

#define BATCH 64
#define LARGEST 2048 /* octets of a datagram, L2TP header included */

/* Monotonic time in seconds, and the same clock in nanoseconds. */
double now(void);
uint64_t now_ns(void);

static inline unsigned get16(const uint8_t *p)
{
    return p[0] << 8 | p[1];
}

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static inline void put16(uint8_t *p, unsigned value)
{
    p[0] = value >> 8;
    p[1] = value;
}

static inline void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value);
}

/* Print a message (and errno's text, in fail()) on standard error and exit. */
void fail(const char *what) __attribute__((noreturn));
void refuse(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* Return the Internet checksum (RFC 1071) of an even number of octets; 0 if they contain a correct one. */
unsigned checksum(const uint8_t *data, size_t octets);

/* Return an option's value, or exit with a message that names the option. */
unsigned long number(const char *option, const char *text, unsigned long least, unsigned long most);
struct in_addr host(const char *option, const char *text);

/* Open a non-blocking UDP socket with large buffers, which reports packets that its own queue dropped. */
int open_udp(struct in_addr address, unsigned port, int buffer);

/* Datagrams on their way to one socket. */
struct outgoing {
    int fd;
    int count;
    uint64_t sent, errors;
    struct mmsghdr message[BATCH];
    struct iovec part[BATCH];
    struct sockaddr_in to[BATCH];
    uint8_t data[BATCH][LARGEST];
};

/* Prepare for a socket that is connected (`connected`), or whose messages each have a destination. */
void outgoing_init(struct outgoing *out, int fd, bool connected);

/* Return room for a datagram of at most LARGEST octets. commit() adds it to the batch, which is sent when full. */
uint8_t *outgoing_room(struct outgoing *out);
void commit(struct outgoing *out, size_t octets, const struct sockaddr_in *to);
void flush(struct outgoing *out);

/* Datagrams that arrived at a socket. */
struct incoming {
    uint32_t drops; /* datagrams that the socket's full queue has dropped so far */
    struct mmsghdr message[BATCH];
    struct iovec part[BATCH];
    struct sockaddr_in from[BATCH];
    uint8_t data[BATCH][LARGEST];
    union {
        char octets[64];
        struct cmsghdr align;
    } control[BATCH];
};

/* Receive what is there. Return the number of datagrams, 0 if there is none or the peer's port is closed. */
int receive(struct incoming *in, int fd);

/* Values of which percentiles are wanted. */
struct samples {
    double *value;
    size_t count, room;
};

void samples_add(struct samples *samples, double value);
void samples_clear(struct samples *samples);

/* Print `"name":{"count":..,"p50":..,"p90":..,"p99":..,"max":..}` in milliseconds; the samples are seconds. */
void samples_print(struct samples *samples, const char *name);

/* Lines that arrive at standard input, without blocking. */
struct lines {
    size_t used;
    bool ended;
    char data[4096];
};

/* Call `execute` with each complete line. At the end of the input, set `ended`. */
void lines_read(struct lines *lines, void (*execute)(char *line));

struct md5 {
    uint32_t state[4];
    uint64_t octets;
    uint8_t block[64];
};

void md5_begin(struct md5 *md5);
void md5_add(struct md5 *md5, const void *data, size_t octets);
void md5_end(struct md5 *md5, uint8_t digest[16]);

/* RFC 2104, for the Message-Authenticator of RFC 2869 5.14. */
void hmac_md5(const char *key, const uint8_t *data, size_t octets, uint8_t digest[16]);

#endif
