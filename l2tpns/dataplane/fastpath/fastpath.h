/* Layout of the maps, shared with layout.py. Fields are in host order, but for those named be16 and be32.
 *
 * A path is keyed by the two ids that this server assigned, four octets as in the header of a data message.
 */
#pragma once

#define MAX_SESSIONS 65536
#define MAX_INTERFACES 4096

/* struct session, flags */
#define CHECK_SOURCE 0x1 /* drop an IP packet whose source address is not the session's */
#define HAS_ROUTES 0x2   /* the session has framed routes: user space decides about other source addresses */

/* struct settings, flags */
#define ENABLED 0x1 /* otherwise both programs leave everything to user space */

typedef __u16 be16;
typedef __u32 be32;

struct session_key {
	be16 tunnel_id;
	be16 session_id;
};

/* sessions: HASH session_key -> session. Only of sessions that the programs carry. A change is one put. 48 octets. */
struct session {
	__u32 slot; /* index in `counters` */
	__u32 flags;
	be32 peer_address; /* the LAC, and where it sends from */
	be32 local_address;
	be16 peer_port;
	be16 local_port;
	be32 address; /* the subscriber's */
	be16 peer_tunnel_id; /* as the LAC assigned them: header of data messages to the LAC */
	be16 peer_session_id;
	__u16 mru; /* octets of the largest IP packet to the subscriber */
	__u16 mss; /* TCP SYNs with a larger MSS, either way, are lowered to it */
	__u32 up_cost;   /* nanoseconds * 1024 that one octet takes; 0: no limit */
	__u32 down_cost;
	__u32 up_burst;  /* microseconds of unused time that count */
	__u32 down_burst;
};

/* addresses: HASH be32 -> session_key, of every session that is online, whether or not the programs carry it.
 * routes: LPM_TRIE route_key -> session_key, likewise.
 */
struct route_key {
	__u32 prefix_length;
	be32 network;
};

/* counters: ARRAY (mmap) slot -> counters. Written by the programs; user space clears a slot before it is used again.
 * One cache line a direction. 128 octets.
 */
struct direction {
	__u64 packets; /* of IP; a TCP super-packet counts as its segments */
	__u64 octets;
	__u64 last;    /* CLOCK_MONOTONIC in nanoseconds, coarse, of the last packet */
	__u64 spoofed; /* dropped: source address (up only) */
	__u64 policed; /* dropped: above the rate */
	__u64 limited; /* dropped: above packet_limit (down only) */
	__u64 ready;   /* GCRA: the time at which all octets so far are paid for, in nanoseconds */
	__u32 window;  /* packet_limit: number of the current 0.1 s, and packets in it (down only) */
	__u32 window_packets;
};

struct counters {
	struct direction up;
	struct direction down;
};

/* settings: ARRAY (mmap) of one. */
struct settings {
	__u32 flags;
	__u32 tun;          /* interface index */
	be16 port;          /* L2TP's UDP port of this server */
	__u16 reserved;
	__u32 packet_limit; /* packets to one subscriber in 0.1 s; 0: no limit */
	__u64 beat;         /* CLOCK_MONOTONIC in nanoseconds: when the server last was alive */
	__u64 patience;     /* nanoseconds after `beat` until the programs carry nothing any more; 0: for ever */
};

/* totals: PERCPU_ARRAY total -> __u64. Order as in layout.py TOTALS. "passed": left to user space. */
enum total {
	UP_PACKETS, /* carried */
	UP_OCTETS,  /* of IP */
	UP_DATAGRAM_OCTETS, /* of UDP payload */
	UP_SPOOFED,
	UP_POLICED,
	UP_CLAMPED, /* TCP SYNs whose MSS was lowered */
	UP_PASSED_CONTROL,   /* control messages */
	UP_PASSED_SESSION,   /* no such session in the map, or no longer allowed to be carried */
	UP_PASSED_PEER,      /* another address or port than the session's LAC */
	UP_PASSED_HEADER,    /* a form of IP, UDP, L2TP or PPP header that is rare; fragments of datagrams */
	UP_PASSED_PROTOCOL,  /* PPP frames that are not IPv4 */
	UP_PASSED_PACKET,    /* an IP packet that user space has to judge */
	DOWN_PACKETS,
	DOWN_OCTETS,
	DOWN_DATAGRAM_OCTETS,
	DOWN_POLICED,
	DOWN_LIMITED,
	DOWN_CLAMPED,
	DOWN_PASSED_SESSION, /* no session in the maps has the address, or it is not to be carried */
	DOWN_PASSED_PACKET,  /* an IP packet that user space has to judge: own L2TP, ICMP redirects, too large, options */
	DOWN_PASSED_ROUTE,   /* no route or neighbour entry for the LAC, or too small an MTU */
	TOTALS,
};
