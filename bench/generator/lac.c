/*
 * The mode `lac`: options, commands, the event loop, and the packets of subscribers.
 */
#include "lac.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define MAX_SOCKETS 16
#define L2TP_PORT 1701
#define RECEIVE_CALLS 4 /* batches of one socket before the others are served */
#define IP_PROTOCOL 0x0021

struct session *sessions;
struct tunnel *tunnels;
uint32_t tunnel_count = 1, session_room = 1000;
const char *secret, *lac_name = "loadgen", *user_prefix = "user", *password = "secret";

static struct outgoing *out[MAX_SOCKETS];
static int sockets;
static struct incoming *in;
static uint32_t drops[MAX_SOCKETS];
static struct flow *flows;
static struct tally tally;
static struct sender sender;
static uint32_t peer; /* the generator beyond the server */
static bool done;

static uint64_t send_errors(void)
{
    uint64_t errors = 0;
    for (int i = 0; i < sockets; i++)
        errors += out[i]->errors;
    return errors;
}

/* Send a probe of the job's next session that is online. A job without any ends. */
static void probe_send(struct job *job)
{
    struct session *session = NULL;
    for (uint32_t skipped = 0; skipped < job->count; skipped++) {
        session = &sessions[job->first + job->at];
        job->at = job->at + 1 < job->count ? job->at + 1 : 0;
        if (session->state == ONLINE)
            break;
        session = NULL;
    }
    if (!session) {
        job->active = false;
        return;
    }
    struct outgoing *to = tunnel_of(session)->out;
    uint8_t *room = outgoing_room(to), *ip = ppp_header(room, session, IP_PROTOCOL);
    struct probe probe = {job->kind, job->run, session->number, 0, now_ns()};
    if (job->kind == PROBE_DATA)
        probe.number = session->sent++;
    probe_headers(ip, session->address, peer, job->octets);
    probe_write(ip + IP_UDP, job->octets - IP_UDP, &probe);
    commit(to, ip - room + job->octets, NULL);
    job->sent++;
}

/* Check a packet that the server has delivered to a session. */
static void packet_received(struct session *session, const uint8_t *ip, size_t octets, uint64_t at_ns)
{
    struct probe probe;
    bool intact;
    size_t length = octets >= IP_UDP ? get16(ip + 2) : 0;
    if (length < IP_UDP || length > octets || ip[0] != 0x45 || ip[9] != IPPROTO_UDP ||
        !probe_read(ip + IP_UDP, length - IP_UDP, &probe, &intact)) {
        tally.foreign++;
        return;
    }
    if (get32(ip + 16) != session->address || probe.session != session->number)
        tally.misdelivered++;
    else if (probe.kind == PROBE_PONG)
        sender_answered(&sender, &probe, at_ns);
    else
        tally_add(&tally, &flows[session->number], &probe, intact && !checksum(ip, 20), length, at_ns);
}

/* Read a data message (RFC 2661 3.1): its options, then PPP with or without address and control. */
static void data_received(const uint8_t *data, size_t octets, uint64_t at_ns)
{
    unsigned flags = get16(data);
    size_t header = 6 + (flags & 0x4000 ? 2 : 0) + (flags & 0x0800 ? 4 : 0);
    if ((flags & 15) != 2 || octets < header + 4)
        return;
    const uint8_t *ids = data + (flags & 0x4000 ? 4 : 2);
    if (flags & 0x0200)
        header += 2 + get16(data + header);
    if (octets < header + 4)
        return;
    if (flags & 0x4000 && get16(data + 2) <= octets)
        octets = get16(data + 2);
    if (octets < header + 4)
        return;
    const uint8_t *ppp = data + header, *end = data + octets;
    if (get16(ppp) == 0xff03)
        ppp += 2;
    struct session *session = session_of(get16(ids), get16(ids + 2));
    if (!session || end - ppp < 2)
        tally.foreign++;
    else if (get16(ppp) == IP_PROTOCOL || ppp[0] == IP_PROTOCOL)
        packet_received(session, ppp + (ppp[0] ? 1 : 2), end - ppp - (ppp[0] ? 1 : 2), at_ns);
    else
        ppp_received(session, ppp, end - ppp);
}

