/*
 * The mode `radius`: accepts every user without a look at the password, and acknowledges accounting (RFC 2865, 2866).
 *
 * Each answer carries a Message-Authenticator (RFC 2869 5.14) to an Access-Request, and is signed with the secret.
 * Requests are not verified: what is measured is the server that asks.
 */
#include "wire.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <stdlib.h>
#include <unistd.h>

enum { ACCESS_REQUEST = 1, ACCESS_ACCEPT, ACCOUNTING_REQUEST = 4, ACCOUNTING_RESPONSE };
enum { USER_NAME = 1, SERVICE_TYPE = 6, FRAMED_PROTOCOL, FRAMED_ADDRESS, STATUS_TYPE = 40, MESSAGE_AUTHENTICATOR = 80 };
enum { START = 1, STOP, INTERIM };

#define HEADER 20
#define SEEN 262144 /* Accounting-Requests that are remembered, a power of two */
#define RECEIVE_CALLS 8

static const char *secret;
static uint32_t first_address; /* 0: the L2TP server takes an address of its own pool */
static uint64_t accepts, requests, counts[4], others, malformed, duplicates;
static uint8_t (*seen)[16]; /* by hash: authenticators of Accounting-Requests */
static struct outgoing *out[2];
static struct incoming *in;
static bool done;

/* Find an attribute. Return its value and length; NULL if it is missing. */
static const uint8_t *attribute(const uint8_t *data, size_t octets, unsigned type, size_t *length)
{
    for (size_t at = HEADER; at + 2 <= octets && data[at + 1] >= 2; at += data[at + 1])
        if (data[at] == type && at + data[at + 1] <= octets) {
            *length = data[at + 1] - 2;
            return data + at + 2;
        }
    return NULL;
}

static size_t add(uint8_t *reply, size_t octets, unsigned type, const void *value, size_t length)
{
    reply[octets] = type;
    reply[octets + 1] = length + 2;
    memcpy(reply + octets + 2, value, length);
    return octets + 2 + length;
}

/* Return the first address plus the number at the end of the user's name. */
static uint32_t address_of(const uint8_t *data, size_t octets)
{
    size_t length = 0;
    const uint8_t *name = attribute(data, octets, USER_NAME, &length);
    uint32_t offset = 0;
    for (size_t i = 0; name && i < length; i++)
        offset = name[i] >= '0' && name[i] <= '9' ? offset * 10 + name[i] - '0' : 0;
    return first_address + offset;
}

static size_t accept_user(const uint8_t *data, size_t octets, uint8_t *reply)
{
    static const uint8_t framed[4] = {0, 0, 0, 2}, ppp[4] = {0, 0, 0, 1}, zeros[16];
    size_t length = HEADER;
    accepts++;
    length = add(reply, length, MESSAGE_AUTHENTICATOR, zeros, sizeof zeros);
    length = add(reply, length, SERVICE_TYPE, framed, sizeof framed);
    length = add(reply, length, FRAMED_PROTOCOL, ppp, sizeof ppp);
    if (first_address) {
        uint8_t address[4];
        put32(address, address_of(data, octets));
        length = add(reply, length, FRAMED_ADDRESS, address, sizeof address);
    }
    put16(reply + 2, length);
    uint8_t digest[16];
    hmac_md5(secret, reply, length, digest);
    memcpy(reply + HEADER + 2, digest, sizeof digest);
    return length;
}

/* Count an Accounting-Request. One whose authenticator was seen is a repetition (RFC 2866 3). */
static size_t account(const uint8_t *data, size_t octets, uint8_t *reply)
{
    size_t length = 0;
    const uint8_t *status = attribute(data, octets, STATUS_TYPE, &length);
    uint8_t *slot = seen[get32(data + 4) & (SEEN - 1)];
    if (!memcmp(slot, data + 4, 16))
        duplicates++;
    else if (status && length == 4 && get32(status) >= START && get32(status) <= INTERIM)
        counts[get32(status)]++;
    else
        others++;
    memcpy(slot, data + 4, 16);
    put16(reply + 2, HEADER);
    return HEADER;
}

