/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a packet says of itself, read by copies that check every bound: headers need not be linear. Nothing here asks a
 * table. What two readers might understand differently (source routes, headers behind a fragment header, IPv4 addresses
 * in IPv6) is refused, so that what is judged is what the receiver gets.
 */
#ifndef IDMESH_PACKET_H
#define IDMESH_PACKET_H

#include "maps.h"
#include <bpf/bpf_endian.h>
#include "idmesh/engine.h"

// Verified once by itself, not at every call: what loops over packets or tables. Pointers may be NULL to the verifier.
#define PACKET_GLOBAL __attribute__((noinline))

#define PACKET_IP4 4
#define PACKET_IP6 6
#define PACKET_ARP 1

#define PACKET_LATER 1u     // a fragment but the first: without ports
#define PACKET_FIRST 2u     // the first of several fragments
#define PACKET_OPENS 4u     // only who opens a connection sends it: SYN, echo request, INIT
#define PACKET_ANSWERS 8u   // only who is asked sends it: SYN and ACK, echo reply
#define PACKET_ERROR 16u    // an ICMP error: about another packet
#define PACKET_UNTRACKED 32u // ICMP that belongs to no connection

#define IPPROTO_ICMPV6 58 /* no constant of the kernel's types */

#define TCP_FIN 1u
#define TCP_SYN 2u
#define TCP_RST 4u
#define TCP_ACK 16u

#define ICMP_DESTINATION_UNREACHABLE 3
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMP_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMP6_LAST_ERROR 4 /* 1 unreachable, 2 too big, 3 time, 4 parameter */
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY 129

#define PACKET_ETHERNET 14u
#define PACKET_MAC 6
#define PACKET_TYPE_IP4 0x0800
#define PACKET_TYPE_ARP 0x0806
#define PACKET_TYPE_IP6 0x86dd

// Ports in host order; of ICMP echo both are the identifier. Offsets count from the frame's first byte.
struct packet {
	struct idm_address source __attribute__((aligned(8)));
	struct idm_address destination __attribute__((aligned(8)));
	uint32_t transport; // offset of the header above IP
	uint32_t end;       // offset behind the last byte that IP names
	uint32_t fragment_be;
	uint16_t source_port;
	uint16_t destination_port;
	uint8_t protocol;
	uint8_t type; // ICMP
	uint8_t tcp_flags;
	uint8_t hop_limit;
	uint8_t kind;
	uint8_t flags;
	uint8_t mac[PACKET_MAC]; // of the sender
};

static __always_inline uint32_t packet_word(const struct idm_address *address, int index)
{
	uint32_t word;

	__builtin_memcpy(&word, address->bytes + index * 4, sizeof(word));
	return word;
}

static __always_inline bool packet_same_address(const struct idm_address *one, const struct idm_address *other)
{
	return packet_word(one, 0) == packet_word(other, 0) && packet_word(one, 1) == packet_word(other, 1) &&
	       packet_word(one, 2) == packet_word(other, 2) && packet_word(one, 3) == packet_word(other, 3);
}

static __always_inline void packet_set_ip4(struct idm_address *address, uint32_t address_be)
{
	uint32_t words[4] = {0, 0, bpf_htonl(0xffff), address_be};

	__builtin_memcpy(address, words, sizeof(words));
}

static __always_inline bool packet_is_mapped(const struct idm_address *address)
{
	return !packet_word(address, 0) && !packet_word(address, 1) && packet_word(address, 2) == bpf_htonl(0xffff);
}

static __always_inline bool packet_is_link_local(const struct idm_address *address)
{
	return address->bytes[0] == 0xfe && (address->bytes[1] & 0xc0) == 0x80;
}

static __always_inline bool packet_is_loopback(const struct idm_address *address)
{
	if (packet_is_mapped(address))
		return address->bytes[12] == 127;
	return !packet_word(address, 0) && !packet_word(address, 1) && !packet_word(address, 2) &&
	       packet_word(address, 3) == bpf_htonl(1);
}

// Addresses that no single machine has on the wire: this network, loopback, groups, broadcast, none.
static __always_inline bool packet_is_nobody(const struct idm_address *address, uint8_t kind)
{
	uint8_t first = address->bytes[12];

	if (kind == PACKET_IP4)
		return first == 0 || first == 127 || first >= 224;
	if (address->bytes[0] == 0xff)
		return true;
	return !packet_word(address, 0) && !packet_word(address, 1) && !packet_word(address, 2) &&
	       (!packet_word(address, 3) || packet_word(address, 3) == bpf_htonl(1));
}

// ---- Ethernet ----

