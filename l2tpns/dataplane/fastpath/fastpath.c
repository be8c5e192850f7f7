/* The fast path of l2tpns: two tc programs that carry the IPv4 packets of online sessions without user space.
 *
 * fast_up sees what LAC-facing interfaces receive, takes L2TP and PPP off and hands the packet to the tun device, as if
 * it had come from there: netfilter and routing treat it like one that the server has written. fast_down sees what is
 * routed into the tun device and sends it to the LAC.
 *
 * A program that meets anything out of the ordinary returns NEXT before it has changed a single octet: the packet then
 * arrives at the UDP socket, or at the reader of the tun device, and user space judges it. What is dropped here is what
 * user space would drop, and is counted.
 *
 * Built by `make fastpath`. Needs no kernel headers at run time and no CO-RE.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "fastpath.h"

#define NEXT (-1) /* TCX: the next program, or the stack. For tc filters: TC_ACT_UNSPEC, the same */
#define DROP 2    /* TC_ACT_SHOT */

#define ETHERNET 14
#define IP 20
#define UDP 8
#define L2TP 6
#define PPP 4
#define ENCAPSULATION (IP + UDP + L2TP + PPP)
#define TCP 20

#define ETHERTYPE_IPV4 0x0800
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ICMP_REDIRECT 5
#define TCP_SYN 0x02
#define MSS_OPTION 0x0204 /* kind 2, length 4 */
#define AF_INET 2
#define LOOPBACK 1 /* index of lo: routes as for packets of this machine's own */
#define LIMIT_WINDOW 100000000ULL /* nanoseconds of one window of packet_limit */

#define ipv4_not_a_fragment(fragment) (((fragment) & bpf_htons(0x3fff)) == 0)
#define ipv4_first_fragment(fragment) (((fragment) & bpf_htons(0x1fff)) == 0)

/* Without it clang may compare with data_end an address that it computes anew, which the verifier does not follow. */
#define keep(variable) asm volatile("" : "+r"(variable))

/* Fields as in the packet; no more than two octets aligned, as IP behind an Ethernet header is not. */
#define WIRE __attribute__((packed, aligned(2)))

struct ipv4 {
	__u8 first; /* version, header length */
	__u8 tos;
	be16 length;
	be16 id;
	be16 fragment;
	__u8 ttl;
	__u8 protocol;
	be16 checksum;
	be32 source;
	be32 destination;
} WIRE;

struct udp {
	be16 source;
	be16 destination;
	be16 length;
	be16 checksum;
} WIRE;

struct outer { /* of a datagram from a LAC, up to the ids; `length` only if the flags say so */
	__u8 ethernet[ETHERNET];
	struct ipv4 ip;
	struct udp udp;
	be16 flags;
} WIRE;

struct tcp {
	be16 source;
	be16 destination;
	be32 sequence;
	be32 acknowledgement;
	__u8 data_offset;
	__u8 flags;
	be16 window;
	be16 checksum;
	be16 urgent;
	be16 option; /* the first: kind and length */
	be16 mss;
} WIRE;

struct encapsulation { /* of a datagram to a LAC */
	__u8 ethernet[ETHERNET];
	struct ipv4 ip;
	struct udp udp;
	be16 flags;
	be16 tunnel_id;
	be16 session_id;
	be16 address_control;
	be16 protocol;
} WIRE;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__type(key, struct session_key);
	__type(value, struct session);
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__type(key, be32);
	__type(value, struct session_key);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, struct session_key);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TOTALS);
	__type(key, __u32);
	__type(value, __u64);
} totals SEC(".maps");

/* Have the first octets of a packet where a program can read them. Return 0 if the packet is shorter. */
static __always_inline int linear(struct __sk_buff *skb, __u32 octets)
{
	return (void *)(long)skb->data + octets <= (void *)(long)skb->data_end || !bpf_skb_pull_data(skb, octets);
}

static __always_inline void add(__u32 total, __u64 amount)
{
	__u64 *value = bpf_map_lookup_elem(&totals, &total);

	if (value)
		*value += amount;
}

static __always_inline int pass(__u32 reason)
{
	add(reason, 1);
	return NEXT;
}

