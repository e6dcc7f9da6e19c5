/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets that a workload sends: tc ingress on the host side of its veth.
 *
 * Who sends is the interface: address and MAC must be those of the endpoint attached to it. A known connection that the
 * live revision judged costs one lookup; everything else is judged, egress of the sender and ingress of a receiver on
 * this host at once.
 */
#include "maps.h"
#include "decide.h"
#include "error.h"
#include "neighbour.h"
#include "refuse.h"
#include "report.h"
#include "restore.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Straight into the other workload's namespace, or to the host's stack.
static __always_inline int sent_deliver(uint32_t ifindex)
{
	const struct idm_config *row = lookup_config();

	if (ifindex && row && row->flags & IDM_CONFIG_PEER_REDIRECT)
		return bpf_redirect_peer(ifindex, 0);
	return STEER_PASS;
}

// connection: the row, or what is about to become one.
static __always_inline int sent_carry(struct __sk_buff *skb, struct flow *flow, struct idm_connection *connection)
{
	if (flow->key.leg == IDM_LEG_PROXY || connection->verdict == IDM_REDIRECTED) {
		if (!refuse_has_listener(flow->packet.kind == PACKET_IP6))
			return IDM_DROP_PROXY_UNSUPPORTED;
		flow->action = steer(skb, &flow->key, connection);
		return flow->action == STEER_DROP ? IDM_PACKET_MAP_FULL : 0;
	}
	flow->action = sent_deliver(flow->reversed ? connection->source_ifindex : connection->destination_ifindex);
	return 0;
}

// A server's direct packet in a connection that Envoy holds: only Envoy answers there.
static __always_inline bool sent_bypasses(const struct flow *flow, const struct idm_connection *row)
{
	return row->verdict == IDM_REDIRECTED && flow->reversed && flow->key.leg == IDM_LEG_CLIENT;
}

/* The packet's row: the client's leg, or what the server sends back to Envoy. */
static __always_inline struct idm_connection *sent_find(struct flow *flow)
{
	struct idm_connection *row, *proxied;
	uint8_t reversed;

	track_key(flow, IDM_LEG_CLIENT);
	row = track_find(flow);
	if (flow->key.protocol != IPPROTO_TCP || flow->packet.flags & PACKET_OPENS || (row && !sent_bypasses(flow, row)))
		return row;
	reversed = flow->reversed;
	flow->key.leg = IDM_LEG_PROXY;
	proxied = track_find(flow);
	if (proxied && flow->reversed)
		return proxied;
	flow->key.leg = IDM_LEG_CLIENT;
	flow->reversed = reversed;
	return row;
}

// Processes of this host, whatever identity they have: their sockets have the destination's address like Envoy's.
static __always_inline bool sent_is_here(const struct flow *flow)
{
	const struct idm_connection *now = &flow->connection;

	return now->destination_identity == lookup_host() ||
	       (now->flags & IDM_CONNECTION_INGRESS && !now->destination_ifindex) ||
	       bpf_map_lookup_elem(&locals, &flow->packet.destination);
}

/*
 * Whether the packet may put its connection into Envoy. The stack gives a steered segment to whoever has its connection,
 * and asks for Envoy's listener only where nobody has: so a connection begins with its first segment, or Envoy has it
 * already. With a process of this host it may be that process which has it, from before policy wanted Envoy.
 */
static __noinline bool sent_begins(struct __sk_buff *skb, const struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	bool opens = packet->flags & PACKET_OPENS, taken = restore_is_taken(skb, packet);

	return sent_is_here(flow) ? opens && !taken : opens || taken;
}

/* Policy was asked (decide_flow): carry out its answer. A function of its own for its stack. */
static __noinline int sent_settle(struct __sk_buff *skb, struct flow *flow, struct idm_connection *row)
{
	const struct idm_connection *now = &flow->connection;
	uint32_t own = flow->reversed ? now->destination_ifindex : now->source_ifindex;
	int reason;

	if (own != skb->ifindex) {
		// Whatever policy would have said of the flow: it is the sender that is refused.
		flow->direction = IDM_EGRESS;
		return IDM_PACKET_INVALID_SOURCE_IP;
	}
	// To itself: such packets stay inside a machine. And to nobody, or to everybody.
	if (now->source_ifindex == now->destination_ifindex ||
	    packet_is_nobody(&flow->packet.destination, flow->packet.kind))
		return IDM_PACKET_INVALID;
	flow->judged = 1;
	reason = decide_settle(flow, row);
	if (reason)
		return reason;
	if (sent_bypasses(flow, now))
		return IDM_DROP_UNKNOWN_SENDER;
	if (now->verdict == IDM_REDIRECTED && flow->key.leg == IDM_LEG_CLIENT &&
	    !(row && row->verdict == IDM_REDIRECTED) && !sent_begins(skb, flow))
		return IDM_DROP_PROXY_UNSUPPORTED;
	reason = sent_carry(skb, flow, &flow->connection);
	return reason ? reason : decide_write(flow, row);
}