static void socket_ready(int number)
{
    for (int calls = 0; calls < RECEIVE_CALLS; calls++) {
        int count = receive(in, out[number]->fd);
        uint64_t at = now_ns();
        for (int i = 0; i < count; i++) {
            const uint8_t *data = in->data[i];
            size_t octets = in->message[i].msg_len;
            if (octets >= 6 && data[0] & 0x80)
                control_received(data, octets);
            else if (octets >= 6)
                data_received(data, octets, at);
        }
        if (count < BATCH)
            break;
    }
    drops[number] = in->drops > drops[number] ? in->drops : drops[number];
}

/* Commands */

static void list(const char *file)
{
    FILE *list = fopen(file, "w");
    uint32_t count = 0;
    if (!list)
        fail(file);
    for (uint32_t i = 0; i < session_room; i++)
        if (sessions[i].state == ONLINE) {
            struct in_addr address = {htonl(sessions[i].address)};
            fprintf(list, "%u %s %u %u\n", i, inet_ntoa(address), tunnel_of(&sessions[i])->peer_id,
                    sessions[i].peer_id);
            count++;
        }
    if (fclose(list))
        fail(file);
    printf("{\"event\":\"list\",\"sessions\":%u}\n", count);
}

static void hang_up_some(const char *text)
{
    unsigned first, count, ended = 0;
    if (sscanf(text, "%u %u", &first, &count) != 2 || first > session_room || count > session_room - first)
        refuse("hangup FIRST COUNT: %s", text);
    for (uint32_t i = first; i < first + count; i++)
        if (sessions[i].state == ONLINE) {
            hang_up(&sessions[i]);
            sessions[i].state = ENDED;
            online--;
            ended++;
        }
    printf("{\"event\":\"hangup\",\"sessions\":%u}\n", ended);
}

static void print_statistics(void)
{
    printf("{\"event\":\"stats\",\"online\":%u,\"lost\":%u,\"echoes\":%llu,\"hellos\":%llu,\"retransmissions\":%llu,"
           "\"send_errors\":%llu,",
           online, lost, (unsigned long long)echoes, (unsigned long long)hellos, (unsigned long long)retransmissions,
           (unsigned long long)send_errors());
    samples_print(&acknowledged, "acknowledged_ms");
    printf("}\n");
}

static void execute(char *line)
{
    if (!strncmp(line, "login ", 6))
        login(line + 6);
    else if (sender_command(&sender, line, session_room, send_errors())) {
        if (line[0] == 's')
            for (uint32_t i = 0; i < session_room; i++)
                sessions[i].sent = 0;
    } else if (!strncmp(line, "expect ", 7)) {
        tally_begin(&tally, flows, session_room, number("expect", line + 7, 0, 0xffff));
        printf("{\"event\":\"expect\"}\n");
    } else if (!strcmp(line, "counts")) {
        uint32_t all = 0;
        for (int i = 0; i < sockets; i++)
            all += drops[i];
        tally_print(&tally, all);
    } else if (!strncmp(line, "list ", 5))
        list(line + 5);
    else if (!strncmp(line, "hangup ", 7))
        hang_up_some(line + 7);
    else if (!strcmp(line, "stats"))
        print_statistics();
    else if (!strcmp(line, "forget")) {
        samples_clear(&acknowledged);
        printf("{\"event\":\"forget\"}\n");
    } else if (!strcmp(line, "quit")) {
        for (uint32_t i = 0; i < tunnel_count; i++)
            tunnel_close(&tunnels[i]);
        done = true;
    } else
        refuse("no such command: %s", line);
}

/* Start */

