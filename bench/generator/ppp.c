/*
 * The subscriber's side of PPP: LCP (RFC 1661), PAP (RFC 1334) and IPCP (RFC 1332), as much as a login needs.
 *
 * Requests of the peer are acknowledged as they are, but for an authentication protocol other than PAP. Other network
 * protocols are rejected.
 */
#include "lac.h"

#include <stdio.h>
#include <string.h>

#define RETRY 3.0 /* RFC 1661 4.6 */
#define MAX_TRIES 10
#define HEADER 10 /* L2TP without options, PPP's address, control and protocol */

enum { PROTOCOL_IPCP = 0x8021, PROTOCOL_LCP = 0xc021, PROTOCOL_PAP = 0xc023 };
enum { REQUEST = 1, ACK, NAK, REJECT, TERMINATE, TERMINATE_ACK, PROTOCOL_REJECT = 8, ECHO_REQUEST, ECHO_REPLY };

uint64_t echoes;

uint8_t *ppp_header(uint8_t *at, const struct session *session, unsigned protocol)
{
    put16(at, 0x0002);
    put16(at + 2, tunnel_of(session)->peer_id);
    put16(at + 4, session->peer_id);
    put16(at + 6, 0xff03);
    put16(at + 8, protocol);
    return at + HEADER;
}

static void packet(struct session *session, unsigned protocol, unsigned code, unsigned identifier, const void *data,
                   size_t octets)
{
    struct outgoing *out = tunnel_of(session)->out;
    uint8_t *room = outgoing_room(out), *ppp = ppp_header(room, session, protocol);
    if (octets > LARGEST - HEADER - 4)
        octets = LARGEST - HEADER - 4;
    ppp[0] = code;
    ppp[1] = identifier;
    put16(ppp + 2, 4 + octets);
    memcpy(ppp + 4, data, octets);
    commit(out, HEADER + 4 + octets, NULL);
}

static void send_request(struct session *session)
{
    uint8_t data[256];
    session->retry_at = now() + RETRY;
    session->identifier++;
    if (session->state == LCP) {
        data[0] = 5;
        data[1] = 6;
        put32(data + 2, session->number + 1);
        packet(session, PROTOCOL_LCP, REQUEST, session->identifier, data, 6);
    } else if (session->state == PAP) {
        int name = snprintf((char *)data + 1, 100, "%s%06u", user_prefix, session->number);
        size_t length = strlen(password);
        data[0] = name;
        data[1 + name] = length;
        memcpy(data + 2 + name, password, length);
        packet(session, PROTOCOL_PAP, REQUEST, session->identifier, data, 2 + name + length);
    } else if (session->state == IPCP) {
        data[0] = 3;
        data[1] = 6;
        put32(data + 2, session->address);
        packet(session, PROTOCOL_IPCP, REQUEST, session->identifier, data, 6);
    }
}

static void enter(struct session *session, enum session_state state)
{
    session->state = state;
    session->tries = 0;
    send_request(session);
}

/* Our first request answers the peer's: one that overtook the ICCN would be lost. */
void ppp_begin(struct session *session)
{
    session->lcp = session->ipcp = 0;
    session->state = LCP;
    session->tries = 0;
    session->retry_at = now() + RETRY;
}

void ppp_retry(struct session *session)
{
    if (++session->tries > MAX_TRIES)
        login_failed(session, BY_TIMEOUT);
    else if (session->state == CALLING)
        session->retry_at = now() + RETRY; /* the control connection repeats the call by itself */
    else if ((session->state == LCP && session->lcp & OURS_ACKED) ||
             (session->state == IPCP && session->ipcp & OURS_ACKED))
        session->retry_at = now() + RETRY; /* the peer's request is missing */
    else
        send_request(session);
}

/* Return true if the options ask for an authentication protocol other than PAP; it is at `*where`. */
static bool wrong_authentication(const uint8_t *options, size_t octets, const uint8_t **where)
{
    for (; octets >= 4 && options[1] >= 2 && options[1] <= octets; octets -= options[1], options += options[1])
        if (options[0] == 3 && get16(options + 2) != PROTOCOL_PAP) {
            *where = options;
            return true;
        }
    return false;
}

