// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What sockets of workloads without a namespace ask for, before there is a packet (workload_cgroup.bpf.c judges those):
 *
 *   connect, sendmsg  put Services' addresses into backends', give the workload its own source address, and refuse at
 *                     once what would be dropped anyway
 *   opened            (sock_ops) steers: the socket gets a mark that routes it into Envoy on this host, once its
 *                     source address and port are known; the original destination stays in its packets
 *   bind              refuses addresses of other endpoints
 *   getpeername, recvmsg  tell the Service that was asked for
 */
#include "maps.h"
#include "socket.h"
#include "workload.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PASS 1
#define DROP 0
#define FAMILY_IP4 2
#define FAMILY_IP6 10
#define LEVEL_SOCKET 1 // SOL_SOCKET
#define OPTION_MARK 36 // SO_MARK
#define NOT_PERMITTED (-1)
#define NOT_AVAILABLE (-99) // EADDRNOTAVAIL

/* The innermost workload among the cgroups of the process that runs. */
static __always_inline const struct idm_workload *current_row(void)
{
	const struct idm_workload *found = NULL;

	for (int level = 1; level <= CGROUP_DEPTH; level++) {
		uint64_t cgroup = bpf_get_current_ancestor_cgroup_id(level);
		const struct idm_workload *row;

		if (!cgroup)
			break;
		row = bpf_map_lookup_elem(&workloads, &cgroup);
		if (row)
			found = row;
	}
	return found;
}

/* The workload of the process that runs, ready to be judged. */
static __always_inline bool current(struct workload *own)
{
	const struct idm_workload *row = current_row();
	struct live live;

	return row && lookup_live(&live) && workload_load(&live, row, own);
}

/* An event and a count where there is no packet yet. */
static __noinline int tell(struct flow *flow, uint32_t reason)
{
	uint32_t index = reason * 2 + IDM_EGRESS;
	struct idm_counter *counter = bpf_map_lookup_elem(&counters, &index);
	struct idm_event *event;

	if (counter)
		counter->packets++;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		report_lost();
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	report_ends(flow, event);
	event->time_ns = flow->now_ns;
	event->revision = flow->live.revision;
	event->protocol = flow->packet.protocol;
	event->verdict = reason ? IDM_DROPPED : flow->verdict;
	event->drop_reason = reason;
	event->direction = flow->direction;
	event->type = IDM_EVENT_VERDICT;
	event->l7 = flow->connection.l7;
	event->match_type = flow->match_type;
	event->hook = IDM_HOOK_CGROUP;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Whether a connection to that destination would be denied; told, if so. A frame of its own: the stack is small. */
static __noinline int is_denied(struct workload *own, const struct idm_service_key *peer)
{
	struct flow flow = {};
	int reason = 0;

	workload_begin(&flow, IDM_EGRESS);
	flow.packet.destination = peer->address;
	flow.packet.destination_port = peer->port;
	flow.packet.protocol = peer->protocol;
	flow.packet.kind = packet_is_mapped(&peer->address) ? PACKET_IP4 : PACKET_IP6;
	flow.packet.flags = PACKET_OPENS;
	if (!lookup_live(&flow.live))
		return IDM_DROP_NOT_READY;
	if (workload_meet(&flow, own, false, false, false))
		return IDM_DROP_NOT_READY;
	workload_decide_opened(&flow, own);
	flow.judged = 1;
	if (flow.verdict == IDM_DROPPED)
		reason = flow.drop_reason ? flow.drop_reason : IDM_DROP_POLICY_DENIED;
	else if (flow.verdict == IDM_REDIRECTED && !decide_can_steer(&flow, false))
		reason = IDM_DROP_PROXY_UNSUPPORTED;
	if (reason)
		tell(&flow, reason);
	return reason;
}

static __always_inline int deny(void)
{
	bpf_set_retval(NOT_PERMITTED);
	return DROP;
}

static __always_inline bool has_own_source(const struct workload *own, const struct idm_address *source,
					   const struct idm_address *destination)
{
	return !(own->row->flags & IDM_WORKLOAD_SHARED) && workload_is_set(source) && !packet_is_loopback(destination);
}

/* Connections of a workload with an address of its own come from there, also if several have the same host. */
static __always_inline int take_source4(struct bpf_sock_addr *ctx, const struct workload *own,
					const struct idm_address *destination)
{
	struct sockaddr_in source = { .sin_family = FAMILY_IP4 };
	struct bpf_sock *socket = ctx->sk;

	if (!socket || socket->src_ip4 || !has_own_source(own, &own->row->address4, destination))
		return 0;
	source.sin_addr.s_addr = packet_word(&own->row->address4, 3);
	return bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source));
}

