/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How a workload finds its gateway: ARP, neighbour discovery, group membership. No policy is asked for these, so they
 * get no further than this cable, and a workload speaks for nobody but itself.
 */
#ifndef IDMESH_NEIGHBOUR_H
#define IDMESH_NEIGHBOUR_H

#include "lookup.h"

#define NEIGHBOUR_ON_LINK 255 /* no router has passed it on (RFC 4861, 7.1) */

#define ND_QUERY 130
#define ND_REPORT 131
#define ND_DONE 132
#define ND_ROUTER_SOLICITATION 133
#define ND_ROUTER_ADVERTISEMENT 134
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_REDIRECT 137
#define ND_REPORT_2 143
#define ND_SOURCE_ADDRESS 1 /* option: link-layer address of the sender */
#define ND_TARGET_ADDRESS 2
#define ND_OPTIONS 3 /* as many are looked at; more are refused */

struct arp {
	uint16_t hardware_be;
	uint16_t protocol_be;
	uint8_t hardware_size;
	uint8_t protocol_size;
	uint16_t operation_be;
	uint8_t sender_mac[6];
	uint8_t sender[4];
	uint8_t target_mac[6];
	uint8_t target[4];
} __attribute__((packed));

struct nd_message {
	uint8_t type;
	uint8_t code;
	uint16_t checksum_be;
	uint32_t flags_be;
	struct idm_address target;
};

static __always_inline bool neighbour_same_mac(const uint8_t *one, const uint8_t *other)
{
	uint8_t differ = 0;

	for (int i = 0; i < PACKET_MAC; i++)
		differ |= one[i] ^ other[i];
	return !differ;
}

static __always_inline bool neighbour_is_any_mac(const uint8_t *mac)
{
	uint8_t some = 0;

	for (int i = 0; i < PACKET_MAC; i++)
		some |= mac[i];
	return !some;
}

static __always_inline bool neighbour_owns(const struct __sk_buff *skb, const struct live *live,
					   const struct idm_address *address)
{
	const struct idm_endpoint_row *row = lookup_endpoint(live, address);

	return row && row->ifindex == skb->ifindex;
}

/* ARP from a workload: a question or an answer in its own name. */
PACKET_GLOBAL int neighbour_check_arp(struct __sk_buff *skb, const struct live *live, const struct packet *packet)
{
	struct idm_address sender __attribute__((aligned(8)));
	uint32_t address_be;
	struct arp arp;

	if (!live || !packet)
		return IDM_PACKET_INVALID;
	if (bpf_skb_load_bytes(skb, PACKET_ETHERNET, &arp, sizeof(arp)))
		return IDM_PACKET_INVALID;
	if (arp.hardware_be != bpf_htons(1) || arp.protocol_be != bpf_htons(PACKET_TYPE_IP4) || arp.hardware_size != 6 ||
	    arp.protocol_size != 4)
		return IDM_PACKET_INVALID;
	if (arp.operation_be != bpf_htons(1) && arp.operation_be != bpf_htons(2))
		return IDM_PACKET_INVALID;
	if (!neighbour_same_mac(arp.sender_mac, packet->mac))
		return IDM_PACKET_INVALID_SOURCE_MAC;
	__builtin_memcpy(&address_be, arp.sender, sizeof(address_be));
	// Nobody's address: a probe before the workload takes its own (RFC 5227). It teaches nobody anything.
	if (!address_be)
		return arp.operation_be == bpf_htons(1) ? 0 : IDM_PACKET_INVALID_SOURCE_IP;
	packet_set_ip4(&sender, address_be);
	return neighbour_owns(skb, live, &sender) ? 0 : IDM_PACKET_INVALID_SOURCE_IP;
}

// The link-local address that belongs to a MAC address (RFC 4291, appendix A): the only one that we can check.
static __always_inline bool neighbour_is_link_local_of(const struct idm_address *address, const uint8_t *mac)
{
	const uint8_t *bytes = address->bytes;

	if (packet_word(address, 0) != bpf_htonl(0xfe800000) || packet_word(address, 1))
		return false;
	return bytes[8] == (mac[0] ^ 2) && bytes[9] == mac[1] && bytes[10] == mac[2] && bytes[11] == 0xff &&
	       bytes[12] == 0xfe && bytes[13] == mac[3] && bytes[14] == mac[4] && bytes[15] == mac[5];
}

static __always_inline bool neighbour_is_unset(const struct idm_address *address)
{
	return !packet_word(address, 0) && !packet_word(address, 1) && !packet_word(address, 2) &&
	       !packet_word(address, 3);
}