/* Return the settings if the programs may carry anything: they are enabled, and the server was alive not long ago. */
static __always_inline struct settings *active(void)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	if (!now || !(now->flags & ENABLED))
		return 0;
	if (now->patience && bpf_ktime_get_coarse_ns() - now->beat > now->patience)
		return 0;
	return now;
}

/* Pay for some octets (GCRA). Return 0 if the rate does not allow them now. A super-packet that is larger than the whole
 * burst passes when nothing of the burst is used: otherwise it never would.
 */
static __noinline int pay(struct direction *direction, __u32 cost, __u32 burst, __u32 octets)
{
	__u64 price = ((__u64)octets * cost) >> 10;
	__u64 saved = (__u64)burst * 1000;

	for (int attempt = 0; attempt < 4; attempt++) {
		__u64 now = bpf_ktime_get_ns();
		__u64 ready = direction->ready;
		__u64 start = ready;

		if ((__s64)(now - saved - ready) > 0)
			start = now - saved;
		if ((__s64)(start + price - now) > 0 && !(price > saved && start == now - saved))
			return 0;
		if (__sync_val_compare_and_swap(&direction->ready, ready, start + price) == ready)
			return 1;
	}
	__sync_fetch_and_add(&direction->ready, price); /* as many others are paying: the order does not matter */
	return 1;
}

static __always_inline void count(struct direction *direction, __u32 packets, __u32 octets)
{
	__sync_fetch_and_add(&direction->packets, packets);
	__sync_fetch_and_add(&direction->octets, octets);
	direction->last = bpf_ktime_get_coarse_ns();
}