static __always_inline int take_source6(struct bpf_sock_addr *ctx, const struct workload *own,
					const struct idm_address *destination)
{
	struct sockaddr_in6 source = { .sin6_family = FAMILY_IP6 };
	struct bpf_sock *socket = ctx->sk;
	const struct idm_address *address =
		packet_is_mapped(destination) ? &own->row->address4 : &own->row->address6;

	if (!socket || socket->src_ip6[0] || socket->src_ip6[1] || socket->src_ip6[2] || socket->src_ip6[3] ||
	    !has_own_source(own, address, destination))
		return 0;
	__builtin_memcpy(&source.sin6_addr, address, sizeof(*address));
	return bpf_bind(ctx, (struct sockaddr *)&source, sizeof(source));
}

SEC("cgroup/connect4")
int workload_connect4(struct bpf_sock_addr *ctx)
{
	struct idm_service_key peer;
	struct workload own;

	if (!current(&own))
		return deny();
	if (!socket_translate4(ctx, own.row->endpoint))
		return DROP;
	socket_peer4(ctx, &peer);
	if (is_denied(&own, &peer) || take_source4(ctx, &own, &peer.address))
		return deny();
	return PASS;
}

SEC("cgroup/connect6")
int workload_connect6(struct bpf_sock_addr *ctx)
{
	struct idm_service_key peer;
	struct workload own;

	if (!current(&own))
		return deny();
	if (!socket_translate6(ctx, own.row->endpoint))
		return DROP;
	socket_peer6(ctx, &peer);
	if (is_denied(&own, &peer) || take_source6(ctx, &own, &peer.address))
		return deny();
	return PASS;
}

SEC("cgroup/sendmsg4")
int workload_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct idm_service_key peer;
	struct workload own;

	if (!current(&own))
		return deny();
	if (!socket_translate4(ctx, own.row->endpoint))
		return DROP;
	socket_peer4(ctx, &peer);
	if (!ctx->msg_src_ip4 && has_own_source(&own, &own.row->address4, &peer.address))
		ctx->msg_src_ip4 = packet_word(&own.row->address4, 3);
	return PASS;
}

SEC("cgroup/sendmsg6")
int workload_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct idm_service_key peer;
	struct workload own;

	if (!current(&own))
		return deny();
	if (!socket_translate6(ctx, own.row->endpoint))
		return DROP;
	socket_peer6(ctx, &peer);
	if (!ctx->msg_src_ip6[0] && !ctx->msg_src_ip6[1] && !ctx->msg_src_ip6[2] && !ctx->msg_src_ip6[3] &&
	    has_own_source(&own, &own.row->address6, &peer.address)) {
		ctx->msg_src_ip6[0] = packet_word(&own.row->address6, 0);
		ctx->msg_src_ip6[1] = packet_word(&own.row->address6, 1);
		ctx->msg_src_ip6[2] = packet_word(&own.row->address6, 2);
		ctx->msg_src_ip6[3] = packet_word(&own.row->address6, 3);
	}
	return PASS;
}

SEC("cgroup/recvmsg4")
int workload_recvmsg4(struct bpf_sock_addr *ctx)
{
	return socket_restore4(ctx);
}

