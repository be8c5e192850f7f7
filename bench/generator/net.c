/*
 * The network beyond the server (mode `net`), and an end of plain forwarding (mode `plain`).
 *
 * `net` sends probes to the sessions' addresses, checks those that the sessions have sent (the source must be the
 * session's address), and answers pings. `plain` stands where the LAC is, has all the subscribers' addresses itself and
 * uses no tunnel: its packets are what the kernel forwards without any L2TP server.
 */
#include "probe.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define RECEIVE_CALLS 4

static struct outgoing *out;
static struct incoming *in;
static uint32_t *addresses; /* by the session's number; 0: unknown */
static uint32_t room;
static struct flow *flows;
static struct tally tally;
static struct sender sender;
static bool plain, done;
static uint32_t peer; /* of `plain`: the host at the other end */
static int fd;

static void put(uint32_t session, const uint8_t *payload, size_t octets)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(plain ? 0 : PROBE_PORT)};
    uint8_t *data = outgoing_room(out);
    to.sin_addr.s_addr = htonl(plain ? peer : addresses[session]);
    if (plain) {
        probe_headers(data, addresses[session], peer, octets + IP_UDP);
        data += IP_UDP;
    }
    memcpy(data, payload, octets);
    commit(out, octets + (plain ? IP_UDP : 0), &to);
}

static uint32_t *numbers; /* of the next probe, by session */

static void probe_send(struct job *job)
{
    uint32_t session = 0, skipped = 0;
    for (; skipped < job->count; skipped++) {
        session = job->first + job->at;
        job->at = job->at + 1 < job->count ? job->at + 1 : 0;
        if (addresses[session])
            break;
    }
    if (skipped == job->count) {
        job->active = false;
        return;
    }
    uint8_t payload[PROBE_MOST];
    struct probe probe = {job->kind, job->run, session, 0, now_ns()};
    if (job->kind == PROBE_DATA)
        probe.number = numbers[session]++;
    probe_write(payload, job->octets - IP_UDP, &probe);
    put(session, payload, job->octets - IP_UDP);
    job->sent++;
}

/* The address that a datagram was sent to. */
static uint32_t destination(struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
            return ntohl(((struct in_pktinfo *)CMSG_DATA(c))->ipi_addr.s_addr);
    return 0;
}

static void answer(uint8_t *payload, size_t octets, const struct sockaddr_in *to)
{
    payload[4] = PROBE_PONG;
    memcpy(outgoing_room(out), payload, octets);
    commit(out, octets, to);
}

static void packet_received(int i, uint64_t at_ns)
{
    struct probe probe;
    bool intact;
    uint8_t *payload = in->data[i];
    size_t octets = in->message[i].msg_len;
    if (!probe_read(payload, octets, &probe, &intact)) {
        tally.foreign++;
        return;
    }
    uint32_t own = plain ? destination(&in->message[i].msg_hdr) : ntohl(in->from[i].sin_addr.s_addr);
    if (probe.session >= room || !own || addresses[probe.session] != own)
        tally.misdelivered++;
    else if (probe.kind == PROBE_PING && !plain)
        answer(payload, octets, &in->from[i]);
    else if (probe.kind == PROBE_PONG)
        sender_answered(&sender, &probe, at_ns);
    else
        tally_add(&tally, &flows[probe.session], &probe, intact, octets + IP_UDP, at_ns);
}

static void socket_ready(void)
{
    for (int calls = 0; calls < RECEIVE_CALLS; calls++) {
        int count = receive(in, fd);
        uint64_t at = now_ns();
        for (int i = 0; i < count; i++)
            packet_received(i, at);
        if (count < BATCH)
            break;
    }
}

/* Read the file that the mode `lac` has written: "NUMBER ADDRESS ..." a line. */
static void read_sessions(const char *file)
{
    FILE *list = fopen(file, "r");
    char line[128], text[32];
    uint32_t session, count = 0;
    if (!list)
        fail(file);
    memset(addresses, 0, room * sizeof *addresses);
    while (fgets(line, sizeof line, list)) {
        if (sscanf(line, "%u %31s", &session, text) != 2 || session >= room)
            refuse("%s: not a session below %u: %s", file, room, line);
        addresses[session] = ntohl(host("sessions", text).s_addr);
        count++;
    }
    fclose(list);
    printf("{\"event\":\"sessions\",\"sessions\":%u}\n", count);
}

static void execute(char *line)
{
    if (sender_command(&sender, line, room, out->errors)) {
        if (line[0] == 's')
            memset(numbers, 0, room * sizeof *numbers);
    } else if (!strncmp(line, "expect ", 7)) {
        tally_begin(&tally, flows, room, number("expect", line + 7, 0, 0xffff));
        printf("{\"event\":\"expect\"}\n");
    } else if (!strcmp(line, "counts"))
        tally_print(&tally, in->drops);
    else if (!strncmp(line, "sessions ", 9) && !plain)
        read_sessions(line + 9);
    else if (!strcmp(line, "quit"))
        done = true;
    else
        refuse("no such command: %s", line);
}

static void prepare(uint32_t sessions)
{
    room = sessions;
    addresses = calloc(room, sizeof *addresses);
    flows = calloc(room, sizeof *flows);
    numbers = calloc(room, sizeof *numbers);
    in = calloc(1, sizeof *in);
    out = malloc(sizeof *out);
    if (!addresses || !flows || !numbers || !in || !out)
        fail("calloc");
}

static void open_plain(const char *to, const char *first)
{
    struct in_addr any = {0};
    int one = 1, raw = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_RAW);
    if (raw < 0)
        fail("raw socket");
    plain = true;
    peer = ntohl(host("PEER", to).s_addr);
    for (uint32_t i = 0; i < room; i++)
        addresses[i] = ntohl(host("FIRST", first).s_addr) + i;
    fd = open_udp(any, PROBE_PORT, 64 << 20);
    setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
    outgoing_init(out, raw, false);
}

static void open_net(const char *address)
{
    int one = 1;
    fd = open_udp(host("ADDRESS", address), PROBE_PORT, 64 << 20);
    setsockopt(fd, SOL_SOCKET, SO_NO_CHECK, &one, sizeof one);
    outgoing_init(out, fd, false);
}

/* `net ADDRESS SESSIONS` or `plain PEER FIRST SESSIONS` */
int net_main(int count, char **words, bool is_plain)
{
    struct epoll_event events[2], commands = {.events = EPOLLIN, .data.fd = -1}, packets = {.events = EPOLLIN};
    struct lines lines = {0};
    if (count != (is_plain ? 3 : 2))
        refuse(is_plain ? "plain PEER FIRST SESSIONS" : "net ADDRESS SESSIONS");
    prepare(number("SESSIONS", words[count - 1], 1, 10000000));
    if (is_plain)
        open_plain(words[0], words[1]);
    else
        open_net(words[0]);
    int queue = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(queue, EPOLL_CTL_ADD, fd, &packets);
    epoll_ctl(queue, EPOLL_CTL_ADD, STDIN_FILENO, &commands);
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    printf("{\"event\":\"ready\"}\n");
    while (!done && !lines.ended) {
        flush(out);
        fflush(stdout);
        struct timespec patience = {0, sender_sleep(&sender, 500000000)};
        int got = epoll_pwait2(queue, events, 2, &patience, NULL);
        for (int i = 0; i < got; i++)
            if (events[i].data.fd >= 0)
                socket_ready();
            else
                lines_read(&lines, execute);
        sender_step(&sender, probe_send, out->errors);
    }
    fflush(stdout);
    return 0;
}
