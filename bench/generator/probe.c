/*
 * Probes: building, checking, counting, and the pacing of jobs that send them.
 */
#include "probe.h"

#include <string.h>

#define MAGIC 0x4c324c47 /* "L2LG" */

static uint8_t pattern[256 + PROBE_MOST];

static void fill_pattern(void)
{
    for (size_t i = pattern[1] ? sizeof pattern : 0; i < sizeof pattern; i++)
        pattern[i] = i;
}

void probe_headers(uint8_t *ip, uint32_t from, uint32_t to, unsigned octets)
{
    static const uint8_t start[12] = {0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17};
    memcpy(ip, start, sizeof start);
    put16(ip + 2, octets);
    put32(ip + 12, from);
    put32(ip + 16, to);
    put16(ip + 10, checksum(ip, 20));
    put16(ip + 20, PROBE_PORT);
    put16(ip + 22, PROBE_PORT);
    put16(ip + 24, octets - 20);
    put16(ip + 26, 0);
}

void probe_write(uint8_t *payload, size_t octets, const struct probe *probe)
{
    fill_pattern();
    put32(payload, MAGIC);
    payload[4] = probe->kind;
    payload[5] = 0;
    put16(payload + 6, probe->run);
    put32(payload + 8, probe->session);
    put32(payload + 12, probe->number);
    put32(payload + 16, probe->sent_ns >> 32);
    put32(payload + 20, probe->sent_ns);
    memcpy(payload + PROBE_HEADER, pattern + (probe->number & 255), octets - PROBE_HEADER);
}

bool probe_read(const uint8_t *payload, size_t octets, struct probe *probe, bool *intact)
{
    if (octets < PROBE_HEADER || octets > PROBE_MOST || get32(payload) != MAGIC)
        return false;
    fill_pattern();
    *probe = (struct probe){
        .kind = payload[4],
        .run = get16(payload + 6),
        .session = get32(payload + 8),
        .number = get32(payload + 12),
        .sent_ns = (uint64_t)get32(payload + 16) << 32 | get32(payload + 20),
    };
    *intact = !memcmp(payload + PROBE_HEADER, pattern + (probe->number & 255), octets - PROBE_HEADER);
    return true;
}

void tally_add(struct tally *tally, struct flow *flow, const struct probe *probe, bool intact, size_t ip_octets,
               uint64_t at_ns)
{
    if (probe->run != tally->run) {
        tally->stale++;
        return;
    }
    if (!intact) {
        tally->corrupt++;
        return;
    }
    if (probe->number >= flow->next) {
        uint32_t step = probe->number - flow->next + 1;
        flow->seen = step < 64 ? flow->seen << step | 1 : 1;
        flow->next = probe->number + 1;
    } else {
        uint32_t back = flow->next - 1 - probe->number;
        /* One that is further back than the memory reaches counts as late. */
        if (back < 64 && flow->seen >> back & 1) {
            tally->duplicates++;
            return;
        }
        if (back < 64)
            flow->seen |= 1ull << back;
        tally->late++;
    }
    if (!tally->packets)
        tally->begin_ns = at_ns;
    tally->end_ns = at_ns;
    tally->packets++;
    tally->octets += ip_octets;
}

void tally_begin(struct tally *tally, struct flow *flows, size_t count, unsigned run)
{
    memset(flows, 0, count * sizeof *flows);
    *tally = (struct tally){.run = run};
}

void tally_print(const struct tally *tally, uint32_t socket_drops)
{
    printf("{\"event\":\"counts\",\"run\":%u,\"packets\":%llu,\"octets\":%llu,\"duplicates\":%llu,\"late\":%llu,"
           "\"corrupt\":%llu,\"misdelivered\":%llu,\"stale\":%llu,\"foreign\":%llu,\"seconds\":%.6f,\"drops\":%u}\n",
           tally->run, (unsigned long long)tally->packets, (unsigned long long)tally->octets,
           (unsigned long long)tally->duplicates, (unsigned long long)tally->late, (unsigned long long)tally->corrupt,
           (unsigned long long)tally->misdelivered, (unsigned long long)tally->stale,
           (unsigned long long)tally->foreign, (tally->end_ns - tally->begin_ns) / 1e9, socket_drops);
}

