/*
 * Tunnels, calls, and reliable delivery of control messages (RFC 2661 sections 4 to 6), as the LAC.
 *
 * Hidden AVPs are not read, and calls come only from our side.
 */
#include "lac.h"

#include <stdlib.h>
#include <string.h>

#define CONTROL 0xc802 /* T, L and S bits, version 2 */
#define CONTROL_HEADER 12
#define RECEIVE_WINDOW 256
#define DEFAULT_WINDOW 4 /* RFC 2661 4.4.3: of a peer that names none */
#define MAX_TRIES 10

enum { SCCRQ = 1, SCCRP, SCCCN, STOPCCN, HELLO = 6, ICRQ = 10, ICRP, ICCN, CDN = 14 };
enum {
    MESSAGE_TYPE,
    RESULT_CODE,
    PROTOCOL_VERSION,
    FRAMING_CAPABILITIES,
    HOST_NAME = 7,
    ASSIGNED_TUNNEL = 9,
    WINDOW_SIZE,
    CHALLENGE,
    RESPONSE = 13,
    ASSIGNED_SESSION,
    SERIAL_NUMBER,
    FRAMING_TYPE = 19,
    CONNECT_SPEED = 24,
    AVPS = 40
};

uint64_t hellos, retransmissions;
struct samples acknowledged;

/* An AVP that was received: its value. */
struct value {
    const uint8_t *data;
    size_t octets;
};

struct tunnel *tunnel_of(const struct session *session)
{
    return &tunnels[session->number % tunnel_count];
}

static unsigned session_id(const struct session *session)
{
    return session->number / tunnel_count + 1;
}

struct session *session_of(unsigned tunnel_id, unsigned session_id)
{
    uint64_t number = (uint64_t)(session_id - 1) * tunnel_count + tunnel_id - 1;
    return tunnel_id && tunnel_id <= tunnel_count && session_id && number < session_room ? &sessions[number] : NULL;
}

/* Sending */

static struct message *message_new(unsigned type, unsigned peer_session)
{
    struct message *message = calloc(1, sizeof *message + 256);
    if (!message)
        fail("calloc");
    put16(message->data, CONTROL);
    put16(message->data + 6, peer_session);
    message->octets = CONTROL_HEADER;
    uint8_t *avp = message->data + CONTROL_HEADER;
    put16(avp, 0x8008);
    put16(avp + 6, type);
    message->octets += 8;
    return message;
}

static void add(struct message *message, unsigned type, const void *value, size_t octets)
{
    uint8_t *avp = message->data + message->octets;
    put16(avp, 0x8000 | (6 + octets));
    put16(avp + 4, type);
    memcpy(avp + 6, value, octets);
    message->octets += 6 + octets;
}

static void add16(struct message *message, unsigned type, unsigned value)
{
    uint8_t octets[2];
    put16(octets, value);
    add(message, type, octets, sizeof octets);
}

static void add32(struct message *message, unsigned type, uint32_t value)
{
    uint8_t octets[4];
    put32(octets, value);
    add(message, type, octets, sizeof octets);
}

static void transmit(struct tunnel *tunnel, struct message *message, double at)
{
    put16(message->data + 10, tunnel->next_expected);
    if (!message->tries++)
        message->first_sent = at;
    else
        retransmissions++;
    message->last_sent = at;
    memcpy(outgoing_room(tunnel->out), message->data, message->octets);
    commit(tunnel->out, message->octets, NULL);
    tunnel->acknowledge = false;
}

/* Send what the peer's window admits. Called when all that arrived together has been read, so that one Nr covers it. */
static void send_queued(struct tunnel *tunnel, double at)
{
    while (tunnel->unsent && tunnel->in_flight < tunnel->window) {
        struct message *message = tunnel->unsent;
        tunnel->unsent = message->next;
        tunnel->in_flight++;
        transmit(tunnel, message, at);
    }
}

static void queue(struct tunnel *tunnel, struct message *message)
{
    uint8_t *data = message->data;
    put16(data + 2, message->octets);
    put16(data + 4, tunnel->peer_id);
    put16(data + 8, tunnel->next_sent++);
    if (tunnel->newest)
        tunnel->newest->next = message;
    else
        tunnel->oldest = message;
    tunnel->newest = message;
    if (!tunnel->unsent)
        tunnel->unsent = message;
}

