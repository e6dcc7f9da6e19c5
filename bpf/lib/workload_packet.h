/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet of a workload without a namespace, where it leaves or reaches its socket: which of the two ends the workload
 * is in the packet's connection, and what follows. Rows are renewed by packets of who opened; a reply whose row is of
 * an older revision is asked about, and changes nothing.
 */
#ifndef IDMESH_WORKLOAD_PACKET_H
#define IDMESH_WORKLOAD_PACKET_H

#include "cgroup.h"
#include "workload.h"

/* The packet's headers, or the reason to drop it. These hooks see whole datagrams and no Ethernet. */
static __noinline int workload_read(struct __sk_buff *skb, struct packet *packet)
{
	int reason;

	if (skb->protocol == bpf_htons(PACKET_TYPE_IP4)) {
		packet->kind = PACKET_IP4;
		reason = network_read_ip4(skb, 0, packet, false);
	} else if (skb->protocol == bpf_htons(PACKET_TYPE_IP6)) {
		packet->kind = PACKET_IP6;
		reason = network_read_ip6(skb, 0, packet, false);
		if (!reason && network_is_extension(packet->protocol))
			reason = network_follow(skb, packet);
	} else {
		return IDM_PACKET_UNKNOWN_L3;
	}
	if (!reason)
		reason = packet_read_transport(skb, packet);
	// Errors come from the kernel, not from a workload's sockets; pieces are put together before they get here.
	if (!reason && packet->flags & (PACKET_LATER | PACKET_FIRST | PACKET_ERROR))
		reason = IDM_PACKET_INVALID;
	return reason;
}

/*
 * Whether the workload may send from there: its own address, the host's where it has none, loopback to loopback. To an
 * address of this host the kernel sends from that same address; over lo the row alone says who it is.
 */
static __always_inline bool workload_may_send(const struct workload *own, const struct packet *packet, bool over_lo)
{
	const struct idm_address *source = &packet->source;

	if (packet_is_loopback(source))
		return packet_is_loopback(&packet->destination);
	if (over_lo && packet_same_address(source, &packet->destination))
		return true;
	if (own->row->flags & IDM_WORKLOAD_SHARED)
		return bpf_map_lookup_elem(&locals, source) ||
		       (packet->kind == PACKET_IP6 && packet_is_link_local(source));
	return packet_same_address(source, &own->row->address4) || packet_same_address(source, &own->row->address6);
}

/* One direction alone: the workload's own. */
static __noinline int workload_decide_own(struct flow *flow, const struct workload *own, uint32_t direction)
{
	const struct end *peer = &own->peer;

	if (direction == IDM_EGRESS)
		decide_describe(flow, &own->end, peer, false);
	else
		decide_describe(flow, peer, &own->end, false);
	flow->verdict = 0;
	flow->drop_reason = 0;
	decide_direction(flow, &own->end, peer, direction);
	return 0;
}

static __always_inline bool workload_is_live(const struct flow *flow, const struct idm_connection *row)
{
	return row->generation == flow->live.generation;
}

/* A drop reason, or 0: what a verdict of the own direction alone means for a packet of a standing connection. */
static __always_inline int workload_answer(const struct flow *flow, const struct idm_connection *row)
{
	if (flow->verdict == IDM_DROPPED)
		return flow->drop_reason ? flow->drop_reason : IDM_DROP_POLICY_DENIED;
	if (row && row->verdict == IDM_DROPPED)
		return IDM_DROP_POLICY_DENIED;
	// Only a connection that Envoy holds may go on where Envoy is to judge.
	if (flow->verdict == IDM_REDIRECTED && (!row || row->verdict != IDM_REDIRECTED))
		return IDM_DROP_PROXY_UNSUPPORTED;
	return 0;
}

/* What the row of this revision says. Steered connections are on lo alone: there is Envoy. */
static __always_inline int workload_act(struct flow *flow, struct idm_connection *row, bool over_lo)
{
	if (row->verdict == IDM_DROPPED)
		return IDM_DROP_POLICY_DENIED;
	if (row->verdict == IDM_REDIRECTED && !over_lo)
		return IDM_DROP_PROXY_UNSUPPORTED;
	track_touch(flow, row);
	return 0;
}