// Groups of this link, and whoever is on it: the host does not route these.
static __always_inline bool neighbour_stays_here(const struct idm_address *address)
{
	if (packet_is_link_local(address) || (address->bytes[0] == 0xff && address->bytes[1] == 0x02))
		return true;
	return bpf_map_lookup_elem(&locals, address);
}

// Link-layer addresses in options must be the one that the frame came from.
static __always_inline int neighbour_check_options(struct __sk_buff *skb, const struct packet *packet, uint32_t at)
{
	for (int i = 0; i < ND_OPTIONS; i++) {
		uint8_t option[8];

		if (at == packet->end)
			return 0;
		if (at + sizeof(option) > packet->end || bpf_skb_load_bytes(skb, at, option, sizeof(option)))
			return IDM_PACKET_INVALID;
		if (!option[1])
			return IDM_PACKET_INVALID;
		if ((option[0] == ND_SOURCE_ADDRESS || option[0] == ND_TARGET_ADDRESS) &&
		    (option[1] != 1 || !neighbour_same_mac(option + 2, packet->mac)))
			return IDM_PACKET_INVALID_SOURCE_MAC;
		at += option[1] * 8u;
	}
	return at == packet->end ? 0 : IDM_PACKET_INVALID;
}

static __always_inline bool neighbour_is_discovery(const struct packet *packet)
{
	return packet->kind == PACKET_IP6 && packet->protocol == IPPROTO_ICMPV6 &&
	       packet->type >= ND_ROUTER_SOLICITATION && packet->type <= ND_REDIRECT;
}

static __always_inline bool neighbour_is_membership(const struct packet *packet)
{
	return packet->kind == PACKET_IP6 && packet->protocol == IPPROTO_ICMPV6 &&
	       ((packet->type >= ND_QUERY && packet->type <= ND_DONE) || packet->type == ND_REPORT_2);
}

// Reports of groups: read by this host at most, and only from an address of this link.
static __always_inline int neighbour_check_membership(const struct packet *packet)
{
	if (packet->type == ND_QUERY || packet->hop_limit != 1)
		return IDM_PACKET_INVALID;
	if (packet->destination.bytes[0] != 0xff || packet->destination.bytes[1] != 0x02)
		return IDM_PACKET_INVALID;
	if (!neighbour_is_unset(&packet->source) && !neighbour_is_link_local_of(&packet->source, packet->mac))
		return IDM_PACKET_INVALID_SOURCE_IP;
	return 0;
}

static __always_inline int neighbour_check_message(struct __sk_buff *skb, const struct live *live,
						   const struct packet *packet)
{
	struct nd_message message;

	// A router solicitation has no target: options follow at once.
	if (packet->type == ND_ROUTER_SOLICITATION)
		return neighbour_check_options(skb, packet, packet->transport + 8);
	if (packet->transport + sizeof(message) > packet->end ||
	    bpf_skb_load_bytes(skb, packet->transport, &message, sizeof(message)))
		return IDM_PACKET_INVALID;
	if (message.code)
		return IDM_PACKET_INVALID;
	if (packet->type == ND_ADVERTISEMENT && !neighbour_is_link_local_of(&message.target, packet->mac) &&
	    (packet_is_mapped(&message.target) || !neighbour_owns(skb, live, &message.target)))
		return IDM_PACKET_INVALID_SOURCE_IP;
	return neighbour_check_options(skb, packet, packet->transport + sizeof(message));
}

/* Neighbour discovery and group reports from a workload. Routers are not among them. */
PACKET_GLOBAL int neighbour_check_discovery(struct __sk_buff *skb, const struct live *live,
						const struct packet *packet)
{
	bool nobody;

	if (!live || !packet)
		return IDM_PACKET_INVALID;
	nobody = neighbour_is_unset(&packet->source);
	if (neighbour_is_membership(packet))
		return neighbour_check_membership(packet);
	if (packet->type == ND_ROUTER_ADVERTISEMENT || packet->type == ND_REDIRECT)
		return IDM_PACKET_INVALID;
	if (packet->hop_limit != NEIGHBOUR_ON_LINK || !neighbour_stays_here(&packet->destination))
		return IDM_PACKET_INVALID;
	if (nobody && packet->type == ND_ADVERTISEMENT)
		return IDM_PACKET_INVALID_SOURCE_IP;
	if (!nobody && !neighbour_is_link_local_of(&packet->source, packet->mac) &&
	    !neighbour_owns(skb, live, &packet->source))
		return IDM_PACKET_INVALID_SOURCE_IP;
	return neighbour_check_message(skb, live, packet);
}

#endif
