/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv4 and IPv6 headers, their options, extension headers and fragments. */
#ifndef IDMESH_NETWORK_H
#define IDMESH_NETWORK_H

#include "packet.h"

#define NETWORK_OPTIONS 40   /* in one header; more are refused */
#define NETWORK_EXTENSIONS 6 /* headers in a chain */

#define IP4_OPTION_END 0
#define IP4_OPTION_NOP 1
#define IP4_OPTION_LOOSE_ROUTE 131
#define IP4_OPTION_STRICT_ROUTE 137
#define IP4_OFFSET 0x1fffu
#define IP4_MORE 0x2000u

#define IP6_HOP_BY_HOP 0
#define IP6_ROUTING 43
#define IP6_FRAGMENT 44
#define IP6_OPTIONS 60
#define IP6_OPTION_PAD1 0
#define IP6_OPTION_HOME 201 /* another source address than the one that was checked (RFC 6275, 6.3) */
#define IP6_OFFSET 0xfff8u
#define IP6_MORE 1u

// An option's length, both formats. 0: malformed, or one that says another address than the header's.
static __always_inline uint32_t network_option(uint8_t type, uint8_t length, bool six)
{
	if (six) {
		if (type == IP6_OPTION_PAD1)
			return 1;
		return type == IP6_OPTION_HOME ? 0 : length + 2u;
	}
	if (type == IP4_OPTION_NOP)
		return 1;
	if (type == IP4_OPTION_LOOSE_ROUTE || type == IP4_OPTION_STRICT_ROUTE || length < 2)
		return 0;
	return length;
}

PACKET_GLOBAL int network_check_options(struct __sk_buff *skb, uint32_t at, uint32_t size, uint32_t six)
{
	uint32_t end = at + size;

	for (int i = 0; i < NETWORK_OPTIONS && at < end; i++) {
		uint8_t head[2] = {0};
		uint32_t step;

		// The last one may be of a single byte.
		if (bpf_skb_load_bytes(skb, at, head, at + 1 < end ? 2 : 1))
			return IDM_PACKET_INVALID;
		if (!six && head[0] == IP4_OPTION_END)
			return 0;
		step = network_option(head[0], head[1], six);
		if (!step)
			return IDM_PACKET_INVALID;
		at += step;
	}
	return at == end ? 0 : IDM_PACKET_INVALID;
}

// Bytes from `at` that IP names. 0: more than there are. Great GSO packets do not say (0 in the header).
static __always_inline uint32_t network_size(struct __sk_buff *skb, uint32_t at, uint32_t named, bool unnamed)
{
	uint32_t have = skb->len - at;

	if (unnamed && skb->gso_size)
		return have;
	return named > have ? 0 : named;
}

// quoted: a piece inside an ICMP error, which is shorter than it says.
static __always_inline int network_read_ip4(struct __sk_buff *skb, uint32_t at, struct packet *packet, bool quoted)
{
	uint32_t size, header, offset;
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return IDM_PACKET_INVALID;
	header = ip.ihl * 4u;
	size = quoted ? skb->len - at : network_size(skb, at, bpf_ntohs(ip.tot_len), !ip.tot_len);
	if (ip.version != 4 || header < sizeof(ip) || size < header)
		return IDM_PACKET_INVALID;
	packet_set_ip4(&packet->source, ip.saddr);
	packet_set_ip4(&packet->destination, ip.daddr);
	packet->protocol = ip.protocol;
	packet->hop_limit = ip.ttl;
	packet->transport = at + header;
	packet->end = at + size;
	packet->fragment_be = ip.id;
	offset = bpf_ntohs(ip.frag_off);
	if (offset & IP4_OFFSET)
		packet->flags |= PACKET_LATER;
	else if (offset & IP4_MORE)
		packet->flags |= PACKET_FIRST;
	// The second eight bytes of TCP hold its flags: what writes over them is an attack (RFC 3128).
	if ((offset & IP4_OFFSET) == 1 && ip.protocol == IPPROTO_TCP)
		return IDM_PACKET_INVALID;
	if (header > sizeof(ip))
		return network_check_options(skb, at + sizeof(ip), header - sizeof(ip), false);
	return 0;
}

static __always_inline int network_read_fragment(struct __sk_buff *skb, uint32_t at, struct packet *packet, uint8_t *next)
{
	struct frag_hdr fragment;
	uint16_t offset;

	if (bpf_skb_load_bytes(skb, at, &fragment, sizeof(fragment)))
		return IDM_PACKET_INVALID;
	offset = bpf_ntohs(fragment.frag_off);
	packet->fragment_be = fragment.identification;
	if (offset & IP6_OFFSET)
		packet->flags |= PACKET_LATER;
	else if (offset & IP6_MORE)
		packet->flags |= PACKET_FIRST;
	// The second eight bytes of TCP, as in IPv4.
	if ((offset & IP6_OFFSET) == 8 && fragment.nexthdr == IPPROTO_TCP)
		return IDM_PACKET_INVALID;
	*next = fragment.nexthdr;
	return 0;
}