static void options(int count, char **words, struct in_addr from[MAX_SOCKETS], struct in_addr *lns, unsigned *port)
{
    for (int i = 0; i < count; i += 2) {
        const char *option = words[i], *value = i + 1 < count ? words[i + 1] : NULL;
        if (!value)
            refuse("%s takes a value", option);
        if (!strcmp(option, "--from") && sockets < MAX_SOCKETS)
            from[sockets++] = host(option, value);
        else if (!strcmp(option, "--lns"))
            *lns = host(option, value);
        else if (!strcmp(option, "--peer"))
            peer = ntohl(host(option, value).s_addr);
        else if (!strcmp(option, "--port"))
            *port = number(option, value, 0, 65535);
        else if (!strcmp(option, "--tunnels"))
            tunnel_count = number(option, value, 1, 65535);
        else if (!strcmp(option, "--sessions"))
            session_room = number(option, value, 1, 10000000);
        else if (!strcmp(option, "--secret"))
            secret = value;
        else if (!strcmp(option, "--name"))
            lac_name = value;
        else if (!strcmp(option, "--users"))
            user_prefix = value;
        else if (!strcmp(option, "--password"))
            password = value;
        else
            refuse("no such option, or once too often: %s", option);
    }
    if (!sockets || !lns->s_addr)
        refuse("--from and --lns are needed");
    if (session_room > tunnel_count * 65535ull)
        refuse("a tunnel has 65535 sessions at most");
    if (strlen(password) > 100 || strlen(user_prefix) > 80 || strlen(lac_name) > 100)
        refuse("a name or password is too long");
}

static void open_sockets(int queue, const struct in_addr *from, struct in_addr lns, unsigned port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(L2TP_PORT), .sin_addr = lns};
    for (int i = 0; i < sockets; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = i};
        int fd = open_udp(from[i], port, 64 << 20);
        if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
            fail("connect");
        if (!(out[i] = malloc(sizeof *out[i])))
            fail("malloc");
        outgoing_init(out[i], fd, true);
        epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event);
    }
}

static void prepare(void)
{
    sessions = calloc(session_room, sizeof *sessions);
    flows = calloc(session_room, sizeof *flows);
    tunnels = calloc(tunnel_count, sizeof *tunnels);
    in = calloc(1, sizeof *in);
    if (!sessions || !flows || !tunnels || !in)
        fail("calloc");
    for (uint32_t i = 0; i < session_room; i++)
        sessions[i].number = i;
}

static void flush_all(void)
{
    control_flush();
    for (int i = 0; i < sockets; i++)
        flush(out[i]);
    fflush(stdout);
}

/*
 * Open the tunnels, one at a time from each address, and report when all are up. Called until it returns true.
 * Some servers (the C l2tpns) take a second SCCRQ from an address for a repetition while the first is being answered.
 */
static bool tunnels_up(void)
{
    static uint32_t opened;
    uint32_t up = 0;
    for (uint32_t i = 0; i < opened; i++) {
        if (tunnels[i].dead)
            refuse("tunnel %u did not come up", tunnels[i].id);
        up += tunnels[i].up;
    }
    for (; opened < tunnel_count && opened - up < (uint32_t)sockets; opened++)
        tunnel_open(&tunnels[opened], opened + 1, out[opened % sockets]);
    if (up < tunnel_count)
        return false;
    printf("{\"event\":\"ready\",\"tunnels\":%u}\n", up);
    return true;
}

int lac_main(int count, char **words)
{
    struct in_addr from[MAX_SOCKETS], lns = {0};
    struct epoll_event events[MAX_SOCKETS + 1], commands = {.events = EPOLLIN, .data.fd = -1};
    struct lines lines = {0};
    unsigned port = L2TP_PORT;
    bool ready = false;
    int queue = epoll_create1(EPOLL_CLOEXEC);
    options(count, words, from, &lns, &port);
    open_sockets(queue, from, lns, port);
    prepare();
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    for (double next_timers = 0; !done && !lines.ended;) {
        if (!ready && (ready = tunnels_up()))
            epoll_ctl(queue, EPOLL_CTL_ADD, STDIN_FILENO, &commands);
        flush_all();
        long sleep = sender_sleep(&sender, login_waits() ? 1000000 : 50000000);
        struct timespec patience = {0, sleep};
        int got = epoll_pwait2(queue, events, MAX_SOCKETS + 1, &patience, NULL);
        for (int i = 0; i < got; i++)
            if (events[i].data.fd >= 0)
                socket_ready(events[i].data.fd);
            else
                lines_read(&lines, execute);
        double at = now();
        login_step(at);
        sender_step(&sender, probe_send, send_errors());
        if (at >= next_timers) {
            control_timers(at);
            next_timers = at + 0.1;
        }
    }
    flush_all();
    return 0;
}
