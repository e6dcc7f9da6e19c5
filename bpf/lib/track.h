/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections: rows that say who opened what, and that a revision allowed it. A row is only a memory of an answer: one
 * that is missing, too old or another packet's means that policy is asked, never that something was established.
 */
#ifndef IDMESH_TRACK_H
#define IDMESH_TRACK_H

#include "lookup.h"
#include "steer.h"

#define TRACK_NS_S 1000000000ull

/* A packet on its way to a verdict. */
struct flow {
	struct packet packet;
	struct idm_connection_key key __attribute__((aligned(8)));
	struct idm_connection connection; // as judged just now
	struct live live;
	uint64_t now_ns; // CLOCK_BOOTTIME
	uint32_t hook;
	int action;             // TC's, if nothing is denied
	uint8_t reversed;       // the packet goes from the connection's destination to its source
	uint8_t high;           // its sender is the key's high end
	uint8_t judged;         // connection and answer are filled
	uint8_t error;          // the packet is an ICMP error about this connection
	uint8_t direction;      // of the verdict that counts
	uint8_t verdict;        // idm_verdict_code
	uint8_t drop_reason;
	uint8_t match_type;
};

// Reading the clock costs as much as finding a row: once a tick is enough for rows that live for seconds.
struct track_clock {
	uint64_t tick; // jiffies
	uint64_t now_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, uint32_t);
	__type(value, struct track_clock);
	__uint(max_entries, 1);
} track_clocks SEC(".maps");

/* CLOCK_BOOTTIME, as this processor read it within the running tick. */
static __always_inline uint64_t track_time_ns(void)
{
	uint32_t first = 0;
	struct track_clock *clock = bpf_map_lookup_elem(&track_clocks, &first);
	uint64_t tick = bpf_jiffies64();

	// The row always exists; the verifier wants to see it asked.
	if (!clock)
		return bpf_ktime_get_boot_ns();
	if (clock->tick != tick) {
		clock->tick = tick;
		clock->now_ns = bpf_ktime_get_boot_ns();
	}
	return clock->now_ns;
}

static __always_inline uint32_t track_now(const struct flow *flow)
{
	return flow->now_ns / TRACK_NS_S;
}

static __always_inline uint64_t track_half(const struct idm_address *address, int index)
{
	uint64_t half;

	__builtin_memcpy(&half, address->bytes + index * 8, sizeof(half));
	return bpf_be64_to_cpu(half);
}

// Whether the sender is the higher end; the same order as steer_key's.
static __always_inline bool track_is_high(const struct packet *packet)
{
	uint64_t source = track_half(&packet->source, 0), destination = track_half(&packet->destination, 0);

	if (source != destination)
		return source > destination;
	source = track_half(&packet->source, 1);
	destination = track_half(&packet->destination, 1);
	if (source != destination)
		return source > destination;
	return packet->source_port > packet->destination_port;
}

static __always_inline void track_key(struct flow *flow, uint8_t leg)
{
	const struct packet *packet = &flow->packet;
	struct idm_connection_key *key = &flow->key;
	bool high = track_is_high(packet);

	if (high) {
		key->low = packet->destination;
		key->high = packet->source;
		key->low_port = packet->destination_port;
		key->high_port = packet->source_port;
	} else {
		key->low = packet->source;
		key->high = packet->destination;
		key->low_port = packet->source_port;
		key->high_port = packet->destination_port;
	}
	key->protocol = packet->protocol;
	key->leg = leg;
	key->reserved[0] = 0;
	key->reserved[1] = 0;
	flow->high = high;
}

static __always_inline uint32_t track_life_s(const struct idm_connection *row, uint8_t protocol)
{
	const uint8_t fins = IDM_TCP_FIN_SOURCE | IDM_TCP_FIN_DESTINATION;

	if (protocol != IPPROTO_TCP)
		return IDM_LIFE_OTHER_S;
	// A denied row waits as long as its ends could: else the other end's packets would open the flow anew.
	if (row->verdict == IDM_DROPPED)
		return IDM_LIFE_TCP_S;
	if (row->tcp & IDM_TCP_RST || (row->tcp & fins) == fins)
		return IDM_LIFE_CLOSING_S;
	return row->tcp & IDM_TCP_ANSWERED ? IDM_LIFE_TCP_S : IDM_LIFE_SYN_S;
}

static __always_inline bool track_reversed(const struct flow *flow, const struct idm_connection *row)
{
	return flow->high != !!(row->flags & IDM_CONNECTION_SOURCE_HIGH);
}

