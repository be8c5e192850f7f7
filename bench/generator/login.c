/*
 * Logins: which sessions come up next, how many at a time and how fast, and the report of it.
 */
#include "lac.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[FAILURES] = {"cdn", "password", "timeout", "ppp", "tunnel"};

uint32_t online, lost;

/* The login command that is being executed. */
static struct {
    bool active;
    uint32_t first, asked, started, finished, done;
    unsigned window;
    double rate, begun, last_done;
    unsigned failures[FAILURES];
    uint64_t retransmissions;
} job;
static uint32_t *under_way; /* numbers of sessions that are coming up, in no order */
static uint32_t under_way_count;
static uint32_t next_session;
static struct samples set_up;

static void report(void)
{
    double seconds = job.last_done - job.begun;
    printf("{\"event\":\"login\",\"asked\":%u,\"up\":%u,\"failed\":%u,\"seconds\":%.6f,\"rate\":%.1f,\"first\":%u,",
           job.asked, job.done, job.asked - job.done, seconds, seconds > 0 ? job.done / seconds : 0.0, job.first);
    samples_print(&set_up, "setup_ms");
    putchar(',');
    samples_print(&acknowledged, "acknowledged_ms");
    printf(",\"retransmissions\":%llu,\"failures\":{", (unsigned long long)(retransmissions - job.retransmissions));
    for (int i = 0; i < FAILURES; i++)
        printf("%s\"%s\":%u", i ? "," : "", names[i], job.failures[i]);
    printf("}}\n");
}

/* Take a session off the list of those that are coming up. */
static void finish(struct session *session, bool came_up)
{
    for (uint32_t i = 0; i < under_way_count; i++)
        if (under_way[i] == session->number) {
            under_way[i] = under_way[--under_way_count];
            break;
        }
    job.finished++;
    job.last_done = now();
    if (came_up) {
        job.done++;
        samples_add(&set_up, job.last_done - session->begun);
    }
    if (job.active && job.finished == job.asked) {
        job.active = false;
        report();
    }
}

void login_done(struct session *session)
{
    session->state = ONLINE;
    online++;
    finish(session, true);
}

void login_failed(struct session *session, enum failure why)
{
    bool counted = session->state != IDLE && session->state != ENDED;
    if (!counted)
        return;
    session->state = ENDED;
    job.failures[why]++;
    finish(session, false);
}

void session_lost(struct session *session)
{
    session->state = ENDED;
    online--;
    lost++;
}

/* Return the next session that is not up. Those that have ended come again when all others have had their turn. */
static struct session *next_free(void)
{
    struct session *session;
    do {
        session = &sessions[next_session];
        next_session = (next_session + 1) % session_room;
    } while (session->state != IDLE && session->state != ENDED);
    return session;
}

/* Execute `login COUNT WINDOW RATE`: bring COUNT more sessions up; a RATE of 0 sets no limit. */
void login(const char *text)
{
    unsigned count, window;
    double rate;
    if (job.active || sscanf(text, "%u %u %lf", &count, &window, &rate) != 3 || !count || !window || rate < 0)
        refuse("login COUNT WINDOW RATE, one at a time");
    if (count > session_room - online)
        refuse("there is room for %u sessions more", session_room - online);
    if (!under_way && !(under_way = calloc(session_room, sizeof *under_way)))
        fail("calloc");
    memset(&job, 0, sizeof job);
    samples_clear(&set_up);
    samples_clear(&acknowledged);
    job.active = true;
    job.first = next_session;
    job.asked = count;
    job.window = window;
    job.rate = rate;
    job.begun = job.last_done = now();
    job.retransmissions = retransmissions;
}

bool login_waits(void)
{
    return job.active && job.rate > 0 && job.started < job.asked;
}

/* Begin the logins that are due, and repeat what has waited too long. */
void login_step(double at)
{
    static double next_look;
    while (job.active && job.started < job.asked && under_way_count < job.window &&
           (job.rate <= 0 || job.started <= (at - job.begun) * job.rate)) {
        struct session *session = next_free();
        job.started++;
        session->begun = at;
        session->retry_at = at + 30.0;
        session->state = CALLING;
        under_way[under_way_count++] = session->number;
        if (tunnel_of(session)->dead)
            login_failed(session, BY_TUNNEL);
        else
            call(session);
    }
    if (at < next_look)
        return;
    next_look = at + 0.1;
    for (uint32_t i = 0; i < under_way_count; i++)
        if (sessions[under_way[i]].retry_at <= at)
            ppp_retry(&sessions[under_way[i]]);
}
