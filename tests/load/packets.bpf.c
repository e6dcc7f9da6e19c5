/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Measures from_workload on packets that are never the same twice: a hot repeated packet finds every row in the cache.
 *
 * next_packet writes random ends into the frame and then jumps: to nothing (what the measuring itself costs), to the
 * bare lookups of a first packet, or to the program. Keys are those of table_packets.py.
 */
#include "maps.h"
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, uint32_t);
	__type(value, uint32_t);
	__uint(max_entries, 8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} measured_jumps SEC(".maps");

struct plan {
	uint32_t endpoints; // addresses FIRST to FIRST + endpoints - 1; the upper half is elsewhere on this host
	uint32_t flows;     // 0: every packet begins a new one
	uint32_t jump;
	uint32_t walk; // 1: flows one after the other
	uint32_t at;
	uint32_t policies;
	uint32_t identities;
	uint32_t spans; // of every list
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, uint32_t);
	__type(value, struct plan);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} measured_plan SEC(".maps");

#define FIRST 0x0a000000u /* 10.0.0.0 */
#define ENDS_AT 26        /* addresses, and behind them TCP's ports */

struct ends {
	uint32_t source_be;
	uint32_t destination_be;
	uint16_t source_port_be;
	uint16_t destination_port_be;
};

static __always_inline uint32_t mixed(uint32_t number)
{
	number ^= number >> 16;
	number *= 0x7feb352d;
	number ^= number >> 15;
	number *= 0x846ca68b;
	return number ^ number >> 16;
}

SEC("tc")
int next_packet(struct __sk_buff *skb)
{
	uint32_t row = 0, number, other;
	struct plan *plan = bpf_map_lookup_elem(&measured_plan, &row);
	struct ends ends;

	if (!plan || plan->endpoints < 2)
		return 2;
	number = plan->walk ? plan->at++ : bpf_get_prandom_u32();
	if (plan->flows)
		number = mixed(number % plan->flows);
	other = mixed(number ^ 0x9e3779b9);
	ends.source_be = bpf_htonl(FIRST + number % (plan->endpoints / 2));
	ends.destination_be = bpf_htonl(FIRST + plan->endpoints / 2 + other % (plan->endpoints / 2));
	ends.source_port_be = number >> 16;
	ends.destination_port_be = other >> 16;
	bpf_skb_store_bytes(skb, ENDS_AT, &ends, sizeof(ends), 0);
	skb->cb[0] = ends.source_be;
	skb->cb[1] = ends.destination_be;
	skb->cb[2] = (uint32_t)ends.source_port_be << 16 | ends.destination_port_be;
	bpf_tail_call(skb, &measured_jumps, plan->jump);
	return 2;
}

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	return skb->len > 0xffff;
}

static __always_inline void address_of(uint32_t address_be, struct idm_address *ret)
{
	uint32_t words[4] = {0, 0, bpf_htonl(0xffff), address_be};

	__builtin_memcpy(ret, words, sizeof(words));
}

// What one direction reads: its side, the peer's list, the spans of a binary search.
static __always_inline uint32_t bare_direction(const struct plan *plan, const struct idm_endpoint_row *subject,
					       uint32_t peer, uint32_t direction, uint32_t port)
{
	struct idm_peer_key key = {.side = subject->policy * 2 + direction, .identity = peer};
	const struct idm_side_row *side = bpf_map_lookup_elem(&sides_1, &key.side);
	const struct idm_ports *ports = bpf_map_lookup_elem(&peers_1, &key);
	uint32_t found = 0, low = 0, high;

	if (!side || !ports)
		return 0;
	high = ports->count;
	for (int i = 0; i < 6 && low < high; i++) {
		uint32_t middle = (low + high) >> 1, index = ports->first + middle;
		const struct idm_span_row *span = bpf_map_lookup_elem(&spans, &index);

		if (!span)
			return 0;
		found = span->verdict;
		if (span->first_port <= port)
			low = middle + 1;
		else
			high = middle;
	}
	return found;
}

static __always_inline int bare_lookups(struct __sk_buff *skb, bool insert)
{
	struct idm_address source __attribute__((aligned(8))), destination __attribute__((aligned(8)));
	struct idm_connection_key key __attribute__((aligned(8))) = {.protocol = 6};
	uint32_t row = 0, ifindex = skb->ifindex, found;
	const struct plan *plan = bpf_map_lookup_elem(&measured_plan, &row);
	const struct idm_endpoint_row *from, *to;
	struct idm_connection connection = {};

	if (!plan || !bpf_map_lookup_elem(&state, &row) || !bpf_map_lookup_elem(&attachments, &ifindex))
		return 2;
	address_of(skb->cb[0], &source);
	address_of(skb->cb[1], &destination);
	key.low = source;
	key.high = destination;
	key.low_port = skb->cb[2] >> 16;
	key.high_port = skb->cb[2];
	found = !!bpf_map_lookup_elem(&connections, &key);
	from = bpf_map_lookup_elem(&endpoints_1, &source);
	to = bpf_map_lookup_elem(&endpoints_1, &destination);
	if (!from || !to)
		return 2;
	found += bare_direction(plan, from, to->identity, 1, bpf_ntohs(skb->cb[2] & 0xffff));
	found += bare_direction(plan, to, from->identity, 0, bpf_ntohs(skb->cb[2] & 0xffff));
	if (insert)
		found += bpf_map_update_elem(&connections, &key, &connection, BPF_ANY);
	return found;
}

SEC("tc")
int bare_first(struct __sk_buff *skb)
{
	return bare_lookups(skb, false);
}

SEC("tc")
int bare_first_kept(struct __sk_buff *skb)
{
	return bare_lookups(skb, true);
}

// What a known packet cannot do without: the word, the interface, its row.
SEC("tc")
int bare_known(struct __sk_buff *skb)
{
	struct idm_connection_key key __attribute__((aligned(8))) = {.protocol = 6};
	struct idm_address source __attribute__((aligned(8))), destination __attribute__((aligned(8)));
	uint32_t row = 0, ifindex = skb->ifindex;

	if (!bpf_map_lookup_elem(&state, &row) || !bpf_map_lookup_elem(&attachments, &ifindex))
		return 2;
	address_of(skb->cb[0], &source);
	address_of(skb->cb[1], &destination);
	key.low = source;
	key.high = destination;
	key.low_port = bpf_ntohs(skb->cb[2] >> 16);
	key.high_port = bpf_ntohs(skb->cb[2]);
	return bpf_map_lookup_elem(&connections, &key) ? 0 : 2;
}