static __always_inline int network_read_extension(struct __sk_buff *skb, uint32_t at, const struct packet *packet,
						  uint8_t *next, uint32_t *size)
{
	uint8_t head[2];

	if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
		return IDM_PACKET_INVALID;
	*size = (head[1] + 1u) * 8;
	if (at + *size > packet->end)
		return IDM_PACKET_INVALID;
	*next = head[0];
	return network_check_options(skb, at + sizeof(head), *size - sizeof(head), true);
}

/*
 * Follow the chain to what stands above IP. Routing headers go elsewhere than the destination says; extension headers
 * behind a fragment header could be written over by a later fragment: both are refused.
 */
PACKET_GLOBAL int network_follow(struct __sk_buff *skb, struct packet *packet)
{
	bool fragmented = false;
	uint8_t next;

	if (!packet)
		return IDM_PACKET_INVALID;
	next = packet->protocol;
	for (int i = 0; i < NETWORK_EXTENSIONS; i++) {
		uint32_t size = sizeof(struct frag_hdr);
		int reason;

		packet->protocol = next;
		if (next == IP6_ROUTING)
			return IDM_PACKET_INVALID;
		if (next != IP6_HOP_BY_HOP && next != IP6_OPTIONS && next != IP6_FRAGMENT)
			return 0;
		if (fragmented || (next == IP6_HOP_BY_HOP && i))
			return IDM_PACKET_INVALID;
		fragmented = next == IP6_FRAGMENT;
		if (fragmented)
			reason = network_read_fragment(skb, packet->transport, packet, &next);
		else
			reason = network_read_extension(skb, packet->transport, packet, &next, &size);
		if (reason)
			return reason;
		packet->transport += size;
		if (packet->transport > packet->end)
			return IDM_PACKET_INVALID;
	}
	return IDM_PACKET_INVALID;
}

static __always_inline int network_read_ip6(struct __sk_buff *skb, uint32_t at, struct packet *packet, bool quoted)
{
	struct ipv6hdr ip;
	uint32_t size;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return IDM_PACKET_INVALID;
	size = quoted ? skb->len - at
		      : network_size(skb, at, sizeof(ip) + bpf_ntohs(ip.payload_len), !ip.payload_len);
	if (ip.version != 6 || size < sizeof(ip))
		return IDM_PACKET_INVALID;
	__builtin_memcpy(&packet->source, &ip.saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ip.daddr, sizeof(packet->destination));
	// On the wire this is no IPv4 address, in the tables it would be read as one.
	if (packet_is_mapped(&packet->source))
		return IDM_PACKET_INVALID_SOURCE_IP;
	if (packet_is_mapped(&packet->destination))
		return IDM_PACKET_INVALID;
	packet->protocol = ip.nexthdr;
	packet->hop_limit = ip.hop_limit;
	packet->transport = at + sizeof(ip);
	packet->end = at + size;
	return 0;
}

static __always_inline bool network_is_extension(uint8_t next)
{
	return next == IP6_HOP_BY_HOP || next == IP6_ROUTING || next == IP6_FRAGMENT || next == IP6_OPTIONS;
}

// All headers of a packet, or the reason to drop it. ARP: Ethernet's only.
PACKET_GLOBAL int network_read_any(struct __sk_buff *skb, struct packet *packet)
{
	int reason;

	if (!packet)
		return IDM_PACKET_INVALID;
	reason = packet_read_ethernet(skb, packet);
	if (reason || packet->kind == PACKET_ARP)
		return reason;
	if (packet->kind == PACKET_IP4)
		reason = network_read_ip4(skb, PACKET_ETHERNET, packet, false);
	else
		reason = network_read_ip6(skb, PACKET_ETHERNET, packet, false);
	if (!reason && packet->kind == PACKET_IP6 && network_is_extension(packet->protocol))
		reason = network_follow(skb, packet);
	return reason ? reason : packet_read_transport(skb, packet);
}

// ---- what nearly every packet is: TCP or UDP in one piece, nothing between it and IP, at the front of the buffer ----

// head: eight bytes of the transport header that are there.
static __always_inline bool network_read_plain_ports(const uint8_t *head, const void *end, uint32_t size,
						     struct packet *packet)
{
	packet_read_ports(packet, head);
	if (packet->protocol == IPPROTO_UDP)
		return size >= 8;
	if (packet->protocol != IPPROTO_TCP || size < PACKET_HEAD || (const void *)(head + PACKET_HEAD) > end ||
	    head[12] >> 4 < 5)
		return false;
	packet_set_tcp_flags(packet, head[13]);
	return true;
}

static __always_inline bool network_read_plain_ip4(struct __sk_buff *skb, const struct iphdr *ip, const void *end,
						   struct packet *packet)
{
	uint32_t size;

	if ((const void *)(ip + 1) + 8 > end)
		return false;
	size = bpf_ntohs(ip->tot_len);
	// Fragments, options, a length that cannot be: not plain.
	if (*(const uint8_t *)ip != 0x45 || ip->frag_off & bpf_htons(0xbfff) || size < sizeof(*ip) ||
	    size > skb->len - PACKET_ETHERNET)
		return false;
	packet->kind = PACKET_IP4;
	packet->protocol = ip->protocol;
	packet_set_ip4(&packet->source, ip->saddr);
	packet_set_ip4(&packet->destination, ip->daddr);
	return network_read_plain_ports((const uint8_t *)(ip + 1), end, size - sizeof(*ip), packet);
}