bool job_read(struct job *job, enum probe_kind kind, const char *text, uint32_t sessions)
{
    struct job wanted = {.active = true, .kind = kind, .begun = now()};
    if (sscanf(text, "%u %u %lf %lf %u %u", &wanted.run, &wanted.octets, &wanted.seconds, &wanted.rate, &wanted.first,
               &wanted.count) != 6)
        return false;
    if (wanted.run > 0xffff || wanted.octets < PROBE_LEAST || wanted.octets > PROBE_MOST || wanted.seconds < 0 ||
        wanted.rate < 0 || !wanted.count || wanted.first >= sessions || wanted.count > sessions - wanted.first)
        return false;
    *job = wanted;
    return true;
}

int job_due(struct job *job)
{
    double elapsed = now() - job->begun;
    if (elapsed >= job->seconds) {
        job->active = false;
        return 0;
    }
    if (job->rate <= 0)
        return BATCH;
    double due = elapsed * job->rate - job->sent;
    return due < 0 ? 0 : due > BATCH ? BATCH : (int)due;
}

bool sender_command(struct sender *sender, const char *line, uint32_t sessions, uint64_t errors)
{
    if (!strncmp(line, "send ", 5)) {
        if (sender->data.active || !job_read(&sender->data, PROBE_DATA, line + 5, sessions))
            refuse("send RUN OCTETS SECONDS RATE FIRST COUNT, one at a time: %s", line);
        sender->errors = errors;
    } else if (!strncmp(line, "ping ", 5)) {
        if (sender->answers_until || !job_read(&sender->ping, PROBE_PING, line + 5, sessions))
            refuse("ping RUN OCTETS SECONDS RATE FIRST COUNT, one at a time: %s", line);
        samples_clear(&sender->round_trips);
        sender->answers_until = sender->ping.begun + sender->ping.seconds + 1.0;
    } else
        return false;
    return true;
}

static void run_job(struct job *job, void (*probe_send)(struct job *job))
{
    for (int due = job->active ? job_due(job) : 0; due > 0 && job->active; due--)
        probe_send(job);
}

bool sender_step(struct sender *sender, void (*probe_send)(struct job *job), uint64_t errors)
{
    bool sending = sender->data.active;
    run_job(&sender->data, probe_send);
    run_job(&sender->ping, probe_send);
    if (sending && !sender->data.active) {
        uint64_t refused = errors - sender->errors;
        printf("{\"event\":\"sent\",\"run\":%u,\"packets\":%llu,\"errors\":%llu,\"seconds\":%.6f}\n",
               sender->data.run, (unsigned long long)(sender->data.sent - refused), (unsigned long long)refused,
               now() - sender->data.begun);
    }
    if (sender->answers_until && !sender->ping.active &&
        (sender->round_trips.count >= sender->ping.sent || now() > sender->answers_until)) {
        sender->answers_until = 0;
        printf("{\"event\":\"pinged\",\"run\":%u,\"sent\":%llu,", sender->ping.run,
               (unsigned long long)sender->ping.sent);
        samples_print(&sender->round_trips, "round_trip_ms");
        printf("}\n");
    }
    return sender->data.active || sender->ping.active;
}

void sender_answered(struct sender *sender, const struct probe *probe, uint64_t at_ns)
{
    if (sender->answers_until && probe->run == sender->ping.run)
        samples_add(&sender->round_trips, (at_ns - probe->sent_ns) / 1e9);
}

long sender_sleep(const struct sender *sender, long idle)
{
    if (sender->data.active && sender->data.rate <= 0)
        return 0;
    return sender->data.active || sender->ping.active ? 100000 : sender->answers_until ? 1000000 : idle;
}
