/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets to a workload: tc egress on the host side of its veth. They come from a process of this host (no interface
 * they came in by: identity host, whatever the address), from Envoy in a client's name (its mark, and a row that says
 * so), or from elsewhere.
 */
#include "maps.h"
#include "cgroup.h"
#include "decide.h"
#include "error.h"
#include "neighbour.h"
#include "report.h"
#include "restore.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline bool received_is_from_proxy(const struct __sk_buff *skb)
{
	return (skb->mark & IDM_MARK_MASK) == IDM_MARK_FROM_PROXY;
}

// Judged where it left the socket of a workload without a namespace.
static __always_inline bool received_is_from_cgroup(const struct __sk_buff *skb)
{
	return (skb->mark & IDM_MARK_MASK) == IDM_MARK_WORKLOAD;
}

// Past the programs of its cgroup, as packet sockets send: neither that workload's packet nor the host's.
static __noinline bool received_slipped(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex || received_is_from_cgroup(skb))
		return false;
	return workload_of(skb);
}

// A row that a process of this host opened is not that of a packet from elsewhere, and the other way round; nor is one
// of a workload without a namespace that of another process.
static __always_inline bool received_fits(const struct __sk_buff *skb, const struct flow *flow,
					  const struct idm_connection *row)
{
	if (flow->reversed || flow->error)
		return true;
	return !(row->flags & IDM_CONNECTION_HOST) == !!skb->ingress_ifindex &&
	       !(row->flags & IDM_CONNECTION_CGROUP) == !received_is_from_cgroup(skb);
}

// A packet to the client that does not come from Envoy's socket here, in a connection that Envoy holds.
static __always_inline bool received_bypasses(const struct __sk_buff *skb, const struct flow *flow,
					      const struct idm_connection *row)
{
	return row->verdict == IDM_REDIRECTED && flow->reversed && flow->key.leg == IDM_LEG_CLIENT &&
	       skb->ingress_ifindex;
}

// Answers of processes of this host, and of them alone, come in nowhere.
static __always_inline bool received_is_near(const struct __sk_buff *skb, const struct idm_connection *row)
{
	return !skb->ingress_ifindex == (row->destination_identity == lookup_host());
}

/* The packet's row: Envoy's own, the client's, or what a server sends back to Envoy from elsewhere or from this host. */
static __always_inline struct idm_connection *received_find(const struct __sk_buff *skb, struct flow *flow)
{
	struct idm_connection *row, *proxied;
	uint8_t reversed;

	if (received_is_from_proxy(skb)) {
		track_key(flow, IDM_LEG_PROXY);
		return track_find(flow);
	}
	track_key(flow, IDM_LEG_CLIENT);
	row = track_find(flow);
	if (row && !received_fits(skb, flow, row))
		row = NULL;
	if (flow->key.protocol != IPPROTO_TCP || flow->packet.flags & PACKET_OPENS ||
	    (row && !received_bypasses(skb, flow, row)))
		return row;
	reversed = flow->reversed;
	flow->key.leg = IDM_LEG_PROXY;
	proxied = track_find(flow);
	if (proxied && flow->reversed && received_is_near(skb, proxied))
		return proxied;
	flow->key.leg = IDM_LEG_CLIENT;
	flow->reversed = reversed;
	return row;
}

// Where a packet with this source must come in; the row's or what was looked up just now.
static __always_inline bool received_has_way(const struct __sk_buff *skb, const struct flow *flow,
					     const struct idm_connection *connection)
{
	uint32_t in = skb->ingress_ifindex;
	uint32_t ifindex = flow->reversed ? connection->destination_ifindex : connection->source_ifindex;
	uint32_t identity = flow->reversed ? connection->destination_identity : connection->source_identity;

	// An error may come from any machine on the way; on the way from Envoy there is none but this.
	if (flow->error)
		return !received_bypasses(skb, flow, connection);
	if (received_is_from_cgroup(skb))
		return !in;
	// A server attached here sends at its own interface, where its answers to Envoy are steered at once.
	if (flow->key.leg == IDM_LEG_PROXY)
		return flow->reversed ? !ifindex && received_is_near(skb, connection) : !in;
	if (flow->reversed && connection->verdict == IDM_REDIRECTED)
		return !in;
	if (!flow->reversed && connection->flags & IDM_CONNECTION_HOST)
		return !in;
	// An endpoint of this host sends at its own interface, and the host's addresses are not those of others.
	if (ifindex)
		return in == ifindex;
	return !in == (identity == lookup_host());
}

static __always_inline bool received_is_mine(const struct __sk_buff *skb, const struct flow *flow,
					     const struct idm_connection *connection)
{
	return skb->ifindex == (flow->reversed ? connection->source_ifindex : connection->destination_ifindex);
}