/*
 * A packet of a flow that the workload opened, on its way out. steered: it is on lo and its socket was marked where it
 * connected. What is only on lo may be for a process of this host, past Envoy.
 */
static __always_inline int workload_send(struct flow *flow, struct workload *own, struct idm_connection *row,
					 bool steered)
{
	int reason;

	if (row && workload_is_live(flow, row) && row->flags & IDM_CONNECTION_EGRESS)
		return workload_act(flow, row, steered);
	reason = workload_meet(flow, own, false, false, false);
	if (reason)
		return reason;
	workload_decide_opened(flow, own);
	flow->judged = 1;
	reason = decide_settle(flow, row);
	if (reason)
		return reason;
	if (flow->connection.verdict == IDM_REDIRECTED) {
		// Steering begins where the socket connects; what got here on another way has to begin again.
		if (!steered || !workload_grant(flow, own))
			return IDM_DROP_PROXY_UNSUPPORTED;
	}
	return decide_write(flow, row);
}

/* A reply to the workload, in a flow that it opened. Who opened renews the row: here it is only asked again. */
static __always_inline int workload_get_reply(struct flow *flow, struct workload *own,
					      struct idm_connection *row, bool over_lo)
{
	if (workload_is_live(flow, row) && row->flags & IDM_CONNECTION_EGRESS)
		return workload_act(flow, row, over_lo);
	workload_meet(flow, own, true, false, over_lo);
	workload_decide_own(flow, own, IDM_EGRESS);
	return workload_answer(flow, row);
}

static __always_inline bool workload_is_judged(const struct flow *flow, const struct workload *own,
					       const struct idm_connection *row)
{
	return workload_is_live(flow, row) && row->flags & IDM_CONNECTION_INGRESS &&
	       row->destination_identity == own->end.identity;
}

/* Who opened a flow to the workload: as a row of this revision says, else by its address. */
static __always_inline int workload_opener(struct flow *flow, struct workload *own, const struct idm_connection *row,
					   bool incoming, bool over_lo)
{
	if (row && workload_is_live(flow, row)) {
		lookup_nobody(&own->peer, row->source_identity);
		own->peer.endpoint = row->source_endpoint;
		own->peer.ifindex = row->source_ifindex;
		return 0;
	}
	return workload_meet(flow, own, incoming, incoming, over_lo);
}

/* A reply of the workload, in a flow that somebody opened to it. */
static __always_inline int workload_reply(struct flow *flow, struct workload *own, struct idm_connection *row,
					  bool over_lo)
{
	if (workload_is_judged(flow, own, row))
		return workload_act(flow, row, over_lo);
	workload_opener(flow, own, row, false, over_lo);
	workload_decide_own(flow, own, IDM_INGRESS);
	return workload_answer(flow, row);
}

/* The other end's hook judged its own direction and wrote the row: add what is ours. */
static __always_inline void workload_add(const struct flow *flow, struct idm_connection *row)
{
	const struct idm_connection *now = &flow->connection;

	row->destination_endpoint = now->destination_endpoint;
	row->ingress_entry = now->ingress_entry;
	row->flags |= IDM_CONNECTION_INGRESS;
	*(volatile uint32_t *)&row->destination_identity = now->destination_identity;
}

/* A packet of a flow that somebody opens to the workload. */
static __always_inline int workload_receive(struct flow *flow, struct workload *own,
					    struct idm_connection *row, bool over_lo)
{
	bool known = row && workload_is_live(flow, row);
	int reason;

	if (row && workload_is_judged(flow, own, row))
		return workload_act(flow, row, over_lo);
	reason = workload_opener(flow, own, row, true, over_lo);
	if (reason)
		return reason;
	workload_decide_own(flow, own, IDM_INGRESS);
	flow->judged = 1;
	reason = workload_answer(flow, row);
	if (reason) {
		if (known)
			track_bury(flow, row);
		return reason;
	}
	flow->connection.verdict = flow->verdict;
	if (known) {
		workload_add(flow, row);
		track_touch(flow, row);
		return 0;
	}
	return decide_write(flow, row);
}

#endif
