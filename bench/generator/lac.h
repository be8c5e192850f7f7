/*
 * The access concentrator's side: tunnels, sessions, and what the files of the mode `lac` share.
 */
#ifndef LAC_H
#define LAC_H

#include "probe.h"

enum session_state { IDLE, CALLING, LCP, PAP, IPCP, ONLINE, ENDED };

enum failure { BY_CDN, BY_PASSWORD, BY_TIMEOUT, BY_PPP, BY_TUNNEL, FAILURES };

/* What has been agreed of LCP and of IPCP. */
#define OURS_ACKED 1
#define THEIRS_ACKED 2

struct session {
    uint32_t number; /* its place in `sessions`; also the PPP magic number, plus one */
    uint32_t address;
    uint16_t peer_id;
    uint8_t state;
    uint8_t lcp, ipcp; /* OURS_ACKED, THEIRS_ACKED */
    uint8_t tries;
    uint8_t identifier; /* of our last request */
    double begun, retry_at;
    uint32_t sent; /* probes of this run */
};

struct message {
    struct message *next;
    double first_sent, last_sent;
    uint16_t octets;
    uint8_t tries;
    uint8_t data[];
};

struct tunnel {
    uint16_t id, peer_id;
    uint16_t next_sent, next_expected; /* Ns of the next new message, Nr */
    uint16_t window, in_flight;
    bool up, dead, acknowledge, challenged;
    uint8_t challenge[16], response[16];
    struct outgoing *out;
    struct message *oldest, *newest, *unsent;
};

extern struct session *sessions;
extern struct tunnel *tunnels;
extern uint32_t tunnel_count, session_room;
extern const char *secret, *lac_name, *user_prefix, *password;
extern struct samples acknowledged; /* seconds from the first sending of a control message to its acknowledgement */
extern uint64_t hellos, echoes, retransmissions;

/* control.c: tunnels and calls (RFC 2661). */
void tunnel_open(struct tunnel *tunnel, unsigned id, struct outgoing *out);
void tunnel_close(struct tunnel *tunnel);
void control_received(const uint8_t *data, size_t octets);
void control_timers(double at);
void control_flush(void);
void call(struct session *session);
void hang_up(struct session *session);
struct tunnel *tunnel_of(const struct session *session);
struct session *session_of(unsigned tunnel_id, unsigned session_id);

/* ppp.c: LCP, PAP and IPCP (RFC 1661, RFC 1334, RFC 1332). */
void ppp_begin(struct session *session);
void ppp_received(struct session *session, const uint8_t *data, size_t octets);
void ppp_retry(struct session *session);
uint8_t *ppp_header(uint8_t *at, const struct session *session, unsigned protocol);

/* login.c: the sessions that are coming up. */
extern uint32_t online, lost;
void login(const char *text);
void login_step(double at);
bool login_waits(void); /* for the time of the next one */
void login_done(struct session *session);
void login_failed(struct session *session, enum failure why);
void session_lost(struct session *session);

#endif
