/* Packets as they are on the wire.
 *
 * No field is more than two octets aligned: IP behind an Ethernet header is not.
 */
#pragma once

#define ETHERNET 14
#define IP 20
#define UDP 8
#define L2TP 6
#define PPP 4
#define ENCAPSULATION (IP + UDP + L2TP + PPP) /* in front of a packet to a subscriber */

#define ETHERTYPE_IPV4 0x0800
#define IPV4_WITHOUT_OPTIONS 0x45
#define OFFSET 0x1fff /* in `fragment` */
#define MORE_OR_OFFSET 0x3fff
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ICMP_REDIRECT 5

/* RFC 2661 3.1 */
#define L2TP_CONTROL 0x8000
#define L2TP_DATA 0x0002
#define L2TP_DATA_WITH_LENGTH 0x4002

#define PPP_ADDRESS_CONTROL 0xff03
#define PPP_IPV4 0x0021

#define TCP_SYN 0x02
#define TCP_MSS 0x0204 /* kind 2, length 4 */
#define TCP_WITH_OPTION 0x60 /* least `data_offset` */

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

struct tcp {
	be16 source;
	be16 destination;
	be32 sequence;
	be32 acknowledgement;
	__u8 data_offset; /* upper four bits: header in words of four octets */
	__u8 flags;
	be16 window;
	be16 checksum;
	be16 urgent;
	be16 option; /* the first, if there is one: kind and length */
	be16 mss;
} WIRE;

#define TCP_FIXED 20 /* octets of struct tcp without the option */
#define TCP_CHECKSUM 16
#define TCP_MSS_VALUE 22

struct from_lac { /* a datagram from a LAC, up to the flags of L2TP */
	__u8 ethernet[ETHERNET];
	struct ipv4 ip;
	struct udp udp;
	be16 flags;
} WIRE;

struct to_lac { /* all that precedes a packet to a subscriber */
	__u8 ethernet[ETHERNET]; /* the kernel fills in the addresses */
	struct ipv4 ip;
	struct udp udp;
	be16 flags;
	be16 tunnel_id;
	be16 session_id;
	be16 address_control;
	be16 protocol;
} WIRE;

static __always_inline int is_fragment(const struct ipv4 *ip)
{
	return ip->fragment & bpf_htons(MORE_OR_OFFSET);
}

/* Return 0 for a fragment that does not begin with the header of TCP, UDP or ICMP. */
static __always_inline int has_transport_header(const struct ipv4 *ip)
{
	return !(ip->fragment & bpf_htons(OFFSET));
}

/* Have the first octets of a packet where a program can read them. Return 0 if the packet is shorter. Pointers into the
 * packet are invalid afterwards.
 */
static __always_inline int make_readable(struct __sk_buff *skb, __u32 octets)
{
	return (void *)(long)skb->data + octets <= (void *)(long)skb->data_end || !bpf_skb_pull_data(skb, octets);
}

static __always_inline __u32 least(__u32 one, __u32 other)
{
	return one < other ? one : other;
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Return a checksum after one word of what it covers has changed (RFC 1624). */
static __always_inline be16 changed(be16 checksum, be16 before, be16 after)
{
	return ~fold((__u16)~checksum + (__u16)~before + after);
}

/* As the server's own sockets send: TTL 64, no DF, and no UDP checksum (RFC 768). */
static __always_inline void fill_header(struct to_lac *header, const struct session *session, __u32 octets, __u16 id)
{
	const be16 *word = (be16 *)&header->ip;
	__u32 sum = 0;

	__builtin_memset(header, 0, sizeof(*header));
	header->ethernet[ETHERNET - 2] = ETHERTYPE_IPV4 >> 8;
	header->ip.first = IPV4_WITHOUT_OPTIONS;
	header->ip.length = bpf_htons(ENCAPSULATION + octets);
	header->ip.id = bpf_htons(id);
	header->ip.ttl = 64;
	header->ip.protocol = IPPROTO_UDP;
	header->ip.source = session->local_address;
	header->ip.destination = session->peer_address;
#pragma unroll
	for (int index = 0; index < IP / 2; index++)
		sum += word[index];
	header->ip.checksum = ~fold(sum);
	header->udp.source = session->local_port;
	header->udp.destination = session->peer_port;
	header->udp.length = bpf_htons(ENCAPSULATION - IP + octets);
	header->flags = bpf_htons(L2TP_DATA);
	header->tunnel_id = session->peer_tunnel_id;
	header->session_id = session->peer_session_id;
	header->address_control = bpf_htons(PPP_ADDRESS_CONTROL);
	header->protocol = bpf_htons(PPP_IPV4);
}
