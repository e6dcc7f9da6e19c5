/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The peer that a socket names (bpf_sock_addr) as an address of our tables, and a Service's address put into a
 * backend's there. Shared by the hooks of workloads with and without a namespace.
 */
#ifndef IDMESH_SOCKET_H
#define IDMESH_SOCKET_H

#include "maps.h"
#include <bpf/bpf_endian.h>
#include "service.h"

// The kernel's values: vmlinux.h has no macros.
#define SOCKET_TCP 6
#define SOCKET_REFUSED (-111) // ECONNREFUSED
#define SOCKET_NO_BACKEND 158  // Hubble's number
#define SOCKET_PROCEED 1
#define SOCKET_STOP 0

static __always_inline void socket_peer4(const struct bpf_sock_addr *ctx, struct idm_service_key *ret)
{
	uint32_t *words = (void *)&ret->address;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = ctx->user_ip4;
	ret->port = bpf_ntohs(ctx->user_port);
	ret->protocol = ctx->protocol == SERVICE_MPTCP ? SOCKET_TCP : ctx->protocol;
	ret->reserved = 0;
}

static __always_inline void socket_peer6(const struct bpf_sock_addr *ctx, struct idm_service_key *ret)
{
	uint32_t *words = (void *)&ret->address;

	words[0] = ctx->user_ip6[0];
	words[1] = ctx->user_ip6[1];
	words[2] = ctx->user_ip6[2];
	words[3] = ctx->user_ip6[3];
	ret->port = bpf_ntohs(ctx->user_port);
	ret->protocol = ctx->protocol == SERVICE_MPTCP ? SOCKET_TCP : ctx->protocol;
	ret->reserved = 0;
}

static __always_inline void socket_name4(struct bpf_sock_addr *ctx, const struct idm_address *address, uint16_t port)
{
	const uint32_t *words = (const void *)address;

	ctx->user_ip4 = words[3];
	ctx->user_port = bpf_htons(port);
}

static __always_inline void socket_name6(struct bpf_sock_addr *ctx, const struct idm_address *address, uint16_t port)
{
	const uint32_t *words = (const void *)address;

	ctx->user_ip6[0] = words[0];
	ctx->user_ip6[1] = words[1];
	ctx->user_ip6[2] = words[2];
	ctx->user_ip6[3] = words[3];
	ctx->user_port = bpf_htons(port);
}

/*
 * The backend for what a socket asks. number: of the workload without a namespace, else 0; several of those may share
 * one network namespace, and affinity is each client's own.
 *
 * Datagrams of one socket go to one backend as long as the service stays the same; connections to any.
 */
static __always_inline enum service_answer socket_translate(struct bpf_sock_addr *ctx,
							    const struct idm_service_key *asked, uint32_t number,
							    struct idm_backend *ret)
{
	uint64_t cookie = bpf_get_socket_cookie(ctx);
	uint64_t client[2] = { 0, number };
	struct idm_service service = {};
	enum service_answer answer;
	uint32_t dice;

	client[0] = bpf_get_netns_cookie(ctx);
	// Fibonacci hashing: cookies are handed out in order.
	dice = asked->protocol == SOCKET_TCP ? bpf_get_prandom_u32() : (cookie * 0x9e3779b97f4a7c15ull) >> 32;
	answer = service_choose(asked, dice, (const struct idm_address *)client, &service, ret);
	if (answer == SERVICE_GIVEN)
		service_remember(cookie, asked, ret);
	return answer;
}

static __always_inline int socket_refuse(void)
{
	uint32_t index = SOCKET_NO_BACKEND * 2 + 1; // egress
	struct idm_counter *counter = bpf_map_lookup_elem(&counters, &index);

	// Not at a packet's hook: the drop is counted, its event would have no packet to tell of.
	if (counter)
		counter->packets++;
	bpf_set_retval(SOCKET_REFUSED);
	return SOCKET_STOP;
}

/* Put a backend in the place of the service that a socket asks for; what is no service stays as asked. */
static __noinline int socket_translate4(struct bpf_sock_addr *ctx, uint32_t number)
{
	struct idm_service_key asked;
	struct idm_backend given;
	enum service_answer answer;

	socket_peer4(ctx, &asked);
	answer = socket_translate(ctx, &asked, number, &given);
	if (answer == SERVICE_REFUSED)
		return socket_refuse();
	if (answer == SERVICE_GIVEN)
		socket_name4(ctx, &given.address, given.port);
	return SOCKET_PROCEED;
}

static __noinline int socket_translate6(struct bpf_sock_addr *ctx, uint32_t number)
{
	struct idm_service_key asked;
	struct idm_backend given;
	enum service_answer answer;

	socket_peer6(ctx, &asked);
	answer = socket_translate(ctx, &asked, number, &given);
	if (answer == SERVICE_REFUSED)
		return socket_refuse();
	if (answer == SERVICE_GIVEN)
		socket_name6(ctx, &given.address, given.port);
	return SOCKET_PROCEED;
}

/* The other way: tell the socket the service that it asked for, where its peer is the backend it got. */
static __always_inline int socket_restore4(struct bpf_sock_addr *ctx)
{
	const struct idm_translation *row;
	struct idm_service_key peer;

	socket_peer4(ctx, &peer);
	row = service_asked(bpf_get_socket_cookie(ctx), &peer.address, peer.port);
	if (row)
		socket_name4(ctx, &row->address, row->port);
	return SOCKET_PROCEED;
}

static __always_inline int socket_restore6(struct bpf_sock_addr *ctx)
{
	const struct idm_translation *row;
	struct idm_service_key peer;

	socket_peer6(ctx, &peer);
	row = service_asked(bpf_get_socket_cookie(ctx), &peer.address, peer.port);
	if (row)
		socket_name6(ctx, &row->address, row->port);
	return SOCKET_PROCEED;
}

#endif
