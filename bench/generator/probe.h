/*
 * The packets that the generator sends through a server, and the checks of those that arrive.
 *
 * A probe is an IPv4 packet with UDP. Its payload names its session, its number within the session's run, and when it
 * was sent; the rest is a pattern that depends on the number. So the receiver sees loss, repetition, change and
 * delivery to another session.
 */
#ifndef PROBE_H
#define PROBE_H

#include "wire.h"

#define IP_UDP 28        /* octets of both headers */
#define PROBE_HEADER 24  /* magic 4, kind 1, unused 1, run 2, session 4, number 4, time in ns 8 */
#define PROBE_LEAST (IP_UDP + PROBE_HEADER)
#define PROBE_MOST 1500
#define PROBE_PORT 5000

enum probe_kind { PROBE_DATA = 1, PROBE_PING, PROBE_PONG };

struct probe {
    enum probe_kind kind;
    unsigned run;
    uint32_t session;
    uint32_t number;
    uint64_t sent_ns;
};

/* What a receiver remembers of a session: the highest number, and which of the 64 up to it have arrived. */
struct flow {
    uint32_t next;
    uint64_t seen;
};

struct tally {
    unsigned run;
    uint64_t packets;      /* intact probes of this run that arrived for the first time, at the right session */
    uint64_t octets;       /* of their IP packets */
    uint64_t duplicates;
    uint64_t late;         /* arrived after one with a higher number; counted in `packets` too */
    uint64_t corrupt;
    uint64_t misdelivered; /* at another session's address, tunnel or session id */
    uint64_t stale;        /* of another run */
    uint64_t foreign;      /* packets that are no probes */
    uint64_t begin_ns, end_ns;
};

/* Write the headers of an IPv4 packet with UDP, of `octets` in all, without a UDP checksum. Addresses as numbers. */
void probe_headers(uint8_t *ip, uint32_t from, uint32_t to, unsigned octets);

/* Write the payload of a probe. `octets` is at least PROBE_HEADER. */
void probe_write(uint8_t *payload, size_t octets, const struct probe *probe);

/* Read a payload. Return false if it is not a probe; `*intact` is false if the pattern was changed. */
bool probe_read(const uint8_t *payload, size_t octets, struct probe *probe, bool *intact);

/* Count a probe that arrived at its own session. */
void tally_add(struct tally *tally, struct flow *flow, const struct probe *probe, bool intact, size_t ip_octets,
               uint64_t at_ns);

/* Begin a run, without what was counted so far. */
void tally_begin(struct tally *tally, struct flow *flows, size_t count, unsigned run);

/* Print the event `counts` as a line of JSON. */
void tally_print(const struct tally *tally, uint32_t socket_drops);

/* A job: probes sent over the sessions first..first+count-1 in turn. */
struct job {
    bool active;
    enum probe_kind kind;
    unsigned run;
    unsigned octets; /* of the IP packet */
    double seconds, rate;
    uint32_t first, count, at;
    double begun;
    uint64_t sent;
};

/* Read `RUN OCTETS SECONDS RATE FIRST COUNT`; a RATE of 0 is as fast as possible. Return false if it is wrong. */
bool job_read(struct job *job, enum probe_kind kind, const char *text, uint32_t sessions);

/* Return how many probes are due now, at most BATCH. Clears `active` when the job is over. */
int job_due(struct job *job);

/* Data and pings are sent at the same time; the pings' answers are awaited for a second more. */
struct sender {
    struct job data, ping;
    double answers_until; /* 0: no pings are under way */
    uint64_t errors;      /* the socket's, when the job for data began */
    struct samples round_trips;
};

/* Execute `send ...` or `ping ...`, or return false if the line is another command. Exits if it is wrong. */
bool sender_command(struct sender *sender, const char *line, uint32_t sessions, uint64_t errors);

/* Do what is due now: `probe_send` sends one of a job. Prints the events `sent` and `pinged`. Return true if busy. */
bool sender_step(struct sender *sender, void (*probe_send)(struct job *job), uint64_t errors);

/* Count the answer to a ping. */
void sender_answered(struct sender *sender, const struct probe *probe, uint64_t at_ns);

/* Return how long the loop may sleep, in nanoseconds, while jobs are active; `idle` if none is. */
long sender_sleep(const struct sender *sender, long idle);

#endif