/* Return the checksum after `before` became `after` in what it covers (RFC 1624). */
static __always_inline be16 changed(be16 checksum, be16 before, be16 after)
{
	__u32 sum = (__u16)~checksum + (__u16)~before + after;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Up */

/* Lower the MSS of a SYN from the subscriber. Return 0 if its options are not in the usual order. */
static __always_inline int clamp_up(struct tcp *tcp, __u16 mss)
{
	be16 lower = bpf_htons(mss);

	if (tcp->data_offset < 0x60) /* no options */
		return 1;
	if (tcp->option != bpf_htons(MSS_OPTION))
		return 0;
	if (bpf_ntohs(tcp->mss) <= mss)
		return 1;
	/* Not by helpers: they would not touch the checksum of a datagram whose own is not computed yet. */
	tcp->checksum = changed(tcp->checksum, tcp->mss, lower);
	tcp->mss = lower;
	add(UP_CLAMPED, 1);
	return 1;
}

/* Return 1 if the source address is the session's, 0 if it is not, -1 if user space has to decide. */
static __always_inline int owns(const struct session *session, const struct session_key *key, be32 source)
{
	struct route_key route = {.prefix_length = 32, .network = source};
	struct session_key *owner;

	if (source == session->address || !(session->flags & (CHECK_SOURCE | HAS_ROUTES)))
		return 1;
	if (!(session->flags & HAS_ROUTES))
		return 0;
	owner = bpf_map_lookup_elem(&routes, &route);
	if (owner && owner->tunnel_id == key->tunnel_id && owner->session_id == key->session_id)
		return 1;
	return -1; /* another session may have the same route */
}

SEC("tc")
int fast_up(struct __sk_buff *skb)
{
	struct settings *now;
	struct session *session;
	struct counters *counted;
	struct session_key key;
	struct outer *outer;
	struct ipv4 *ip;
	struct tcp *tcp;
	void *at;
	void *end;
	__u32 datagram;
	__u32 header;
	__u32 octets;
	__u32 slot;
	int owned;

	if (skb->protocol != bpf_htons(ETHERTYPE_IPV4) || skb->pkt_type != 0 || skb->vlan_present)
		return NEXT;
	if (!linear(skb, sizeof(*outer)))
		return NEXT;
	outer = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if ((void *)(outer + 1) > end || outer->ip.first != 0x45 || outer->ip.protocol != IPPROTO_UDP)
		return NEXT;
	now = active();
	if (!now || outer->udp.destination != now->port)
		return NEXT;
	if (!ipv4_not_a_fragment(outer->ip.fragment) || skb->gso_size)
		return pass(UP_PASSED_HEADER);
	datagram = bpf_ntohs(outer->udp.length) - UDP;
	if (bpf_ntohs(outer->udp.length) < UDP + L2TP + 2 + IP || skb->len != ETHERNET + IP + UDP + datagram ||
	    bpf_ntohs(outer->ip.length) != IP + UDP + datagram)
		return pass(outer->flags & bpf_htons(0x8000) ? UP_PASSED_CONTROL : UP_PASSED_HEADER);
	header = ETHERNET + IP + UDP + L2TP;
	if (outer->flags == bpf_htons(0x4002))
		header += 2;
	else if (outer->flags != bpf_htons(0x0002))
		return pass(outer->flags & bpf_htons(0x8000) ? UP_PASSED_CONTROL : UP_PASSED_HEADER);

	/* All that is looked at must be in the linear part: headers to the end of a TCP header with an MSS option. */
	if (header + PPP + IP + sizeof(*tcp) < skb->len)
		octets = header + PPP + IP + sizeof(*tcp);
	else
		octets = skb->len;
	if (!linear(skb, octets))
		return pass(UP_PASSED_PACKET);
	outer = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if ((void *)(outer + 1) > end)
		return NEXT;

	at = (void *)outer + header - 4; /* the two ids */
	keep(at);
	if (at + 8 > end)
		return pass(UP_PASSED_HEADER);
	if (header != ETHERNET + IP + UDP + L2TP && *(be16 *)(at - 2) != bpf_htons(datagram))
		return pass(UP_PASSED_HEADER);
	key = *(struct session_key *)at;
	if (*(__u32 *)(at + 4) == bpf_htonl(0xff030021))
		header += PPP;
	else if (*(be16 *)(at + 4) == bpf_htons(0x0021))
		header += 2;
	else
		return pass(UP_PASSED_PROTOCOL);
	session = bpf_map_lookup_elem(&sessions, &key);
	if (!session)
		return pass(UP_PASSED_SESSION);
	if (outer->ip.source != session->peer_address || outer->udp.source != session->peer_port ||
	    outer->ip.destination != session->local_address || outer->udp.destination != session->local_port)
		return pass(UP_PASSED_PEER);

	ip = (void *)outer + header;
	keep(ip);
	if ((void *)(ip + 1) > end)
		return pass(UP_PASSED_PACKET);
	octets = skb->len - header;
	if (ip->first != 0x45 || bpf_ntohs(ip->length) != octets)
		return pass(UP_PASSED_PACKET);
	slot = session->slot;
	counted = bpf_map_lookup_elem(&counters, &slot);
	if (!counted)
		return pass(UP_PASSED_SESSION);
	owned = owns(session, &key, ip->source);
	if (owned < 0)
		return pass(UP_PASSED_PACKET);
	if (!owned) {
		counted->up.last = bpf_ktime_get_coarse_ns();
		__sync_fetch_and_add(&counted->up.spoofed, 1);
		add(UP_SPOOFED, 1);
		add(UP_DATAGRAM_OCTETS, datagram);
		return DROP;
	}
	if (ip->protocol == IPPROTO_TCP && ipv4_first_fragment(ip->fragment)) {
		tcp = (void *)(ip + 1);
		if ((void *)tcp + 14 > end)
			return pass(UP_PASSED_PACKET);
		if (tcp->flags & TCP_SYN) {
			if ((void *)(tcp + 1) > end) {
				if (tcp->data_offset >= 0x60)
					return pass(UP_PASSED_PACKET);
			} else if (!clamp_up(tcp, session->mss)) {
				return pass(UP_PASSED_PACKET);
			}
		}
	}
	if (session->up_cost && !pay(&counted->up, session->up_cost, session->up_burst, octets)) {
		counted->up.last = bpf_ktime_get_coarse_ns();
		__sync_fetch_and_add(&counted->up.policed, 1);
		add(UP_POLICED, 1);
		add(UP_DATAGRAM_OCTETS, datagram);
		return DROP;
	}
	if (bpf_skb_adjust_room(skb, -(__s32)(header - ETHERNET), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return pass(UP_PASSED_PACKET);
	count(&counted->up, 1, octets);
	add(UP_PACKETS, 1);
	add(UP_OCTETS, octets);
	add(UP_DATAGRAM_OCTETS, datagram);
	bpf_set_hash_invalid(skb);
	return bpf_redirect(now->tun, BPF_F_INGRESS);
}

/* Down */

/* Lower the MSS of a SYN to the subscriber. Return 0 if its options are not in the usual order. */
static __always_inline int clamp_down(struct __sk_buff *skb, const struct tcp *tcp, __u16 mss)
{
	be16 lower = bpf_htons(mss);
	be16 before = tcp->mss;

	if (tcp->data_offset < 0x60)
		return 1;
	if (tcp->option != bpf_htons(MSS_OPTION))
		return 0;
	if (bpf_ntohs(before) <= mss)
		return 1;
	if (bpf_l4_csum_replace(skb, IP + 16, before, lower, sizeof(lower)) ||
	    bpf_skb_store_bytes(skb, IP + 22, &lower, sizeof(lower), 0))
		return 0;
	add(DOWN_CLAMPED, 1);
	return 1;
}

/* Return the key of the session that has an address, or 0. */
static __always_inline struct session_key *holder(be32 address)
{
	struct route_key route = {.prefix_length = 32, .network = address};
	struct session_key *key = bpf_map_lookup_elem(&addresses, &address);

	return key ? key : bpf_map_lookup_elem(&routes, &route);
}

/* packet_limit. Two processors that count at once may let one packet more through. */
static __always_inline int exceeds(struct direction *direction, __u32 limit, __u32 packets)
{
	__u32 window = bpf_ktime_get_ns() / LIMIT_WINDOW;

	if (direction->window != window) {
		direction->window = window;
		direction->window_packets = 0;
	}
	return __sync_fetch_and_add(&direction->window_packets, packets) + packets > limit;
}

static __always_inline void fill_header(struct encapsulation *new, const struct session *session, __u32 octets, __u16 id)
{
	__u32 sum = 0;
	be16 *word = (be16 *)&new->ip;

	__builtin_memset(new, 0, sizeof(*new));
	new->ethernet[12] = ETHERTYPE_IPV4 >> 8;
	new->ip.first = 0x45;
	new->ip.length = bpf_htons(ENCAPSULATION + octets);
	new->ip.id = bpf_htons(id);
	new->ip.ttl = 64;
	new->ip.protocol = IPPROTO_UDP;
	new->ip.source = session->local_address;
	new->ip.destination = session->peer_address;
#pragma unroll
	for (int index = 0; index < IP / 2; index++)
		sum += word[index];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	new->ip.checksum = ~sum;
	new->udp.source = session->local_port;
	new->udp.destination = session->peer_port;
	new->udp.length = bpf_htons(ENCAPSULATION - IP + octets);
	new->flags = bpf_htons(0x0002);
	new->tunnel_id = session->peer_tunnel_id;
	new->session_id = session->peer_session_id;
	new->address_control = bpf_htons(0xff03);
	new->protocol = bpf_htons(0x0021);
}

SEC("tc")
int fast_down(struct __sk_buff *skb)
{
	struct bpf_fib_lookup route = {};
	struct bpf_redir_neigh next = {};
	struct encapsulation new;
	struct settings *now;
	struct session *session;
	struct counters *counted;
	struct session_key *key;
	struct ipv4 *ip;
	struct tcp *tcp;
	void *end;
	__u32 first; /* octets of a packet, for a super-packet of its first segment */
	__u32 headers = 0;
	__u32 octets;
	__u32 packets = 1;
	__u32 slot;
	__u64 id;

	if (skb->protocol != bpf_htons(ETHERTYPE_IPV4))
		return NEXT;
	now = active();
	if (!now)
		return NEXT;
	octets = skb->len < IP + sizeof(*tcp) ? skb->len : IP + sizeof(*tcp);
	if (!linear(skb, octets))
		return pass(DOWN_PASSED_PACKET);
	ip = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if ((void *)(ip + 1) > end || ip->first != 0x45 || bpf_ntohs(ip->length) > skb->len)
		return pass(DOWN_PASSED_PACKET);
	key = holder(ip->destination);
	if (!key)
		return pass(DOWN_PASSED_SESSION);
	session = bpf_map_lookup_elem(&sessions, key);
	if (!session)
		return pass(DOWN_PASSED_SESSION);
	slot = session->slot;
	counted = bpf_map_lookup_elem(&counters, &slot);
	if (!counted)
		return pass(DOWN_PASSED_SESSION);

	octets = skb->len;
	first = octets;
	tcp = (void *)(ip + 1);
	if (ip->protocol == IPPROTO_UDP) {
		if ((void *)tcp + 2 > end || (ipv4_first_fragment(ip->fragment) && tcp->source == now->port))
			return pass(DOWN_PASSED_PACKET); /* the server's own L2TP, which must not go through itself */
	} else if (ip->protocol == IPPROTO_ICMP) {
		if ((void *)tcp + 1 > end || *(__u8 *)tcp == ICMP_REDIRECT)
			return pass(DOWN_PASSED_PACKET);
	}
	if (skb->gso_size) {
		if (ip->protocol != IPPROTO_TCP || (void *)tcp + 14 > end || tcp->flags & TCP_SYN)
			return pass(DOWN_PASSED_PACKET);
		headers = IP + (tcp->data_offset >> 4) * 4;
		first = headers + skb->gso_size;
		packets = skb->gso_segs ? skb->gso_segs : 1;
		octets += (packets - 1) * headers;
	}
	if (first > session->mru)
		return pass(DOWN_PASSED_PACKET);

	route.family = AF_INET;
	route.l4_protocol = IPPROTO_UDP;
	route.sport = session->local_port;
	route.dport = session->peer_port;
	route.tot_len = first + ENCAPSULATION;
	route.ipv4_src = session->local_address;
	route.ipv4_dst = session->peer_address;
	route.ifindex = LOOPBACK;
	/* A neighbour that is not known yet is asked for by the socket of user space: here the packet would be lost. */
	if (bpf_fib_lookup(skb, &route, sizeof(route), 0) != BPF_FIB_LKUP_RET_SUCCESS ||
	    route.family != AF_INET || route.ifindex == now->tun)
		return pass(DOWN_PASSED_ROUTE);

	if (ip->protocol == IPPROTO_TCP && ipv4_first_fragment(ip->fragment) && !skb->gso_size) {
		if ((void *)tcp + 14 > end)
			return pass(DOWN_PASSED_PACKET);
		if (tcp->flags & TCP_SYN) {
			if ((void *)(tcp + 1) > end) {
				if (tcp->data_offset >= 0x60)
					return pass(DOWN_PASSED_PACKET);
			} else if (!clamp_down(skb, tcp, session->mss)) {
				return pass(DOWN_PASSED_PACKET);
			}
		}
	}
	if (now->packet_limit && exceeds(&counted->down, now->packet_limit, packets)) {
		__sync_fetch_and_add(&counted->down.limited, packets);
		add(DOWN_LIMITED, packets);
		return DROP;
	}
	if (session->down_cost && !pay(&counted->down, session->down_cost, session->down_burst, octets)) {
		__sync_fetch_and_add(&counted->down.policed, packets);
		add(DOWN_POLICED, packets);
		return DROP;
	}
	id = __sync_fetch_and_add(&counted->down.packets, packets);
	__sync_fetch_and_add(&counted->down.octets, octets);
	counted->down.last = bpf_ktime_get_coarse_ns();
	add(DOWN_PACKETS, packets);
	add(DOWN_OCTETS, octets);
	add(DOWN_DATAGRAM_OCTETS, octets + packets * (L2TP + PPP));

	fill_header(&new, session, skb->len, id);
	/* L2TP and PPP count as part of the UDP header, so that each segment of a super-packet gets a copy. */
	if (bpf_skb_adjust_room(skb, ENCAPSULATION, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
				BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_change_head(skb, ETHERNET, 0) || bpf_skb_store_bytes(skb, 0, &new, sizeof(new), 0))
		return DROP; /* no memory; the packet is changed already */
	next.nh_family = AF_INET;
	next.ipv4_nh = route.ipv4_dst;
	return bpf_redirect_neigh(route.ifindex, &next, sizeof(next), 0);
}

const char hash[] SEC("source_hash") = SOURCE_HASH;
char terms[] SEC("license") = "GPL"; /* of the programs only: some helpers demand it */