/* A server's answer to Envoy without a row: judged for the client of the token, and its row written anew. */
static __noinline int sent_restore(struct __sk_buff *skb, struct flow *flow, uint32_t token)
{
	int reason;

	flow->reversed = 1;
	reason = restore_judge(flow, token);
	if (reason)
		return reason;
	if (flow->connection.destination_ifindex != skb->ifindex)
		return IDM_PACKET_INVALID_SOURCE_IP;
	skb->mark = IDM_MARK_TO_PROXY;
	return track_open(flow);
}

static __always_inline bool sent_is_known(const struct __sk_buff *skb, const struct flow *flow,
					  const struct idm_connection *row)
{
	uint32_t own = flow->reversed ? row->destination_ifindex : row->source_ifindex;

	return row->generation == flow->live.generation && row->verdict != IDM_DROPPED && own == skb->ifindex &&
	       !sent_bypasses(flow, row);
}

static __always_inline int sent_packet(struct __sk_buff *skb, struct flow *flow)
{
	struct idm_connection *row = NULL;
	int reason;

	if (flow->packet.flags & PACKET_ERROR) {
		reason = error_read(skb, flow, true);
		if (reason)
			return reason;
	}
	if (!(flow->packet.flags & PACKET_UNTRACKED))
		row = sent_find(flow);
	if (!row && flow->error) {
		reason = error_restore(skb, flow);
		if (reason)
			return reason;
	}
	if (!row) {
		uint32_t token = restore_token(skb, flow);

		if (token)
			return sent_restore(skb, flow, token);
	}
	if (!row || !sent_is_known(skb, flow, row)) {
		// No row says what becomes of this packet.
		if (!row)
			flow->reversed = 0;
		if (row)
			decide_again(flow, row);
		else
			decide_flow(flow, 0);
		return sent_settle(skb, flow, row);
	}
	track_touch(flow, row);
	return sent_carry(skb, flow, row);
}

/* Our own mark: to_workload sent the packet back here on its way to Envoy. It must be a connection that Envoy holds. */
static __noinline int sent_hairpin(struct flow *flow)
{
	struct idm_connection *row;

	track_key(flow, IDM_LEG_CLIENT);
	row = bpf_map_lookup_elem(&connections, &flow->key);
	if (!row || row->verdict != IDM_REDIRECTED) {
		flow->key.leg = IDM_LEG_PROXY;
		row = bpf_map_lookup_elem(&connections, &flow->key);
	}
	// Forgotten since, or a mark that nobody should have been able to set.
	return row && row->verdict == IDM_REDIRECTED ? 0 : IDM_DROP_UNKNOWN_SENDER;
}

static __always_inline int sent_check_frame(const struct __sk_buff *skb, const struct packet *packet)
{
	uint32_t ifindex = skb->ifindex;
	const struct idm_attachment *attachment = bpf_map_lookup_elem(&attachments, &ifindex);

	// Not attached (yet): nothing passes before there is an identity.
	if (!attachment)
		return IDM_DROP_NO_POLICY;
	if (neighbour_is_any_mac(attachment->mac) || neighbour_same_mac(attachment->mac, packet->mac))
		return 0;
	return IDM_PACKET_INVALID_SOURCE_MAC;
}

// Only a workload's own datagrams may be remembered: ports that a forged one named would be taken for the owner's.
static __noinline int sent_join_fragment(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	int reason;

	if ((skb->mark & IDM_MARK_MASK) != IDM_MARK_TO_PROXY) {
		reason = sent_check_frame(skb, packet);
		if (reason)
			return reason;
		if (!neighbour_owns(skb, &flow->live, &packet->source))
			return IDM_PACKET_INVALID_SOURCE_IP;
	}
	return network_join_fragment(packet);
}

static __always_inline int sent(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	int reason = network_read(skb, packet);

	if (reason)
		return reason;
	if (!lookup_live(&flow->live))
		return IDM_DROP_NOT_READY;
	if (packet->flags & (PACKET_FIRST | PACKET_LATER)) {
		reason = sent_join_fragment(skb, flow);
		if (reason)
			return reason;
	}
	flow->now_ns = track_time_ns();
	if ((skb->mark & IDM_MARK_MASK) == IDM_MARK_TO_PROXY)
		return sent_hairpin(flow);
	if (skb->mark)
		skb->mark = 0;
	reason = sent_check_frame(skb, packet);
	if (reason)
		return reason;
	if (packet->kind == PACKET_ARP)
		return neighbour_check_arp(skb, &flow->live, packet);
	if (neighbour_is_discovery(packet) || neighbour_is_membership(packet))
		return neighbour_check_discovery(skb, &flow->live, packet);
	return sent_packet(skb, flow);
}

SEC("tc")
int from_workload(struct __sk_buff *skb)
{
	struct flow flow = {.hook = IDM_HOOK_FROM_WORKLOAD, .direction = IDM_EGRESS, .action = STEER_PASS};

	int answer = report_leave(skb, &flow, sent(skb, &flow));
	uint8_t reason = flow.drop_reason;

	// Nothing can carry it on: the client is told rather than left waiting.
	return answer == STEER_DROP && (reason == IDM_DROP_PROXY_UNSUPPORTED || reason == DECIDE_NO_BACKEND) ?
		       refuse(skb, (struct refuse_room *)&flow) :
		       answer;
}