// Who opens a connection does not answer in it: such a packet begins another one, and is judged as that.
static __always_inline bool track_is_other(const struct flow *flow, const struct idm_connection *row, bool reversed)
{
	uint8_t flags = flow->packet.flags;

	if (reversed)
		return flags & PACKET_OPENS;
	// Envoy's connect has written its row anew before its SYN.
	if (flow->key.leg == IDM_LEG_PROXY)
		return false;
	if (flags & PACKET_ANSWERS)
		return true;
	return flags & PACKET_OPENS &&
	       (row->verdict == IDM_DROPPED || row->tcp & (IDM_TCP_FIN_SOURCE | IDM_TCP_FIN_DESTINATION | IDM_TCP_RST));
}

/* The packet's row on the leg of flow->key, or NULL. Sets flow->reversed. */
static __always_inline struct idm_connection *track_find(struct flow *flow)
{
	struct idm_connection *row = bpf_map_lookup_elem(&connections, &flow->key);
	uint32_t idle_s;
	bool reversed;

	// New, forgotten by the LRU, or never allowed.
	if (!row)
		return NULL;
	reversed = track_reversed(flow, row);
	if (!flow->error && track_is_other(flow, row, reversed))
		return NULL;
	idle_s = track_now(flow) - row->seen_s;
	// Below zero: another processor saw a later packet just now.
	if ((int32_t)idle_s > (int32_t)track_life_s(row, flow->key.protocol))
		return NULL;
	flow->reversed = reversed;
	return row;
}

static __always_inline uint8_t track_tcp(const struct flow *flow)
{
	uint8_t flags = flow->packet.tcp_flags, seen = 0;

	if (flow->reversed)
		seen |= IDM_TCP_ANSWERED;
	else if (flags & TCP_SYN)
		seen |= IDM_TCP_SYN;
	if (flags & TCP_FIN)
		seen |= flow->reversed ? IDM_TCP_FIN_DESTINATION : IDM_TCP_FIN_SOURCE;
	if (flags & TCP_RST)
		seen |= IDM_TCP_RST;
	return seen;
}

/* Note a packet that passes. Errors say nothing of the connection's life. Writes only what changes: rows are shared. */
static __always_inline void track_touch(const struct flow *flow, struct idm_connection *row)
{
	uint32_t now = track_now(flow);

	if (flow->error)
		return;
	if (row->seen_s != now)
		row->seen_s = now;
	row->packets++;
	if (flow->key.protocol == IPPROTO_TCP) {
		uint8_t tcp = row->tcp | track_tcp(flow);

		if (tcp != row->tcp)
			row->tcp = tcp;
	}
}

/* Keep the answer for the packets that follow. */
static __always_inline int track_open(struct flow *flow)
{
	struct idm_connection *row = &flow->connection;

	row->seen_s = track_now(flow);
	row->opened_ns = flow->now_ns;
	row->packets = 1;
	row->tcp = flow->key.protocol == IPPROTO_TCP ? track_tcp(flow) : 0;
	// Without a row Envoy would not know the client and replies would be denied: nothing passes instead.
	return bpf_map_update_elem(&connections, &flow->key, row, BPF_ANY) ? IDM_PACKET_MAP_FULL : 0;
}

#define TRACK_CLAIMED 0xffffffffu // a generation that no revision has: somebody is writing the row

/*
 * Take a row for writing: two processors that judged it by two revisions must not mix their answers. False: somebody
 * else is writing it; what was judged here holds for this packet alone, and the next one asks again.
 */
static __always_inline bool track_claim(struct idm_connection *row)
{
	uint32_t seen = *(volatile uint32_t *)&row->generation;

	return seen != TRACK_CLAIMED && __sync_val_compare_and_swap(&row->generation, seen, TRACK_CLAIMED) == seen;
}

// Everything that was written stands before the generation does.
static __always_inline void track_release(struct idm_connection *row, uint32_t generation)
{
	__sync_lock_test_and_set(&row->generation, generation);
}

/* Write a new answer into a row that stands. */
static __always_inline void track_renew(const struct flow *flow, struct idm_connection *row)
{
	const struct idm_connection *now = &flow->connection;

	if (!track_claim(row))
		return;
	row->revision = now->revision;
	row->source_identity = now->source_identity;
	row->destination_identity = now->destination_identity;
	row->source_endpoint = now->source_endpoint;
	row->destination_endpoint = now->destination_endpoint;
	row->source_ifindex = now->source_ifindex;
	row->destination_ifindex = now->destination_ifindex;
	row->egress_entry = now->egress_entry;
	row->ingress_entry = now->ingress_entry;
	row->token = now->token;
	row->verdict = now->verdict;
	row->flags = now->flags;
	row->l7 = now->l7;
	track_release(row, now->generation);
}

/* Remember that the flow is denied: its other end cannot open it either, but by a SYN of its own. */
static __always_inline void track_bury(const struct flow *flow, struct idm_connection *row)
{
	if (!track_claim(row))
		return;
	row->verdict = IDM_DROPPED;
	if (flow->key.protocol == IPPROTO_TCP)
		row->seen_s = track_now(flow);
	track_release(row, flow->live.generation);
}

#endif