static void sign(uint8_t *reply, size_t octets)
{
    struct md5 md5;
    md5_begin(&md5);
    md5_add(&md5, reply, octets); /* holds the request's authenticator */
    md5_add(&md5, secret, strlen(secret));
    md5_end(&md5, reply + 4);
}

static void request_received(int socket, int i)
{
    const uint8_t *data = in->data[i];
    size_t octets = in->message[i].msg_len;
    if (octets < HEADER || get16(data + 2) < HEADER || get16(data + 2) > octets ||
        data[0] != (socket ? ACCOUNTING_REQUEST : ACCESS_REQUEST)) {
        malformed++;
        return;
    }
    octets = get16(data + 2);
    requests++;
    uint8_t *reply = outgoing_room(out[socket]);
    reply[0] = socket ? ACCOUNTING_RESPONSE : ACCESS_ACCEPT;
    reply[1] = data[1];
    memcpy(reply + 4, data + 4, 16);
    octets = socket ? account(data, octets, reply) : accept_user(data, octets, reply);
    sign(reply, octets);
    commit(out[socket], octets, &in->from[i]);
}

static void execute(char *line)
{
    if (!strcmp(line, "stats"))
        printf("{\"event\":\"stats\",\"requests\":%llu,\"accepts\":%llu,\"starts\":%llu,\"stops\":%llu,"
               "\"interims\":%llu,\"others\":%llu,\"duplicates\":%llu,\"malformed\":%llu}\n",
               (unsigned long long)requests, (unsigned long long)accepts, (unsigned long long)counts[START],
               (unsigned long long)counts[STOP], (unsigned long long)counts[INTERIM], (unsigned long long)others,
               (unsigned long long)duplicates, (unsigned long long)malformed);
    else if (!strcmp(line, "quit"))
        done = true;
    else
        refuse("no such command: %s", line);
}

/* `radius ADDRESS PORT SECRET [FIRST]`: accounting is on the port after PORT */
int radius_main(int count, char **words)
{
    struct epoll_event events[3], commands = {.events = EPOLLIN, .data.fd = -1};
    struct lines lines = {0};
    if (count != 3 && count != 4)
        refuse("radius ADDRESS PORT SECRET [FIRST]");
    secret = words[2];
    if (strlen(secret) > 64)
        refuse("the secret is longer than 64 octets");
    if (count == 4)
        first_address = ntohl(host("FIRST", words[3]).s_addr);
    int queue = epoll_create1(EPOLL_CLOEXEC);
    seen = calloc(SEEN, sizeof *seen);
    in = calloc(1, sizeof *in);
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = i};
        int fd = open_udp(host("ADDRESS", words[0]), number("PORT", words[1], 1, 65534) + i, 16 << 20);
        if (!(out[i] = malloc(sizeof *out[i])) || !seen || !in)
            fail("malloc");
        outgoing_init(out[i], fd, false);
        epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event);
    }
    epoll_ctl(queue, EPOLL_CTL_ADD, STDIN_FILENO, &commands);
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    printf("{\"event\":\"ready\"}\n");
    while (!done && !lines.ended) {
        fflush(stdout);
        int got = epoll_wait(queue, events, 3, -1);
        for (int i = 0; i < got; i++) {
            int socket = events[i].data.fd, received = BATCH;
            if (socket < 0)
                lines_read(&lines, execute);
            for (int calls = 0; socket >= 0 && calls < RECEIVE_CALLS && received == BATCH; calls++) {
                received = receive(in, out[socket]->fd);
                for (int j = 0; j < received; j++)
                    request_received(socket, j);
                flush(out[socket]);
            }
        }
    }
    return 0;
}