void control_flush(void)
{
    double at = now();
    for (uint32_t i = 0; i < tunnel_count; i++) {
        struct tunnel *tunnel = &tunnels[i];
        if (tunnel->dead)
            continue;
        send_queued(tunnel, at);
        if (!tunnel->acknowledge)
            continue;
        uint8_t *data = outgoing_room(tunnel->out);
        put16(data, CONTROL);
        put16(data + 2, CONTROL_HEADER);
        put16(data + 4, tunnel->peer_id);
        put16(data + 6, 0);
        put16(data + 8, tunnel->next_sent);
        if (tunnel->unsent) /* a ZLB carries the Ns of the next message to be sent (RFC 2661 5.8) */
            put16(data + 8, get16(tunnel->unsent->data + 8));
        put16(data + 10, tunnel->next_expected);
        commit(tunnel->out, CONTROL_HEADER, NULL);
        tunnel->acknowledge = false;
    }
}

/* The response to a challenge: MD5 of the message type that carries it, the secret and the challenge (5.1.1). */
static void respond(unsigned type, const void *challenge, size_t octets, uint8_t digest[16])
{
    uint8_t identifier = type;
    struct md5 md5;
    md5_begin(&md5);
    md5_add(&md5, &identifier, 1);
    md5_add(&md5, secret, strlen(secret));
    md5_add(&md5, challenge, octets);
    md5_end(&md5, digest);
}

void tunnel_open(struct tunnel *tunnel, unsigned id, struct outgoing *out)
{
    *tunnel = (struct tunnel){.id = id, .window = DEFAULT_WINDOW, .out = out};
    struct message *message = message_new(SCCRQ, 0);
    add16(message, PROTOCOL_VERSION, 0x0100);
    add(message, HOST_NAME, lac_name, strlen(lac_name));
    add32(message, FRAMING_CAPABILITIES, 3);
    add16(message, ASSIGNED_TUNNEL, id);
    add16(message, WINDOW_SIZE, RECEIVE_WINDOW);
    if (secret) {
        for (size_t i = 0; i < sizeof tunnel->challenge; i++)
            tunnel->challenge[i] = rand();
        add(message, CHALLENGE, tunnel->challenge, sizeof tunnel->challenge);
        respond(SCCRP, tunnel->challenge, sizeof tunnel->challenge, tunnel->response);
    }
    queue(tunnel, message);
}

void tunnel_close(struct tunnel *tunnel)
{
    if (tunnel->dead)
        return;
    struct message *message = message_new(STOPCCN, 0);
    add16(message, RESULT_CODE, 1);
    add16(message, ASSIGNED_TUNNEL, tunnel->id);
    queue(tunnel, message);
}

void call(struct session *session)
{
    struct message *message = message_new(ICRQ, 0);
    add16(message, ASSIGNED_SESSION, session_id(session));
    add32(message, SERIAL_NUMBER, session->number + 1);
    queue(tunnel_of(session), message);
}

static void connect_call(struct session *session)
{
    struct message *message = message_new(ICCN, session->peer_id);
    add32(message, CONNECT_SPEED, 100000000);
    add32(message, FRAMING_TYPE, 1);
    queue(tunnel_of(session), message);
}

void hang_up(struct session *session)
{
    struct message *message = message_new(CDN, session->peer_id);
    add16(message, RESULT_CODE, 1);
    add16(message, ASSIGNED_SESSION, session_id(session));
    queue(tunnel_of(session), message);
}

/* Receiving */

static void tunnel_died(struct tunnel *tunnel, const char *why)
{
    fprintf(stderr, "loadgen: tunnel %u ended: %s\n", tunnel->id, why);
    tunnel->dead = true;
    tunnel->up = false;
    for (uint32_t i = tunnel->id - 1; i < session_room; i += tunnel_count)
        if (sessions[i].state == ONLINE)
            session_lost(&sessions[i]);
        else if (sessions[i].state != IDLE && sessions[i].state != ENDED)
            login_failed(&sessions[i], BY_TUNNEL);
}

static void acknowledge_until(struct tunnel *tunnel, unsigned nr)
{
    double at = now();
    while (tunnel->in_flight && (int16_t)(get16(tunnel->oldest->data + 8) - nr) < 0) {
        struct message *message = tunnel->oldest;
        samples_add(&acknowledged, at - message->first_sent);
        tunnel->oldest = message->next;
        if (!tunnel->oldest)
            tunnel->newest = NULL;
        tunnel->in_flight--;
        free(message);
    }
}