SEC("cgroup/recvmsg6")
int workload_recvmsg6(struct bpf_sock_addr *ctx)
{
	return socket_restore6(ctx);
}

SEC("cgroup/getpeername4")
int workload_getpeername4(struct bpf_sock_addr *ctx)
{
	return socket_restore4(ctx);
}

SEC("cgroup/getpeername6")
int workload_getpeername6(struct bpf_sock_addr *ctx)
{
	return socket_restore6(ctx);
}

static __always_inline int may_bind(const struct idm_address *address)
{
	struct workload own;
	struct live live;

	if (!current(&own) || !lookup_live(&live))
		return deny();
	if (workload_may_hear(&live, &own, address))
		return PASS;
	bpf_set_retval(NOT_AVAILABLE);
	return DROP;
}

SEC("cgroup/bind4")
int workload_bind4(struct bpf_sock_addr *ctx)
{
	struct idm_service_key wanted;

	socket_peer4(ctx, &wanted);
	return may_bind(&wanted.address);
}

SEC("cgroup/bind6")
int workload_bind6(struct bpf_sock_addr *ctx)
{
	struct idm_service_key wanted;

	socket_peer6(ctx, &wanted);
	return may_bind(&wanted.address);
}

// ---- steering ----

static __always_inline bool read_ends(const struct bpf_sock_ops *ctx, struct packet *packet)
{
	uint32_t *source = (void *)&packet->source, *destination = (void *)&packet->destination;

	packet->kind = PACKET_IP6;
	packet->protocol = IPPROTO_TCP;
	packet->flags = PACKET_OPENS;
	packet->tcp_flags = TCP_SYN;
	packet->source_port = ctx->local_port;
	packet->destination_port = bpf_ntohl(ctx->remote_port);
	if (ctx->family == FAMILY_IP4) {
		packet->kind = PACKET_IP4;
		packet_set_ip4(&packet->source, ctx->local_ip4);
		packet_set_ip4(&packet->destination, ctx->remote_ip4);
		return true;
	}
	if (ctx->family != FAMILY_IP6)
		return false;
	source[0] = ctx->local_ip6[0];
	source[1] = ctx->local_ip6[1];
	source[2] = ctx->local_ip6[2];
	source[3] = ctx->local_ip6[3];
	destination[0] = ctx->remote_ip6[0];
	destination[1] = ctx->remote_ip6[1];
	destination[2] = ctx->remote_ip6[2];
	destination[3] = ctx->remote_ip6[3];
	// The IPv6 socket of an IPv4 connection.
	if (packet_is_mapped(&packet->destination))
		packet->kind = PACKET_IP4;
	return true;
}

/* The row must stand before the first packet: sk_lookup chooses Envoy by it, and the module asks it who connects. */
static __noinline int open_steered(struct flow *flow, struct workload *own)
{
	if (workload_meet(flow, own, false, false, false))
		return 0;
	workload_decide_opened(flow, own);
	flow->judged = 1;
	if (flow->verdict != IDM_REDIRECTED || decide_settle(flow, NULL) ||
	    !workload_grant(flow, own) || decide_write(flow, NULL))
		return 0;
	if (report_wants_allowed())
		tell(flow, 0);
	return 1;
}

SEC("sockops")
int workload_opened(struct bpf_sock_ops *ctx)
{
	struct flow flow = {};
	struct workload own;
	uint32_t mark = IDM_MARK_WORKLOAD;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB || !read_ends(ctx, &flow.packet))
		return PASS;
	// Whatever is not marked here is judged, and dropped if it had to be, by workload_egress.
	if (!current(&own) || !lookup_live(&flow.live))
		return PASS;
	workload_begin(&flow, IDM_EGRESS);
	track_key(&flow, IDM_LEG_CLIENT);
	if (open_steered(&flow, &own))
		bpf_setsockopt(ctx, LEVEL_SOCKET, OPTION_MARK, &mark, sizeof(mark));
	return PASS;
}
