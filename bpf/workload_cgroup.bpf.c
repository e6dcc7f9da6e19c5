// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Workloads without a namespace of their own (a systemd service, a VM's process), attached by their cgroup.
 *
 * Attached to that cgroup, the programs hold for everything below it: a process that starts there is covered before
 * its first packet, and until its cgroup has a row in `workloads`, nothing passes.
 *
 *   egress, ingress  judge every packet of the cgroup's sockets
 *   create           refuses raw sockets, whose packets say of themselves what they like
 *
 * workload_sockets.bpf.c steers and translates where sockets name their peer; it allows nothing.
 *
 * A socket belongs to the cgroup that made it, wherever it is used.
 */
#include "maps.h"
#include "workload_packet.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PASS 1
#define DROP 0
#define KIND_STREAM 1     // SOCK_STREAM
#define KIND_DATAGRAM 2   // SOCK_DGRAM

static __always_inline int leave(struct __sk_buff *skb, struct flow *flow, int reason)
{
	report_leave(skb, flow, reason);
	return reason ? DROP : PASS;
}

/* The packet's row, unless it is of another workload that had the same address and port. */
static __always_inline struct idm_connection *find(struct flow *flow, const struct workload *own, bool outgoing)
{
	struct idm_connection *row;

	track_key(flow, IDM_LEG_CLIENT);
	row = track_find(flow);
	if (row && outgoing != flow->reversed && row->source_identity != own->end.identity) {
		flow->reversed = 0;
		return NULL;
	}
	return row;
}

/* Where both directions begin: whose socket it is, what is in force, what the packet says. */
static __always_inline int prepare(struct __sk_buff *skb, struct flow *flow, struct workload *own)
{
	const struct idm_workload *row = workload_of(skb);

	// No row: attached, but nobody has said yet who it is.
	if (!row || !lookup_live(&flow->live) || !workload_load(&flow->live, row, own))
		return IDM_DROP_NOT_READY;
	return workload_read(skb, &flow->packet);
}

static __always_inline int judge_outgoing(struct __sk_buff *skb, struct flow *flow)
{
	bool over_lo = skb->ifindex == WORKLOAD_LO;
	uint32_t mark = skb->mark & IDM_MARK_MASK;
	struct workload own;
	struct idm_connection *row;
	int reason = prepare(skb, flow, &own);

	if (reason)
		return reason;
	if (!workload_may_send(&own, &flow->packet, over_lo))
		return IDM_PACKET_INVALID_SOURCE_IP;
	row = find(flow, &own, true);
	if (row && flow->reversed)
		reason = workload_reply(flow, &own, row, over_lo);
	else
		reason = workload_send(flow, &own, row, over_lo && mark == IDM_MARK_WORKLOAD);
	if (reason)
		return reason;
	// A mark of ours on what is not steered: it would go where no policy looked.
	row = bpf_map_lookup_elem(&connections, &flow->key);
	if (mark && (mark != IDM_MARK_WORKLOAD || !row || row->verdict != IDM_REDIRECTED))
		return IDM_PACKET_INVALID;
	return 0;
}

// It is routed: the mark has done its work. At a workload's veth it says that this is not the host speaking.
static __always_inline void set_mark(struct __sk_buff *skb)
{
	uint32_t ifindex = skb->ifindex, mark = skb->mark & ~IDM_MARK_MASK;

	skb->mark = bpf_map_lookup_elem(&attachments, &ifindex) ? mark | IDM_MARK_WORKLOAD : mark;
}

SEC("cgroup_skb/egress")
int workload_egress(struct __sk_buff *skb)
{
	struct flow flow = {};
	int reason;

	workload_begin(&flow, IDM_EGRESS);
	reason = judge_outgoing(skb, &flow);
	if (!reason)
		set_mark(skb);
	return leave(skb, &flow, reason);
}

static __always_inline int judge_incoming(struct __sk_buff *skb, struct flow *flow)
{
	bool over_lo = skb->ifindex == WORKLOAD_LO;
	struct workload own;
	struct idm_connection *row;
	int reason = prepare(skb, flow, &own);

	if (reason)
		return reason;
	// Envoy's own connection to the workload: its replies would not find back, so it is not begun.
	if ((skb->mark & IDM_MARK_MASK) == IDM_MARK_FROM_PROXY)
		return IDM_DROP_PROXY_UNSUPPORTED;
	row = find(flow, &own, false);
	if (row && flow->reversed)
		return workload_get_reply(flow, &own, row, over_lo);
	if (!workload_may_hear(&flow->live, &own, &flow->packet.destination))
		return IDM_DROP_NO_POLICY;
	return workload_receive(flow, &own, row, over_lo);
}

SEC("cgroup_skb/ingress")
int workload_ingress(struct __sk_buff *skb)
{
	struct flow flow = {};

	workload_begin(&flow, IDM_INGRESS);
	return leave(skb, &flow, judge_incoming(skb, &flow));
}

SEC("cgroup/sock_create")
int workload_create(struct bpf_sock *socket)
{
	return socket->type == KIND_STREAM || socket->type == KIND_DATAGRAM ? PASS : DROP;
}