/* Read the AVPs of a message that are not hidden, by type. Return false if one is malformed. */
static bool read_avps(const uint8_t *data, size_t octets, struct value values[AVPS])
{
    memset(values, 0, AVPS * sizeof *values);
    while (octets) {
        size_t length = octets >= 6 ? get16(data) & 0x3ff : 0;
        if (length < 6 || length > octets)
            return false;
        unsigned type = get16(data + 4);
        if (!(get16(data) & 0x4000) && !get16(data + 2) && type < AVPS)
            values[type] = (struct value){data + 6, length - 6};
        data += length;
        octets -= length;
    }
    return true;
}

static unsigned value16(const struct value *values, unsigned type)
{
    return values[type].octets >= 2 ? get16(values[type].data) : 0;
}

static void tunnel_answered(struct tunnel *tunnel, const struct value *values)
{
    tunnel->peer_id = value16(values, ASSIGNED_TUNNEL);
    if (value16(values, WINDOW_SIZE))
        tunnel->window = value16(values, WINDOW_SIZE);
    if (secret && (values[RESPONSE].octets != 16 || memcmp(values[RESPONSE].data, tunnel->response, 16))) {
        tunnel_died(tunnel, "its response to our challenge is wrong");
        return;
    }
    struct message *message = message_new(SCCCN, 0);
    if (values[CHALLENGE].octets) {
        uint8_t digest[16];
        if (!secret)
            refuse("the server asks for a tunnel secret");
        respond(SCCCN, values[CHALLENGE].data, values[CHALLENGE].octets, digest);
        add(message, RESPONSE, digest, sizeof digest);
    }
    queue(tunnel, message);
    tunnel->up = true;
}

static void call_ended(struct session *session, const struct value *values)
{
    static unsigned reported;
    if (reported++ < 5)
        fprintf(stderr, "loadgen: session %u: CDN, result %u\n", session->number, value16(values, RESULT_CODE));
    if (session->state == ONLINE)
        session_lost(session);
    else if (session->state != IDLE && session->state != ENDED)
        login_failed(session, BY_CDN);
}

static void dispatch(struct tunnel *tunnel, unsigned session_number, const struct value *values)
{
    unsigned type = value16(values, MESSAGE_TYPE);
    struct session *session = session_of(tunnel->id, session_number);
    if (type == SCCRP && !tunnel->up)
        tunnel_answered(tunnel, values);
    else if (type == STOPCCN)
        tunnel_died(tunnel, "StopCCN");
    else if (type == HELLO)
        hellos++;
    else if (type == ICRP && session && session->state == CALLING) {
        session->peer_id = value16(values, ASSIGNED_SESSION);
        connect_call(session);
        ppp_begin(session);
    } else if (type == CDN && session)
        call_ended(session, values);
}

void control_received(const uint8_t *data, size_t octets)
{
    struct value values[AVPS];
    unsigned id = octets >= CONTROL_HEADER ? get16(data + 4) : 0;
    if (get16(data) != CONTROL || !id || id > tunnel_count || get16(data + 2) < CONTROL_HEADER ||
        get16(data + 2) > octets)
        return;
    struct tunnel *tunnel = &tunnels[id - 1];
    octets = get16(data + 2);
    if (tunnel->dead)
        return;
    acknowledge_until(tunnel, get16(data + 10));
    if (octets == CONTROL_HEADER)
        return;
    tunnel->acknowledge = true;
    if (get16(data + 8) != tunnel->next_expected || !read_avps(data + CONTROL_HEADER, octets - CONTROL_HEADER, values))
        return;
    tunnel->next_expected++;
    dispatch(tunnel, get16(data + 6), values);
}

/* Send the oldest unacknowledged message of a tunnel again: after 1 s, then 2, 4, 8, 8 ... (RFC 2661 5.8). */
void control_timers(double at)
{
    for (uint32_t i = 0; i < tunnel_count; i++) {
        struct tunnel *tunnel = &tunnels[i];
        struct message *message = tunnel->oldest;
        if (tunnel->dead || !tunnel->in_flight)
            continue;
        double patience = 1 << (message->tries < 4 ? message->tries - 1 : 3);
        if (at - message->last_sent < patience)
            continue;
        if (message->tries >= MAX_TRIES) {
            tunnel_died(tunnel, "no acknowledgement");
            continue;
        }
        put16(message->data + 4, tunnel->peer_id);
        transmit(tunnel, message, at);
    }
}