static void lcp_received(struct session *session, unsigned code, unsigned identifier, const uint8_t *data,
                         size_t octets)
{
    static const uint8_t pap[] = {3, 4, PROTOCOL_PAP >> 8, PROTOCOL_PAP & 255};
    const uint8_t *wrong;
    if (code == REQUEST && wrong_authentication(data, octets, &wrong))
        packet(session, PROTOCOL_LCP, NAK, identifier, pap, sizeof pap);
    else if (code == REQUEST) {
        packet(session, PROTOCOL_LCP, ACK, identifier, data, octets);
        if (session->state == LCP && !session->lcp)
            send_request(session);
        session->lcp |= THEIRS_ACKED;
    } else if (code == ACK && identifier == session->identifier && session->state == LCP)
        session->lcp |= OURS_ACKED;
    else if (code == TERMINATE) {
        packet(session, PROTOCOL_LCP, TERMINATE_ACK, identifier, NULL, 0);
        if (session->state == ONLINE)
            session_lost(session);
        else
            login_failed(session, BY_PPP);
    } else if (code == ECHO_REQUEST && octets >= 4) {
        uint8_t reply[LARGEST];
        memcpy(reply, data, octets);
        put32(reply, session->number + 1);
        packet(session, PROTOCOL_LCP, ECHO_REPLY, identifier, reply, octets);
        echoes++;
    }
    if (session->state == LCP && session->lcp == (OURS_ACKED | THEIRS_ACKED))
        enter(session, PAP);
}

static void ipcp_received(struct session *session, unsigned code, unsigned identifier, const uint8_t *data,
                          size_t octets)
{
    if (code == REQUEST) {
        packet(session, PROTOCOL_IPCP, ACK, identifier, data, octets);
        session->ipcp |= THEIRS_ACKED;
    } else if (identifier != session->identifier || session->state != IPCP)
        return;
    else if (code == NAK && octets >= 6 && data[0] == 3) {
        session->address = get32(data + 2);
        send_request(session);
    } else if (code == ACK)
        session->ipcp |= OURS_ACKED;
    else if (code == REJECT)
        login_failed(session, BY_PPP);
    if (session->state == IPCP && session->ipcp == (OURS_ACKED | THEIRS_ACKED))
        login_done(session);
}

static void pap_received(struct session *session, unsigned code, unsigned identifier)
{
    if (session->state != PAP || identifier != session->identifier)
        return;
    if (code == ACK)
        enter(session, IPCP);
    else if (code == NAK)
        login_failed(session, BY_PASSWORD);
}

/* Tell the peer that we do not speak a protocol (RFC 1661 5.7). */
static void reject(struct session *session, unsigned protocol, const uint8_t *data, size_t octets)
{
    uint8_t copy[LARGEST];
    put16(copy, protocol);
    if (octets > 100)
        octets = 100;
    memcpy(copy + 2, data, octets);
    packet(session, PROTOCOL_LCP, PROTOCOL_REJECT, ++session->identifier, copy, octets + 2);
}

void ppp_received(struct session *session, const uint8_t *data, size_t octets)
{
    unsigned protocol = get16(data);
    size_t length = octets >= 6 ? get16(data + 4) : 0;
    if (length < 4 || length > octets - 2 || session->state < LCP || session->state > ONLINE)
        return;
    unsigned code = data[2], identifier = data[3];
    if (protocol == PROTOCOL_LCP)
        lcp_received(session, code, identifier, data + 6, length - 4);
    else if (protocol == PROTOCOL_PAP)
        pap_received(session, code, identifier);
    else if (protocol == PROTOCOL_IPCP)
        ipcp_received(session, code, identifier, data + 6, length - 4);
    else if (session->state == ONLINE || session->state == IPCP)
        reject(session, protocol, data + 2, octets - 2);
}