static __always_inline int received_carry(struct __sk_buff *skb, struct flow *flow, struct idm_connection *connection)
{
	bool hairpin = flow->key.leg == IDM_LEG_PROXY ? flow->reversed
						       : connection->verdict == IDM_REDIRECTED && !flow->reversed;

	if (!hairpin)
		return 0;
	// A workload of this host was steered where it sent: this packet slipped past its route to Envoy.
	if (flow->key.leg == IDM_LEG_CLIENT && connection->source_ifindex)
		return IDM_DROP_PROXY_UNSUPPORTED;
	flow->action = steer_hairpin(skb, &flow->key, connection);
	return flow->action == STEER_DROP ? IDM_PACKET_MAP_FULL : 0;
}

// Envoy ends a connection that policy denies by now: a segment without data, or its client would wait for hours.
static __noinline bool received_ends(struct __sk_buff *skb, const struct flow *flow, const struct idm_connection *row)
{
	const struct packet *packet = &flow->packet;
	// What is not plain is not ended here: Envoy's segments are, and the plain reader leaves transport unset.
	uint32_t at = PACKET_ETHERNET + (packet->kind == PACKET_IP4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	uint8_t words;

	if (!row || !row->token || flow->error || skb->ingress_ifindex || packet->protocol != IPPROTO_TCP ||
	    !(packet->tcp_flags & (TCP_FIN | TCP_RST)) || (packet->transport && packet->transport != at))
		return false;
	if (bpf_skb_load_bytes(skb, at + 12, &words, sizeof(words)))
		return false;
	return at + (words >> 4) * 4 == skb->len;
}

/* Policy was asked (decide_flow): carry out its answer. A function of its own for its stack. */
static __noinline int received_settle(struct __sk_buff *skb, struct flow *flow, struct idm_connection *row)
{
	int reason;

	if (!received_is_mine(skb, flow, &flow->connection))
		return IDM_DROP_NO_POLICY;
	// Before it is known whether Envoy holds the connection, its row says so, a denied one by its token.
	flow->connection.verdict = !row ? 0 : row->token ? IDM_REDIRECTED : row->verdict;
	if (!received_has_way(skb, flow, &flow->connection)) {
		// Whatever policy would have said of the flow: it is refused here.
		flow->direction = IDM_INGRESS;
		return IDM_PACKET_INVALID_SOURCE_IP;
	}
	flow->judged = 1;
	reason = decide_settle(flow, row);
	if (reason && received_ends(skb, flow, row)) {
		flow->judged = 0;
		return 0;
	}
	// Steered as of now, and this is the server's own answer.
	if (!reason && received_bypasses(skb, flow, &flow->connection))
		reason = IDM_DROP_UNKNOWN_SENDER;
	if (!reason)
		reason = received_carry(skb, flow, &flow->connection);
	return reason ? reason : decide_write(flow, row);
}

// The token of a connection that Envoy has, though no row knows it; 0: it is none of Envoy's.
static __noinline uint32_t received_token(struct __sk_buff *skb, struct flow *flow)
{
	flow->reversed = !received_is_from_proxy(skb);
	if (flow->reversed)
		return restore_token(skb, flow);
	// Its first segment has a row, or is not let past the program that did not write it.
	return skb->ingress_ifindex || flow->error || flow->packet.protocol != IPPROTO_TCP ||
			       flow->packet.flags & PACKET_OPENS ?
		       0 :
		       IDM_MARK_TOKEN(skb->mark);
}

/* Envoy's connection without a row: judged for the client of the token, and its row written anew. */
static __noinline int received_restore(struct __sk_buff *skb, struct flow *flow, uint32_t token)
{
	int reason = restore_judge(flow, token);

	if (reason)
		return reason;
	if (!received_is_mine(skb, flow, &flow->connection))
		return IDM_DROP_NO_POLICY;
	if (!received_has_way(skb, flow, &flow->connection))
		return IDM_PACKET_INVALID_SOURCE_IP;
	if (flow->reversed)
		flow->action = steer_back(skb);
	return track_open(flow);
}

static __always_inline bool received_is_known(const struct __sk_buff *skb, const struct flow *flow,
					      const struct idm_connection *row)
{
	return row->generation == flow->live.generation && row->verdict != IDM_DROPPED &&
	       received_is_mine(skb, flow, row) && received_has_way(skb, flow, row);
}

/*
 * A segment of Envoy's to its client whose row was forgotten, or the stack's for it: TCP from a local socket, not the
 * first of a connection, from an address that is not the host's. Taken for the host's own it would open a row by which
 * the client's next segments are replies, and go past Envoy.
 */
static __noinline bool received_is_answer(struct __sk_buff *skb, const struct packet *packet)
{
	return !skb->ingress_ifindex && packet->protocol == IPPROTO_TCP && !(packet->flags & PACKET_OPENS) &&
	       !bpf_map_lookup_elem(&locals, &packet->source);
}

// Envoy speaks for the client whose token its packet carries, and only forward. A first segment has the row that
// Envoy's connect wrote: one that was written anew is of a connection under way.
static __always_inline bool received_speaks(const struct __sk_buff *skb, const struct flow *flow,
					    const struct idm_connection *row)
{
	if (!row || flow->reversed || skb->ingress_ifindex || row->token != IDM_MARK_TOKEN(skb->mark))
		return false;
	return !(flow->packet.flags & PACKET_OPENS) || row->tcp & IDM_TCP_SYN;
}

static __always_inline int received_packet(struct __sk_buff *skb, struct flow *flow)
{
	struct idm_connection *row = NULL;
	int reason;

	if (flow->packet.flags & PACKET_ERROR) {
		reason = error_read(skb, flow, false);
		if (reason)
			return reason;
	}
	if (!(flow->packet.flags & PACKET_UNTRACKED))
		row = received_find(skb, flow);
	if (!row && flow->error) {
		reason = error_restore(skb, flow);
		if (reason)
			return reason;
	}
	if (received_slipped(skb))
		return IDM_DROP_UNKNOWN_SENDER;
	if (!row && !received_is_from_cgroup(skb)) {
		uint32_t token = received_token(skb, flow);

		if (token)
			return received_restore(skb, flow, token);
	}
	if (received_is_from_proxy(skb) && !received_speaks(skb, flow, row))
		return IDM_DROP_UNKNOWN_SENDER;
	// Its row says who it is; without one it must not be taken for the host.
	if (received_is_from_cgroup(skb) && !row)
		return IDM_DROP_UNKNOWN_SENDER;
	// Judged, so that Envoy can still close the connection, but remembered by nobody.
	if (!row && received_is_answer(skb, &flow->packet))
		flow->packet.flags |= PACKET_ANSWERS;
	if (!row || !received_is_known(skb, flow, row)) {
		// No row says what becomes of this packet.
		if (!row)
			flow->reversed = 0;
		if (row)
			decide_again(flow, row);
		else
			decide_flow(flow, skb->ingress_ifindex ? 0 : lookup_host());
		return received_settle(skb, flow, row);
	}
	track_touch(flow, row);
	return received_carry(skb, flow, row);
}

// Neighbour discovery that came over this cable or from this host; what was routed has lost a hop.
static __always_inline int received_discovery(const struct packet *packet)
{
	bool near = neighbour_is_membership(packet) ? packet->hop_limit == 1 : packet->hop_limit == NEIGHBOUR_ON_LINK;

	return near ? 0 : IDM_PACKET_INVALID;
}

static __always_inline int received_check_frame(const struct __sk_buff *skb)
{
	uint32_t ifindex = skb->ifindex;

	// Not attached: nothing passes before there is an identity.
	return bpf_map_lookup_elem(&attachments, &ifindex) ? 0 : IDM_DROP_NO_POLICY;
}

// Whoever forges a workload of this host must not have its ports remembered for that workload's datagrams.
static __noinline int received_join_fragment(const struct __sk_buff *skb, struct flow *flow)
{
	const struct idm_endpoint_row *sender = lookup_endpoint(&flow->live, &flow->packet.source);

	if (sender && sender->ifindex && skb->ingress_ifindex && sender->ifindex != skb->ingress_ifindex)
		return IDM_PACKET_INVALID_SOURCE_IP;
	return network_join_fragment(&flow->packet);
}

static __always_inline int received(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	int reason = network_read(skb, packet);

	if (reason)
		return reason;
	if (!lookup_live(&flow->live))
		return IDM_DROP_NOT_READY;
	// Steered, but not taken into the host's stack: its route is missing. It must not reach the server past Envoy.
	if ((skb->mark & IDM_MARK_MASK) == IDM_MARK_TO_PROXY && skb->ingress_ifindex)
		return IDM_DROP_PROXY_UNSUPPORTED;
	if (packet->kind == PACKET_ARP)
		return received_check_frame(skb);
	if (neighbour_is_discovery(packet) || neighbour_is_membership(packet)) {
		reason = received_check_frame(skb);
		return reason ? reason : received_discovery(packet);
	}
	if (packet_is_nobody(&packet->source, packet->kind))
		return IDM_PACKET_INVALID_SOURCE_IP;
	if (packet_is_nobody(&packet->destination, packet->kind))
		return IDM_PACKET_INVALID;
	if (packet->flags & (PACKET_FIRST | PACKET_LATER)) {
		reason = received_join_fragment(skb, flow);
		if (reason)
			return reason;
	}
	flow->now_ns = track_time_ns();
	return received_packet(skb, flow);
}

SEC("tc")
int to_workload(struct __sk_buff *skb)
{
	struct flow flow = {.hook = IDM_HOOK_TO_WORKLOAD, .direction = IDM_INGRESS, .action = STEER_PASS};

	return report_leave(skb, &flow, received(skb, &flow));
}
