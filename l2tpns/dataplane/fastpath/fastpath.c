/* The fast path of l2tpns: two tc programs that carry the IPv4 packets of online sessions without user space.
 *
 * fast_up sees what LAC-facing interfaces receive. It takes L2TP and PPP off and hands the packet to the tun device:
 * netfilter and routing treat it like one that the server has written there. fast_down sees what is routed into the tun
 * device, and sends it to the LAC.
 *
 * A program that meets anything out of the ordinary leaves the packet as it is and returns NEXT: the packet then arrives
 * at the UDP socket or at the reader of the tun device, and user space judges it. The programs drop only what user space
 * would drop, and count it.
 *
 * Built by `make fastpath`. The object needs no kernel headers and no BTF of the kernel.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NEXT (-1) /* TCX_NEXT: the next program, or the stack */
#define DROP 2    /* TCX_DROP */

#include "fastpath.h"
#include "packet.h"
#include "maps.h"

#define CARRY TOTALS /* instead of a reason to pass */

#define AF_INET 2
#define LOOPBACK 1 /* index of lo: routes as for packets of this machine's own */

/* The verifier follows one pointer that is compared with data_end. Without this clang may compare one and use another. */
#define keep(pointer) asm volatile("" : "+r"(pointer))

/* TCP */

enum syn { NOT_TO_CLAMP, TO_CLAMP, UNUSUAL };

/* Return whether the MSS option has to be lowered. Only the usual form is known: the option is the first one. */
static __always_inline enum syn judge_syn(const struct ipv4 *ip, const void *end, __u16 mss)
{
	const struct tcp *tcp = (const void *)(ip + 1);

	if (ip->protocol != IPPROTO_TCP || !has_transport_header(ip))
		return NOT_TO_CLAMP;
	if (ip->first != IPV4_WITHOUT_OPTIONS || (const void *)&tcp->window > end)
		return UNUSUAL;
	if (!(tcp->flags & TCP_SYN) || tcp->data_offset < TCP_WITH_OPTION)
		return NOT_TO_CLAMP;
	if ((const void *)(tcp + 1) > end || tcp->option != bpf_htons(TCP_MSS))
		return UNUSUAL;
	return bpf_ntohs(tcp->mss) > mss ? TO_CLAMP : NOT_TO_CLAMP;
}

/* Up */

struct received {
	struct session *session;
	struct counters *counters;
	struct ipv4 *ip; /* the subscriber's packet */
	const void *end; /* of what can be read */
	struct session_key key;
	__u32 payload; /* octets of the datagram behind the UDP header */
	__u32 header;  /* octets in front of the subscriber's packet */
	__u32 octets;  /* of this packet */
};

static __always_inline int is_l2tp(struct __sk_buff *skb, be16 port)
{
	struct from_lac *datagram;

	/* Packets to another machine's MAC address are seen while a capture runs. */
	if (skb->protocol != bpf_htons(ETHERTYPE_IPV4) || skb->pkt_type != 0 || skb->vlan_present)
		return 0;
	if (!make_readable(skb, sizeof(*datagram)))
		return 0;
	datagram = (void *)(long)skb->data;
	if ((void *)(datagram + 1) > (void *)(long)skb->data_end)
		return 0;
	return datagram->ip.first == IPV4_WITHOUT_OPTIONS && datagram->ip.protocol == IPPROTO_UDP &&
	       datagram->udp.destination == port;
}

