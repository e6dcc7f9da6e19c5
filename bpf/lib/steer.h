/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Steering: how a packet of a connection that needs L7 gets to Envoy on this host.
 *
 * The mark says only that a packet is steered: a rule routes it into the host's own stack (ext_authz/datapath/routing.py)
 * where sk_lookup.bpf.c finds Envoy's listener. Who the client is stands in the connection's row, and Envoy's own
 * connection to the server is bound to the same client by a token, which its packets carry in their mark.
 */
#ifndef IDMESH_STEER_H
#define IDMESH_STEER_H

#include "maps.h"
#include <bpf/bpf_endian.h>

#define STEER_PASS (-1) /* TC_ACT_UNSPEC: to the stack, and other programs still see it */
#define STEER_DROP 2    /* TC_ACT_SHOT */
#define STEER_TRIES 8   /* at a free token: even with a million of each kind given, all fail once in 10^7 */
#define STEER_MACS 12   /* bytes of both addresses of an Ethernet header */

static __always_inline bool steer_same_address(const struct idm_address *one, const struct idm_address *other)
{
	uint32_t a[4], b[4];

	// By words: at this alignment the compiler would call memcmp, which BPF has not.
	__builtin_memcpy(a, one, sizeof(a));
	__builtin_memcpy(b, other, sizeof(b));
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline bool steer_same_client(const struct idm_grant *one, const struct idm_grant *other)
{
	return one->identity == other->identity && one->endpoint == other->endpoint && one->flags == other->flags &&
	       steer_same_address(&one->source, &other->source);
}

// Neither an endpoint nor a process of this host: of such clients there may be any number.
static __always_inline bool steer_is_outside(const struct idm_grant *grant)
{
	return grant->endpoint == IDM_NO_INDEX && !(grant->flags & (IDM_CONNECTION_HOST | IDM_CONNECTION_CGROUP));
}

/* For whom a token was given, or NULL: it never was, or was forgotten. */
static __always_inline struct idm_grant *steer_find_grant(uint32_t token)
{
	if (token & IDM_TOKEN_OUTSIDE)
		return bpf_map_lookup_elem(&grants_outside, &token);
	return bpf_map_lookup_elem(&grants, &token);
}

static __always_inline uint32_t *steer_find_token(const struct idm_token_key *client, bool outside)
{
	if (outside)
		return bpf_map_lookup_elem(&tokens_outside, client);
	return bpf_map_lookup_elem(&tokens, client);
}

// True if nobody has the token yet. Two processors may each give one to the same client: both hold, the later one is
// given again.
static __always_inline bool steer_give(uint32_t token, const struct idm_token_key *client,
				       const struct idm_grant *grant)
{
	if (token & IDM_TOKEN_OUTSIDE) {
		if (bpf_map_update_elem(&grants_outside, &token, grant, BPF_NOEXIST))
			return false;
		bpf_map_update_elem(&tokens_outside, client, &token, BPF_ANY);
	} else {
		if (bpf_map_update_elem(&grants, &token, grant, BPF_NOEXIST))
			return false;
		bpf_map_update_elem(&tokens, client, &token, BPF_ANY);
	}
	return true;
}

// A token that nobody has: given to this client. 0: none was found.
static __always_inline uint32_t steer_new_token(const struct idm_token_key *client, const struct idm_grant *grant)
{
	uint32_t kind = steer_is_outside(grant) ? IDM_TOKEN_OUTSIDE : 0;

	for (int i = 0; i < STEER_TRIES; i++) {
		uint32_t token = (bpf_get_prandom_u32() & (IDM_TOKEN_OUTSIDE - 1)) | kind;

		if (token && steer_give(token, client, grant))
			return token;
	}
	return 0;
}

/*
 * The client's token. 0: none could be given. Not static: the kernel checks it once, whatever its callers did before.
 * grant: what the token is to stand for.
 */
__noinline uint32_t steer_token(const struct idm_token_key *client, const struct idm_grant *grant)
{
	uint32_t *known;
	struct idm_grant *given;
	uint32_t token;

	if (!client || !grant)
		return 0;
	known = steer_find_token(client, steer_is_outside(grant));
	// Not known: the client is new, or forgotten. What Envoy still has open with an older token ends with its grant.
	if (!known)
		return steer_new_token(client, grant);
	token = *known;
	given = steer_find_grant(token);
	// The grant alone was forgotten, and perhaps its number was given to somebody else since.
	if (!given || !steer_same_client(given, grant))
		return steer_new_token(client, grant);
	given->generation = grant->generation;
	return token;
}

/* known: where the tables have the client, if that is not where it sends from; else NULL. */
static __always_inline bool steer_grant_known(const struct idm_connection_key *key, struct idm_connection *connection,
					      const struct idm_address *known)
{
	struct idm_token_key client = {
		.identity = connection->source_identity,
		.endpoint = connection->source_endpoint,
	};
	struct idm_grant grant = {
		.identity = connection->source_identity,
		.endpoint = connection->source_endpoint,
		.generation = connection->generation,
		.flags = connection->flags & (IDM_CONNECTION_HOST | IDM_CONNECTION_CGROUP),
	};

	if (connection->token)
		return true;
	client.source = connection->flags & IDM_CONNECTION_SOURCE_HIGH ? key->high : key->low;
	grant.source = known ? *known : client.source;
	connection->token = steer_token(&client, &grant);
	return connection->token;
}

static __always_inline bool steer_grant(const struct idm_connection_key *key, struct idm_connection *connection)
{
	return steer_grant_known(key, connection, NULL);
}

/*
 * Send a workload's packet into Envoy. Also for packets of leg 1 that the server sends back: they reach Envoy's own
 * socket the same way.
 * connection: its row, or what is about to become it; gets its token. The row must stand before the packet passes.
 * Returns the program's answer.
 */
static __always_inline int steer(struct __sk_buff *skb, struct idm_connection_key *key,
				 struct idm_connection *connection)
{
	if (!steer_grant(key, connection))
		return STEER_DROP;
	skb->mark = IDM_MARK_TO_PROXY;
	return STEER_PASS;
}

// Frames to the workload become frames from it: what the stack takes in must be addressed to this side.
static __always_inline bool steer_turn(struct __sk_buff *skb)
{
	uint8_t was[STEER_MACS], now[STEER_MACS];

	if (bpf_skb_load_bytes(skb, 0, was, sizeof(was)))
		return false;
	__builtin_memcpy(now, was + STEER_MACS / 2, STEER_MACS / 2);
	__builtin_memcpy(now + STEER_MACS / 2, was, STEER_MACS / 2);
	return !bpf_skb_store_bytes(skb, 0, now, sizeof(now), 0);
}

// To a socket of Envoy's from where it would leave for the workload: it comes in again at this interface, marked.
static __always_inline int steer_back(struct __sk_buff *skb)
{
	if (!steer_turn(skb))
		return STEER_DROP;
	skb->mark = IDM_MARK_TO_PROXY;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/*
 * The same for a packet on its way to the workload (or to a client: a reply on leg 1 that came from outside): it comes
 * in again at this interface, marked, where from_workload lets it pass to the stack.
 */
static __always_inline int steer_hairpin(struct __sk_buff *skb, struct idm_connection_key *key,
					 struct idm_connection *connection)
{
	return steer_grant(key, connection) ? steer_back(skb) : STEER_DROP;
}

// ---- rows by what sockets know of themselves ----

struct steer_end {
	struct idm_address address;
	uint32_t port;
};

/* A word of a program's context by its offset: the compiler would add to the pointer first, which is not allowed. */
#define STEER_WORD(CTX, FIELD)                                                    \
	({                                                                        \
		uint64_t word_;                                                   \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                             \
			     : "=r"(word_)                                        \
			     : "r"(CTX), "i"(__builtin_offsetof(__typeof__(*(CTX)), FIELD))); \
		(uint32_t)word_;                                                  \
	})
#define STEER_WORDS(CTX, FIELD)                                                                              \
	{                                                                                                    \
		STEER_WORD(CTX, FIELD[0]), STEER_WORD(CTX, FIELD[1]), STEER_WORD(CTX, FIELD[2]),             \
			STEER_WORD(CTX, FIELD[3])                                                            \
	}

static __always_inline struct idm_address steer_mapped(uint32_t address_be)
{
	struct idm_address mapped = {.bytes = {[10] = 0xff, [11] = 0xff}};

	__builtin_memcpy(mapped.bytes + 12, &address_be, sizeof(address_be));
	return mapped;
}

// -1, 0 or 1; as text of bytes.
static __always_inline int steer_compare(const struct idm_address *one, const struct idm_address *other)
{
	uint32_t a[4], b[4];

	__builtin_memcpy(a, one, sizeof(a));
	__builtin_memcpy(b, other, sizeof(b));
	for (int i = 0; i < 4; i++)
		if (a[i] != b[i])
			return bpf_ntohl(a[i]) < bpf_ntohl(b[i]) ? -1 : 1;
	return 0;
}

/* True if `from` became the key's high end. */
static __always_inline bool steer_key(const struct steer_end *from, const struct steer_end *to, uint8_t leg,
				      struct idm_connection_key *ret)
{
	int order = steer_compare(&from->address, &to->address);
	bool high = order > 0 || (!order && from->port > to->port);
	const struct steer_end *first = high ? to : from, *second = high ? from : to;

	__builtin_memset(ret, 0, sizeof(*ret));
	ret->low = first->address;
	ret->low_port = first->port;
	ret->high = second->address;
	ret->high_port = second->port;
	ret->protocol = IPPROTO_TCP;
	ret->leg = leg;
	return high;
}

#endif
