/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What was decided: counters of every packet, events of those that somebody will ask about. */
#ifndef IDMESH_REPORT_H
#define IDMESH_REPORT_H

#include "network.h"
#include "track.h"

static __always_inline void report_count(const struct __sk_buff *skb, uint8_t reason, uint8_t direction)
{
	uint32_t index = reason * 2u + (direction & 1);
	struct idm_counter *counter = bpf_map_lookup_elem(&counters, &index);

	// The table holds every reason; the verifier wants to see it asked.
	if (!counter)
		return;
	counter->packets++;
	counter->bytes += skb->len;
}

static __always_inline void report_lost(void)
{
	uint32_t first = 0;
	uint64_t *lost = bpf_map_lookup_elem(&losses, &first);

	if (lost)
		(*lost)++;
}

// As the connection was opened; a packet without one as it was sent.
static __always_inline void report_ends(const struct flow *flow, struct idm_event *event)
{
	const struct packet *packet = &flow->packet;
	bool turned = flow->judged && flow->reversed;

	event->source = turned ? packet->destination : packet->source;
	event->destination = turned ? packet->source : packet->destination;
	event->source_port = turned ? packet->destination_port : packet->source_port;
	event->destination_port = turned ? packet->source_port : packet->destination_port;
	// ICMP has types where others have ports, and policies name them there.
	if (network_is_echo(packet) && !turned)
		event->destination_port = packet->type;
	event->source_identity = flow->connection.source_identity;
	event->destination_identity = flow->connection.destination_identity;
	event->source_endpoint = flow->judged ? flow->connection.source_endpoint : IDM_NO_INDEX;
	event->destination_endpoint = flow->judged ? flow->connection.destination_endpoint : IDM_NO_INDEX;
	event->egress_entry = flow->judged ? flow->connection.egress_entry : IDM_NO_INDEX;
	event->ingress_entry = flow->judged ? flow->connection.ingress_entry : IDM_NO_INDEX;
}

PACKET_GLOBAL int report_event(struct __sk_buff *skb, const struct flow *flow)
{
	struct idm_event *event;

	if (!flow)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		report_lost();
		return 0;
	}
	report_ends(flow, event);
	event->time_ns = bpf_ktime_get_boot_ns();
	event->revision = flow->live.revision;
	event->ifindex = skb->ifindex;
	event->protocol = flow->packet.protocol;
	event->verdict = flow->verdict;
	event->drop_reason = flow->drop_reason;
	event->direction = flow->direction;
	event->type = flow->judged ? IDM_EVENT_VERDICT : IDM_EVENT_DROP;
	event->tcp_flags = flow->packet.tcp_flags;
	event->l7 = flow->connection.l7;
	event->match_type = flow->match_type;
	event->size = skb->len;
	event->hook = flow->hook;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline bool report_wants_allowed(void)
{
	const struct idm_config *row = lookup_config();

	return row && row->flags & IDM_CONFIG_EVENTS_ALLOWED;
}

/* The program's answer, counted and told. */
static __always_inline int report_leave(struct __sk_buff *skb, struct flow *flow, int reason)
{
	report_count(skb, reason, flow->direction);
	if (reason) {
		flow->verdict = IDM_DROPPED;
		flow->drop_reason = reason;
		report_event(skb, flow);
		return STEER_DROP;
	}
	// Known flows tell nothing; what audit mode let pass is told always, for it would have been denied.
	if (flow->judged && (flow->verdict == IDM_AUDIT || report_wants_allowed()))
		report_event(skb, flow);
	return flow->action;
}

#endif
