/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The answer to a workload whose TCP segment needs Envoy where there is none, or names a Service that nobody translated:
 * a reset, as from a closed port. The host itself cannot send it: the address that it would come from is not the host's.
 */
#ifndef IDMESH_REFUSE_H
#define IDMESH_REFUSE_H

#include "track.h"
#include <bpf/bpf_endian.h>

#define REFUSE_DROP 2 /* TC_ACT_SHOT */
#define REFUSE_HOPS 64
#define REFUSE_TCP_WORDS 5

struct refuse_ip4 {
	struct ethhdr frame;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed, aligned(2)));

struct refuse_ip6 {
	struct ethhdr frame;
	struct ipv6hdr ip;
	struct tcphdr tcp;
} __attribute__((packed, aligned(2)));

/* Room to work in: the caller's, whose stack is full of what it no longer needs. */
struct refuse_room {
	union {
		struct refuse_ip4 ip4;
		struct refuse_ip6 ip6;
	};
	struct tcphdr tcp;
	uint32_t addresses[8];
	uint32_t words[REFUSE_TCP_WORDS + 2];
};

/* True if a transparent listener of Envoy stands for the IP version. */
static __always_inline bool refuse_has_listener(bool ip6)
{
	uint32_t slot = ip6;
	struct bpf_sock *listener = bpf_map_lookup_elem(&listeners, &slot);

	if (!listener)
		return false;
	bpf_sk_release(listener);
	return true;
}

static __always_inline uint16_t refuse_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

static __always_inline void refuse_turn_frame(struct ethhdr *frame)
{
	uint8_t address[6];

	__builtin_memcpy(address, frame->h_source, sizeof(address));
	__builtin_memcpy(frame->h_source, frame->h_dest, sizeof(address));
	__builtin_memcpy(frame->h_dest, address, sizeof(address));
}

// RFC 9293, 3.10.7.1: a reset in the place of the acknowledgement, or one that acknowledges. size: the payload's.
static __always_inline void refuse_turn_tcp(struct tcphdr *tcp, uint32_t size)
{
	struct tcphdr was = *tcp;
	struct tcphdr now = {.source = was.dest, .dest = was.source, .doff = REFUSE_TCP_WORDS, .rst = 1};

	if (was.ack) {
		now.seq = was.ack_seq;
	} else {
		now.ack = 1;
		now.ack_seq = bpf_htonl(bpf_ntohl(was.seq) + size + was.syn + was.fin);
	}
	*tcp = now;
}

static __always_inline void refuse_sum_tcp(struct refuse_room *room, uint32_t addresses_size)
{
	int64_t sum = bpf_csum_diff(NULL, 0, room->addresses, addresses_size, 0);

	__builtin_memcpy(room->words, &room->tcp, sizeof(room->tcp));
	room->words[REFUSE_TCP_WORDS] = bpf_htonl(IPPROTO_TCP);
	room->words[REFUSE_TCP_WORDS + 1] = bpf_htonl(sizeof(room->tcp));
	sum = bpf_csum_diff(NULL, 0, room->words, sizeof(room->words), sum);
	room->tcp.check = refuse_fold(sum);
}

_Static_assert(sizeof(struct refuse_room) <= sizeof(struct flow), "a flow's memory is the room");

static __always_inline int refuse_send(struct __sk_buff *skb, const void *packet, uint32_t size)
{
	if (bpf_skb_change_tail(skb, size, 0) || bpf_skb_store_bytes(skb, 0, packet, size, 0))
		return REFUSE_DROP;
	return bpf_redirect_peer(skb->ifindex, 0);
}

static __always_inline int refuse_send4(struct __sk_buff *skb, struct refuse_room *room)
{
	struct refuse_ip4 *packet = &room->ip4;

	// What has options is rare, and is dropped without a word.
	if (bpf_skb_load_bytes(skb, 0, packet, sizeof(*packet)) || packet->ip.ihl != 5 ||
	    packet->ip.protocol != IPPROTO_TCP || packet->tcp.rst)
		return REFUSE_DROP;
	room->tcp = packet->tcp;
	room->addresses[0] = packet->ip.daddr;
	room->addresses[1] = packet->ip.saddr;
	refuse_turn_frame(&packet->frame);
	refuse_turn_tcp(&room->tcp, bpf_ntohs(packet->ip.tot_len) - sizeof(packet->ip) - room->tcp.doff * 4);
	refuse_sum_tcp(room, 2 * sizeof(*room->addresses));
	packet->tcp = room->tcp;
	packet->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tot_len = bpf_htons(sizeof(packet->ip) + sizeof(packet->tcp)),
		.ttl = REFUSE_HOPS,
		.protocol = IPPROTO_TCP,
		.saddr = room->addresses[0],
		.daddr = room->addresses[1],
	};
	__builtin_memcpy(room->words, &packet->ip, sizeof(packet->ip));
	packet->ip.check = refuse_fold(bpf_csum_diff(NULL, 0, room->words, sizeof(packet->ip), 0));
	return refuse_send(skb, packet, sizeof(*packet));
}

static __always_inline int refuse_send6(struct __sk_buff *skb, struct refuse_room *room)
{
	struct refuse_ip6 *packet = &room->ip6;

	if (bpf_skb_load_bytes(skb, 0, packet, sizeof(*packet)) || packet->ip.nexthdr != IPPROTO_TCP || packet->tcp.rst)
		return REFUSE_DROP;
	room->tcp = packet->tcp;
	__builtin_memcpy(room->addresses, &packet->ip.daddr, 16);
	__builtin_memcpy(room->addresses + 4, &packet->ip.saddr, 16);
	refuse_turn_frame(&packet->frame);
	refuse_turn_tcp(&room->tcp, bpf_ntohs(packet->ip.payload_len) - room->tcp.doff * 4);
	refuse_sum_tcp(room, sizeof(room->addresses));
	packet->tcp = room->tcp;
	__builtin_memcpy(&packet->ip.saddr, room->addresses, 16);
	__builtin_memcpy(&packet->ip.daddr, room->addresses + 4, 16);
	packet->ip.hop_limit = REFUSE_HOPS;
	packet->ip.payload_len = bpf_htons(sizeof(packet->tcp));
	return refuse_send(skb, packet, sizeof(*packet));
}

/* At tc ingress of the workload's veth: turn its segment into the answer. Returns the program's answer. */
__noinline int refuse(struct __sk_buff *skb, struct refuse_room *room)
{
	if (!room)
		return REFUSE_DROP;
	if (skb->protocol == bpf_htons(0x0800))
		return refuse_send4(skb, room);
	return skb->protocol == bpf_htons(0x86dd) ? refuse_send6(skb, room) : REFUSE_DROP;
}

#endif