/* Find the session of a datagram, and where its packet begins. */
static __always_inline __u32 read_datagram(struct __sk_buff *skb, struct received *received)
{
	struct from_lac *datagram;
	__u16 length;
	__u16 flags;
	void *at;

	if (!make_readable(skb, least(skb->len, ETHERNET + ENCAPSULATION + 2 + IP + sizeof(struct tcp))))
		return UP_PASSED_HEADER;
	datagram = (void *)(long)skb->data;
	received->end = (void *)(long)skb->data_end;
	if ((void *)(datagram + 1) > received->end)
		return UP_PASSED_HEADER;
	flags = bpf_ntohs(datagram->flags);
	if (flags & L2TP_CONTROL)
		return UP_PASSED_CONTROL;
	length = bpf_ntohs(datagram->udp.length);
	if (is_fragment(&datagram->ip) || skb->gso_size || bpf_ntohs(datagram->ip.length) != IP + length ||
	    skb->len != ETHERNET + IP + length || length < UDP + L2TP)
		return UP_PASSED_HEADER;
	received->payload = length - UDP;
	received->header = ETHERNET + IP + UDP + L2TP;
	if (flags == L2TP_DATA_WITH_LENGTH)
		received->header += 2;
	else if (flags != L2TP_DATA)
		return UP_PASSED_HEADER;

	at = (void *)datagram + received->header - sizeof(received->key);
	keep(at);
	if (at + 8 > received->end)
		return UP_PASSED_HEADER;
	if (flags == L2TP_DATA_WITH_LENGTH && ((be16 *)at)[-1] != bpf_htons(received->payload))
		return UP_PASSED_HEADER;
	received->key = *(struct session_key *)at;
	received->session = bpf_map_lookup_elem(&sessions, &received->key);
	if (!received->session)
		return UP_PASSED_SESSION;
	if (datagram->ip.source != received->session->peer_address ||
	    datagram->ip.destination != received->session->local_address ||
	    datagram->udp.source != received->session->peer_port ||
	    datagram->udp.destination != received->session->local_port)
		return UP_PASSED_PEER;
	if (((be16 *)at)[2] == bpf_htons(PPP_ADDRESS_CONTROL) && ((be16 *)at)[3] == bpf_htons(PPP_IPV4))
		received->header += PPP;
	else if (((be16 *)at)[2] == bpf_htons(PPP_IPV4))
		received->header += 2;
	else
		return UP_PASSED_PROTOCOL;
	received->ip = (void *)datagram + received->header;
	return CARRY;
}

static __always_inline __u32 read_packet(struct __sk_buff *skb, struct received *received)
{
	keep(received->ip);
	if ((void *)(received->ip + 1) > received->end)
		return UP_PASSED_PACKET;
	received->octets = skb->len - received->header;
	if (received->ip->first != IPV4_WITHOUT_OPTIONS || bpf_ntohs(received->ip->length) != received->octets)
		return UP_PASSED_PACKET;
	received->counters = counters_of(received->session);
	return received->counters ? CARRY : UP_PASSED_SESSION;
}

enum owner { SUBSCRIBER, STRANGER, UNKNOWN };

/* Return to which subscriber a source address belongs. */
static __always_inline enum owner owner_of(const struct received *received)
{
	struct route_key route = {.prefix_length = 32, .network = received->ip->source};
	__u32 flags = received->session->flags;
	struct session_key *key;

	if (received->ip->source == received->session->address)
		return SUBSCRIBER;
	if (!(flags & HAS_ROUTES))
		return flags & CHECK_SOURCE ? STRANGER : SUBSCRIBER;
	key = bpf_map_lookup_elem(&routes, &route);
	if (key && key->tunnel_id == received->key.tunnel_id && key->session_id == received->key.session_id)
		return SUBSCRIBER;
	return UNKNOWN; /* two sessions may have the same route; the map has one of them */
}

static __always_inline int drop_up(struct received *received, __u64 *counter, __u32 total)
{
	received->counters->up.last = bpf_ktime_get_coarse_ns();
	__sync_fetch_and_add(counter, 1);
	add(total, 1);
	add(UP_DATAGRAM_OCTETS, received->payload);
	return DROP;
}

/* Lower the MSS of a SYN that is now behind an Ethernet header. Not by bpf_l4_csum_replace, which leaves the checksum to
 * the interface where the *datagram's* was left to it.
 */
static __always_inline void clamp_up(struct __sk_buff *skb, __u16 mss)
{
	struct tcp *tcp = (void *)(long)skb->data + ETHERNET + IP;
	be16 lower = bpf_htons(mss);
	be16 checksum;

	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return;
	checksum = changed(tcp->checksum, tcp->mss, lower);
	bpf_skb_store_bytes(skb, ETHERNET + IP + TCP_CHECKSUM, &checksum, sizeof(checksum), 0);
	bpf_skb_store_bytes(skb, ETHERNET + IP + TCP_MSS_VALUE, &lower, sizeof(lower), 0);
	add(UP_CLAMPED, 1);
}

