/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who answers a new connection on this host: Envoy's transparent listener, if the connection's row says it is steered.
 *
 * Attached to the host's network namespace. Asked for each TCP segment that belongs to no socket yet; it cannot see
 * marks, so it asks for the row that from_workload or to_workload wrote before they let the packet pass. Whatever a
 * workload sends has such a row: without one the segment is refused, so that a steered connection whose row was
 * forgotten reaches no socket that happens to listen here.
 */
#include "maps.h"
#include "idmesh/engine.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FAMILY_IP4 2

static __always_inline void ends_of(const struct bpf_sk_lookup *ctx, struct steer_end *from, struct steer_end *to)
{
	from->port = bpf_ntohs(ctx->remote_port);
	to->port = ctx->local_port;
	if (ctx->family == FAMILY_IP4) {
		from->address = steer_mapped(ctx->remote_ip4);
		to->address = steer_mapped(ctx->local_ip4);
		return;
	}
	uint32_t remote[4] = STEER_WORDS(ctx, remote_ip6), local[4] = STEER_WORDS(ctx, local_ip6);

	__builtin_memcpy(&from->address, remote, sizeof(remote));
	__builtin_memcpy(&to->address, local, sizeof(local));
}

// Without Envoy the client is refused: nothing else may answer.
static __always_inline int to_envoy(struct bpf_sk_lookup *ctx)
{
	uint32_t slot = ctx->family != FAMILY_IP4;
	struct bpf_sock *listener = bpf_map_lookup_elem(&listeners, &slot);
	long failed;

	if (!listener)
		return SK_DROP;
	failed = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return failed ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int choose_listener(struct bpf_sk_lookup *ctx)
{
	struct steer_end from, to;
	struct idm_connection_key key;
	struct idm_connection *row;
	uint32_t ifindex = ctx->ingress_ifindex;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	ends_of(ctx, &from, &to);
	steer_key(&from, &to, IDM_LEG_CLIENT, &key);
	row = bpf_map_lookup_elem(&connections, &key);
	if (row && row->verdict == IDM_REDIRECTED)
		return to_envoy(ctx);
	// No row: others' connections are no concern of ours, but what a workload sends has one.
	if (!row && bpf_map_lookup_elem(&attachments, &ifindex))
		return SK_DROP;
	return SK_PASS;
}