static __always_inline bool network_read_plain_ip6(struct __sk_buff *skb, const struct ipv6hdr *ip, const void *end,
						   struct packet *packet)
{
	uint32_t size;

	if ((const void *)(ip + 1) + 8 > end)
		return false;
	size = bpf_ntohs(ip->payload_len);
	if (*(const uint8_t *)ip >> 4 != 6 || sizeof(*ip) + size > skb->len - PACKET_ETHERNET)
		return false;
	packet->kind = PACKET_IP6;
	packet->protocol = ip->nexthdr;
	__builtin_memcpy(&packet->source, &ip->saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ip->daddr, sizeof(packet->destination));
	if (packet_is_mapped(&packet->source) || packet_is_mapped(&packet->destination))
		return false;
	return network_read_plain_ports((const uint8_t *)(ip + 1), end, size, packet);
}

static __always_inline bool network_read_plain(struct __sk_buff *skb, struct packet *packet)
{
	const void *data = (const void *)(long)skb->data, *end = (const void *)(long)skb->data_end;
	const struct ethhdr *frame = data;

	if ((const void *)(frame + 1) > end || skb->vlan_present || skb->protocol != frame->h_proto)
		return false;
	__builtin_memcpy(packet->mac, frame->h_source, PACKET_MAC);
	if (frame->h_proto == bpf_htons(PACKET_TYPE_IP4))
		return network_read_plain_ip4(skb, (const void *)(frame + 1), end, packet);
	if (frame->h_proto == bpf_htons(PACKET_TYPE_IP6))
		return network_read_plain_ip6(skb, (const void *)(frame + 1), end, packet);
	return false;
}

/* All headers of a packet, or the reason to drop it. What is not plain is read again from the start, with care. */
static __always_inline int network_read(struct __sk_buff *skb, struct packet *packet)
{
	if (network_read_plain(skb, packet))
		return 0;
	packet->flags = 0;
	packet->tcp_flags = 0;
	packet->source_port = 0;
	packet->destination_port = 0;
	return network_read_any(skb, packet);
}

/* The packet that an ICMP error is about: at least its addresses and eight bytes above them. */
PACKET_GLOBAL int network_read_quoted(struct __sk_buff *skb, uint32_t at, struct packet *packet)
{
	uint8_t head[8];
	int reason;

	if (!packet)
		return IDM_PACKET_INVALID;
	if (packet->kind == PACKET_IP4)
		reason = network_read_ip4(skb, at, packet, true);
	else
		reason = network_read_ip6(skb, at, packet, true);
	if (!reason && packet->kind == PACKET_IP6 && network_is_extension(packet->protocol))
		reason = network_follow(skb, packet);
	if (reason)
		return reason;
	if (packet->flags & PACKET_LATER || !packet_head_size(packet) ||
	    bpf_skb_load_bytes(skb, packet->transport, head, sizeof(head)))
		return IDM_PACKET_INVALID;
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6)
		packet_read_icmp(packet, head);
	else
		packet_read_ports(packet, head);
	return packet->flags & (PACKET_ERROR | PACKET_UNTRACKED) ? IDM_PACKET_INVALID : 0;
}

// ---- fragments: ports by the datagram they are of ----

static __always_inline void network_fragment_key(const struct packet *packet, struct idm_fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->source = packet->source;
	key->destination = packet->destination;
	key->id_be = packet->fragment_be;
	key->protocol = packet->protocol;
}

static __always_inline bool network_is_echo(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6;
}

/*
 * Keep the ports of a first fragment, find those of a later one. Echo keeps its type in the place of the second port.
 * Later fragments that came before the first are dropped (157): the sender sends again.
 */
PACKET_GLOBAL int network_join_fragment(struct packet *packet)
{
	struct idm_fragment_key key __attribute__((aligned(8)));
	uint32_t ports, *known;

	if (!packet)
		return IDM_PACKET_INVALID;
	// Errors and neighbour discovery are never in pieces.
	if (packet->flags & (PACKET_ERROR | PACKET_UNTRACKED))
		return IDM_PACKET_INVALID;
	network_fragment_key(packet, &key);
	ports = (uint32_t)packet->source_port << 16 |
		(network_is_echo(packet) ? packet->type : packet->destination_port);
	if (packet->flags & PACKET_FIRST)
		return bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY) ? IDM_PACKET_MAP_FULL : 0;
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known)
		return IDM_PACKET_FRAGMENT_NOT_FOUND;
	ports = *known;
	packet->source_port = ports >> 16;
	packet->destination_port = ports;
	if (network_is_echo(packet)) {
		packet->type = ports;
		packet->destination_port = packet->source_port;
		packet->flags |= packet->type == ICMP_ECHO_REQUEST || packet->type == ICMP6_ECHO_REQUEST
					 ? PACKET_OPENS
					 : PACKET_ANSWERS;
	}
	return 0;
}

#endif
