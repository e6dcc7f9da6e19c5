// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Where a steered connection wanted to go, for whoever asks as a redirecting firewall is asked: SO_ORIGINAL_DST and
 * IP6T_SO_ORIGINAL_DST on accepted sockets of Envoy's cgroup.
 *
 * Steering leaves the destination in the packets, so it is the socket's own address. That is only told of a connection
 * whose row says it was steered: about all others the kernel's own answer stands, which without such a firewall is
 * that there is none.
 */
#include "maps.h"
#include "idmesh/engine.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define LEVEL_IP4 0           // SOL_IP
#define LEVEL_IP6 41          // SOL_IPV6
#define ORIGINAL_DESTINATION 80 // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST
#define FAMILY_IP4 2
#define FAMILY_IP6 10
#define PAGE_BYTES 4096
#define PASS 1

static __always_inline void copy6(struct idm_address *ret, const uint32_t *words)
{
	__builtin_memcpy(ret, words, sizeof(*ret));
}

// The two ends as the row has them. False: neither IPv4 nor IPv6.
static __always_inline bool ends_of(const struct bpf_sock *socket, struct steer_end *client, struct steer_end *wanted)
{
	uint32_t words[4];

	client->port = bpf_ntohs(socket->dst_port);
	wanted->port = socket->src_port;
	if (socket->family == FAMILY_IP4) {
		client->address = steer_mapped(socket->dst_ip4);
		wanted->address = steer_mapped(socket->src_ip4);
		return true;
	}
	if (socket->family != FAMILY_IP6)
		return false;
	words[0] = socket->dst_ip6[0];
	words[1] = socket->dst_ip6[1];
	words[2] = socket->dst_ip6[2];
	words[3] = socket->dst_ip6[3];
	copy6(&client->address, words);
	words[0] = socket->src_ip6[0];
	words[1] = socket->src_ip6[1];
	words[2] = socket->src_ip6[2];
	words[3] = socket->src_ip6[3];
	copy6(&wanted->address, words);
	return true;
}

static __always_inline bool is_steered(const struct steer_end *client, const struct steer_end *wanted)
{
	struct idm_connection_key key;
	const struct idm_connection *row;

	steer_key(client, wanted, IDM_LEG_CLIENT, &key);
	row = bpf_map_lookup_elem(&connections, &key);
	return row && row->verdict == IDM_REDIRECTED;
}

static __always_inline int answer4(struct bpf_sockopt *ctx, const struct steer_end *wanted)
{
	struct sockaddr_in *ret = ctx->optval;

	if ((void *)(ret + 1) > ctx->optval_end)
		return PASS;
	__builtin_memset(ret, 0, sizeof(*ret));
	ret->sin_family = FAMILY_IP4;
	ret->sin_port = bpf_htons(wanted->port);
	__builtin_memcpy(&ret->sin_addr, wanted->address.bytes + 12, sizeof(ret->sin_addr));
	ctx->optlen = sizeof(*ret);
	ctx->retval = 0;
	return PASS;
}

static __always_inline int answer6(struct bpf_sockopt *ctx, const struct steer_end *wanted)
{
	struct sockaddr_in6 *ret = ctx->optval;

	if ((void *)(ret + 1) > ctx->optval_end)
		return PASS;
	__builtin_memset(ret, 0, sizeof(*ret));
	ret->sin6_family = FAMILY_IP6;
	ret->sin6_port = bpf_htons(wanted->port);
	__builtin_memcpy(&ret->sin6_addr, &wanted->address, sizeof(ret->sin6_addr));
	ctx->optlen = sizeof(*ret);
	ctx->retval = 0;
	return PASS;
}

// Of options longer than a page programs see a part, and must say that they left it alone.
static __always_inline int leave(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > PAGE_BYTES)
		ctx->optlen = 0;
	return PASS;
}

SEC("cgroup/getsockopt")
int original_destination(struct bpf_sockopt *ctx)
{
	struct steer_end client, wanted;
	struct bpf_sock *socket = ctx->sk;

	if (ctx->optname != ORIGINAL_DESTINATION || (ctx->level != LEVEL_IP4 && ctx->level != LEVEL_IP6))
		return leave(ctx);
	if (!socket || socket->protocol != IPPROTO_TCP || !ends_of(socket, &client, &wanted) ||
	    !is_steered(&client, &wanted))
		return leave(ctx);
	return ctx->level == LEVEL_IP4 && socket->family == FAMILY_IP4  ? answer4(ctx, &wanted) :
	       ctx->level == LEVEL_IP6 && socket->family == FAMILY_IP6 ? answer6(ctx, &wanted) :
									 leave(ctx);
}
