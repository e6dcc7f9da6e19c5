/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Envoy's own connections whose row was forgotten, or that were idle for longer than rows live: the grant of their token
 * still says who the client is, and they go on if the revision in force allows them as new ones.
 */
#ifndef IDMESH_RESTORE_H
#define IDMESH_RESTORE_H

#include "decide.h"

// The socket on this host that the segment is for, or one that listens; NULL: none. To be released.
static __always_inline struct bpf_sock *restore_socket(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	uint32_t size = sizeof(tuple.ipv4);

	if (packet->kind == PACKET_IP4) {
		tuple.ipv4.saddr = packet_word(&packet->source, 3);
		tuple.ipv4.daddr = packet_word(&packet->destination, 3);
		tuple.ipv4.sport = bpf_htons(packet->source_port);
		tuple.ipv4.dport = bpf_htons(packet->destination_port);
	} else {
		size = sizeof(tuple.ipv6);
		__builtin_memcpy(tuple.ipv6.saddr, &packet->source, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &packet->destination, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = bpf_htons(packet->source_port);
		tuple.ipv6.dport = bpf_htons(packet->destination_port);
	}
	return bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/* True if a socket on this host has the connection that the segment is of; one that only listens has none. */
static __always_inline bool restore_is_taken(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_sock *socket = restore_socket(skb, packet);
	bool taken;

	if (!socket)
		return false;
	taken = socket->state != BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return taken;
}

// The mark of the socket that has the segment's connection; 0: there is none.
static __always_inline uint32_t restore_mark(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_sock *socket = restore_socket(skb, packet);
	uint32_t mark = 0;

	if (!socket)
		return 0;
	if (socket->state != BPF_TCP_LISTEN)
		mark = socket->mark;
	bpf_sk_release(socket);
	return mark;
}

/*
 * Judge it, and fill flow->connection. flow->reversed says which way the packet goes. A drop reason, or 0. Inlined: the
 * stack has room for one frame more, not for two.
 */
static __always_inline int restore_judge(struct flow *flow, uint32_t token)
{
	track_key(flow, IDM_LEG_PROXY);
	return decide_granted(flow, token);
}

/* A segment that no row knows, perhaps a server's to Envoy: the token for which Envoy has that connection, or 0. */
static __noinline uint32_t restore_token(struct __sk_buff *skb, const struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	uint32_t mark;

	if (packet->protocol != IPPROTO_TCP || packet->flags & PACKET_OPENS || flow->error)
		return 0;
	mark = restore_mark(skb, packet);
	return (mark & IDM_MARK_MASK) == IDM_MARK_FROM_PROXY ? IDM_MARK_TOKEN(mark) : 0;
}

#endif