static __always_inline int packet_read_ethernet(struct __sk_buff *skb, struct packet *packet)
{
	struct ethhdr frame;

	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)))
		return IDM_PACKET_INVALID;
	// A tag may stand in the frame or already beside it; either way the workload chose a network of its own.
	if (skb->vlan_present || skb->protocol != frame.h_proto)
		return IDM_PACKET_UNKNOWN_L3;
	__builtin_memcpy(packet->mac, frame.h_source, PACKET_MAC);
	if (frame.h_proto == bpf_htons(PACKET_TYPE_IP4))
		packet->kind = PACKET_IP4;
	else if (frame.h_proto == bpf_htons(PACKET_TYPE_IP6))
		packet->kind = PACKET_IP6;
	else if (frame.h_proto == bpf_htons(PACKET_TYPE_ARP))
		packet->kind = PACKET_ARP;
	else
		return IDM_PACKET_UNKNOWN_L3;
	return 0;
}

// ---- what stands above IP ----

#define PACKET_HEAD 20 /* the longest: TCP */

// Bytes of the header that must be there. 0: not a protocol that we judge.
static __always_inline uint32_t packet_head_size(const struct packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
		return 20;
	case IPPROTO_UDP:
		return 8;
	case IPPROTO_SCTP:
		return 12;
	case IPPROTO_ICMP:
		return packet->kind == PACKET_IP4 ? 8 : 0;
	case IPPROTO_ICMPV6:
		return packet->kind == PACKET_IP6 ? 8 : 0;
	default:
		return 0;
	}
}

static __always_inline void packet_read_icmp(struct packet *packet, const uint8_t *head)
{
	bool six = packet->kind == PACKET_IP6;
	uint8_t type = head[0];

	packet->type = type;
	if (type == (six ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
		packet->flags |= PACKET_OPENS;
	else if (type == (six ? ICMP6_ECHO_REPLY : ICMP_ECHO_REPLY))
		packet->flags |= PACKET_ANSWERS;
	else if (six ? type >= 1 && type <= ICMP6_LAST_ERROR
		     : type == ICMP_DESTINATION_UNREACHABLE || type == ICMP_EXCEEDED || type == ICMP_PARAMETER)
		packet->flags |= PACKET_ERROR;
	else
		packet->flags |= PACKET_UNTRACKED;
	if (packet->flags & (PACKET_OPENS | PACKET_ANSWERS)) {
		packet->source_port = head[4] << 8 | head[5];
		packet->destination_port = packet->source_port;
	}
}

static __always_inline void packet_read_ports(struct packet *packet, const uint8_t *head)
{
	packet->source_port = head[0] << 8 | head[1];
	packet->destination_port = head[2] << 8 | head[3];
}

static __always_inline void packet_set_tcp_flags(struct packet *packet, uint8_t flags)
{
	packet->tcp_flags = flags;
	if (flags & TCP_SYN)
		packet->flags |= flags & TCP_ACK ? PACKET_ANSWERS : PACKET_OPENS;
}

static __always_inline int packet_read_tcp(struct __sk_buff *skb, struct packet *packet)
{
	uint8_t head[20];

	if (bpf_skb_load_bytes(skb, packet->transport, head, sizeof(head)))
		return IDM_PACKET_INVALID;
	packet_read_ports(packet, head);
	if ((head[12] >> 4) < 5)
		return IDM_PACKET_INVALID;
	packet_set_tcp_flags(packet, head[13]);
	return 0;
}

static __always_inline void packet_read_chunk(struct __sk_buff *skb, struct packet *packet)
{
	uint8_t chunk;

	// INIT is 1, INIT ACK 2. No chunk at all: the receiver discards it.
	if (packet->transport + 13 > packet->end || bpf_skb_load_bytes(skb, packet->transport + 12, &chunk, 1))
		return;
	if (chunk == 1)
		packet->flags |= PACKET_OPENS;
	if (chunk == 2)
		packet->flags |= PACKET_ANSWERS;
}

static __always_inline int packet_read_transport(struct __sk_buff *skb, struct packet *packet)
{
	uint32_t size = packet_head_size(packet);
	uint8_t head[8];

	if (!size)
		return IDM_PACKET_UNKNOWN_L4;
	if (packet->flags & PACKET_LATER)
		return 0;
	if (packet->transport + size > packet->end)
		return IDM_PACKET_INVALID;
	if (packet->protocol == IPPROTO_TCP)
		return packet_read_tcp(skb, packet);
	if (bpf_skb_load_bytes(skb, packet->transport, head, sizeof(head)))
		return IDM_PACKET_INVALID;
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6) {
		packet_read_icmp(packet, head);
		return 0;
	}
	packet_read_ports(packet, head);
	if (packet->protocol == IPPROTO_SCTP)
		packet_read_chunk(skb, packet);
	return 0;
}

#endif