SEC("tc")
int fast_up(struct __sk_buff *skb)
{
	struct settings *now = active();
	struct received received = {};
	struct direction *up;
	enum owner owner;
	enum syn syn;
	__u32 reason;
	__u16 mss;

	if (!now || !is_l2tp(skb, now->port))
		return NEXT;
	reason = read_datagram(skb, &received);
	if (reason == CARRY)
		reason = read_packet(skb, &received);
	if (reason != CARRY)
		return pass(reason);
	up = &received.counters->up;
	owner = owner_of(&received);
	if (owner == UNKNOWN)
		return pass(UP_PASSED_PACKET);
	if (owner == STRANGER)
		return drop_up(&received, &up->spoofed, UP_SPOOFED);
	mss = received.session->mss;
	syn = judge_syn(received.ip, received.end, mss);
	if (syn == UNUSUAL)
		return pass(UP_PASSED_PACKET);
	if (received.session->up_cost &&
	    !pay(up, received.session->up_cost, received.session->up_burst, received.octets))
		return drop_up(&received, &up->policed, UP_POLICED);

	if (bpf_skb_adjust_room(skb, -(__s32)(received.header - ETHERNET), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return pass(UP_PASSED_PACKET);
	if (syn == TO_CLAMP)
		clamp_up(skb, mss);
	count(up, 1, received.octets);
	add(UP_PACKETS, 1);
	add(UP_OCTETS, received.octets);
	add(UP_DATAGRAM_OCTETS, received.payload);
	bpf_set_hash_invalid(skb); /* the LAC's: it would send all subscribers' packets to one queue */
	return bpf_redirect(now->tun, BPF_F_INGRESS);
}

/* Down */

struct routed {
	struct session *session;
	struct counters *counters;
	struct ipv4 *ip;
	const void *end;  /* of what can be read */
	__u32 packets;    /* segments of a super-packet */
	__u32 octets;     /* of all these packets */
	__u32 largest;    /* octets of the largest of them */
	__u32 interface;  /* towards the LAC */
	be32 next_hop;
};

/* Return 1 if user space has to see the packet: the server's own L2TP, which must not go through itself, and ICMP
 * redirects.
 */
static __always_inline int is_special(const struct routed *routed, be16 port)
{
	const void *transport = routed->ip + 1;

	if (!has_transport_header(routed->ip))
		return 0;
	if (routed->ip->protocol == IPPROTO_UDP)
		return transport + sizeof(port) > routed->end || *(be16 *)transport == port;
	if (routed->ip->protocol == IPPROTO_ICMP)
		return transport + 1 > routed->end || *(__u8 *)transport == ICMP_REDIRECT;
	return 0;
}

/* Find out what a packet, or the segments of a super-packet, will be on the wire. */
static __always_inline int measure(struct __sk_buff *skb, struct routed *routed)
{
	struct tcp *tcp = (void *)(routed->ip + 1);
	__u32 header;
	__u32 data;

	routed->octets = routed->largest = skb->len;
	routed->packets = 1;
	if (!skb->gso_size)
		return 1;
	if (routed->ip->protocol != IPPROTO_TCP || (void *)&tcp->window > routed->end || tcp->flags & TCP_SYN)
		return 0;
	header = IP + (tcp->data_offset >> 4) * 4;
	if (header >= skb->len)
		return 0;
	data = skb->len - header;
	routed->packets = (data + skb->gso_size - 1) / skb->gso_size; /* gso_segs may be 0 */
	routed->octets = data + routed->packets * header;
	routed->largest = header + skb->gso_size;
	return 1;
}

static __always_inline __u32 read_routed(struct __sk_buff *skb, struct routed *routed, be16 port)
{
	struct session_key *key;
	struct route_key route = {.prefix_length = 32};

	if (!make_readable(skb, least(skb->len, IP + sizeof(struct tcp))))
		return DOWN_PASSED_PACKET;
	routed->ip = (void *)(long)skb->data;
	routed->end = (void *)(long)skb->data_end;
	if ((void *)(routed->ip + 1) > routed->end || routed->ip->first != IPV4_WITHOUT_OPTIONS ||
	    bpf_ntohs(routed->ip->length) != skb->len || is_special(routed, port))
		return DOWN_PASSED_PACKET;
	route.network = routed->ip->destination;
	key = bpf_map_lookup_elem(&addresses, &route.network);
	if (!key)
		key = bpf_map_lookup_elem(&routes, &route);
	if (!key)
		return DOWN_PASSED_SESSION;
	routed->session = bpf_map_lookup_elem(&sessions, key);
	if (!routed->session)
		return DOWN_PASSED_SESSION;
	routed->counters = counters_of(routed->session);
	if (!routed->counters)
		return DOWN_PASSED_SESSION;
	return measure(skb, routed) && routed->largest <= routed->session->mru ? CARRY : DOWN_PASSED_PACKET;
}

/* Find the interface to the LAC, one that fast_up is attached to. Where the MTU is too small user space lets the kernel fragment the datagram. Where the
 * neighbour is not known yet its socket asks for it: here the packet would be lost.
 */
static __always_inline __u32 find_lac(struct __sk_buff *skb, struct routed *routed)
{
	struct bpf_fib_lookup route = {
		.family = AF_INET,
		.l4_protocol = IPPROTO_UDP,
		.sport = routed->session->local_port,
		.dport = routed->session->peer_port,
		.tot_len = routed->largest + ENCAPSULATION,
		.ifindex = LOOPBACK,
		.ipv4_src = routed->session->local_address,
		.ipv4_dst = routed->session->peer_address,
	};

	if (bpf_fib_lookup(skb, &route, sizeof(route), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return DOWN_PASSED_ROUTE;
	if (route.family != AF_INET || !bpf_map_lookup_elem(&interfaces, &route.ifindex))
		return DOWN_PASSED_ROUTE;
	routed->interface = route.ifindex;
	routed->next_hop = route.ipv4_dst;
	return CARRY;
}

static __always_inline int drop_down(__u64 *counter, __u32 total, __u32 packets)
{
	__sync_fetch_and_add(counter, packets);
	add(total, packets);
	return DROP;
}

/* Lower the MSS of a SYN. The kernel computes the checksum later if it has not done so. */
static __always_inline int clamp_down(struct __sk_buff *skb, be16 before, __u16 mss)
{
	be16 lower = bpf_htons(mss);

	add(DOWN_CLAMPED, 1);
	return bpf_l4_csum_replace(skb, IP + TCP_CHECKSUM, before, lower, sizeof(lower)) ||
	       bpf_skb_store_bytes(skb, IP + TCP_MSS_VALUE, &lower, sizeof(lower), 0);
}

/* Make room in front of the packet. L2TP and PPP count as part of the UDP header, so that each segment of a super-packet
 * gets a copy of all. On an error the packet is as it was: there are kinds of super-packets that the kernel refuses.
 */
static __always_inline int make_room(struct __sk_buff *skb)
{
	return bpf_skb_adjust_room(skb, ENCAPSULATION, BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
					   BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* Fill the room, with one for an Ethernet header in front of it. */
static __always_inline int store_header(struct __sk_buff *skb, const struct to_lac *header)
{
	return bpf_skb_change_head(skb, ETHERNET, 0) || bpf_skb_store_bytes(skb, 0, header, sizeof(*header), 0);
}

SEC("tc")
int fast_down(struct __sk_buff *skb)
{
	struct settings *now = active();
	struct bpf_redir_neigh next = {.nh_family = AF_INET};
	struct routed routed = {};
	struct to_lac header;
	struct session *session;
	struct direction *down;
	enum syn syn;
	__u32 window;
	__u32 reason;
	__u32 octets;
	__u16 id;

	if (!now || skb->protocol != bpf_htons(ETHERTYPE_IPV4))
		return NEXT;
	reason = read_routed(skb, &routed, now->port);
	if (reason == CARRY)
		reason = find_lac(skb, &routed);
	if (reason != CARRY)
		return pass(reason);
	session = routed.session;
	syn = judge_syn(routed.ip, routed.end, session->mss);
	if (syn == UNUSUAL)
		return pass(DOWN_PASSED_PACKET);
	down = &routed.counters->down;
	window = present_window();
	if (is_limited(down, now->packet_limit, window))
		return drop_down(&down->limited, DOWN_LIMITED, routed.packets);
	if (session->down_cost && !pay(down, session->down_cost, session->down_burst, routed.octets))
		return drop_down(&down->policed, DOWN_POLICED, routed.packets);
	use_limit(down, window, routed.packets);

	if (syn == TO_CLAMP && clamp_down(skb, ((struct tcp *)(routed.ip + 1))->mss, session->mss))
		return DROP; /* only where the kernel has no memory left, as below */
	octets = skb->len;
	if (make_room(skb))
		return pass(DOWN_PASSED_PACKET);
	/* Sessions of a LAC begin far apart: a router on the way may have to fragment. */
	id = count(down, routed.packets, routed.octets) + session->slot * 40503;
	fill_header(&header, session, octets, id);
	if (store_header(skb, &header))
		return DROP;
	add(DOWN_PACKETS, routed.packets);
	add(DOWN_OCTETS, routed.octets);
	add(DOWN_DATAGRAM_OCTETS, routed.octets + routed.packets * (L2TP + PPP));
	next.ipv4_nh = routed.next_hop;
	return bpf_redirect_neigh(routed.interface, &next, sizeof(next), 0);
}

const char hash[] SEC("source_hash") = SOURCE_HASH;
const char terms[] SEC("license") = "Dual MIT/GPL"; /* bpf_fib_lookup is for programs under the GPL */
