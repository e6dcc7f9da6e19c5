/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk: every list of entries that covers a flow's peer, protocol and port, one after the other, without memory.
 * Deciding is then taking the maximum, asked for again where a request has to be judged.
 */
#ifndef IDMESH_ENGINE_WALK_H
#define IDMESH_ENGINE_WALK_H

#include "internal.h"

/* One flow on one side of a policy. */
struct idm_look {
	const struct idm_policies *policies;
	const struct idm_side *side;
	const uint32_t *selected; // selectors of the peer, rising
	uint32_t selected_count;
	const struct idm_named_port *named; // names that count for this side, rising by (protocol, port)
	uint32_t named_count;
	const char *named_strings;
	uint16_t port;
	uint8_t protocol;
	uint32_t floors[IDM_TIERS]; // entries of a tier below its floor are passed over
};

struct idm_walk {
	const struct idm_look *look;
	const struct idm_row *row; // current, or NULL
	uint32_t next_row, next_selected;
	uint32_t next_named; // in the current row
	bool span_done, any_done;
};

/* Entry numbers in falling precedence, all covering the flow. */
struct idm_refs {
	const uint32_t *refs;
	uint32_t count;
	bool named;
	uint16_t resolved; // the number of the port name, if named
};

/* What an entry is ordered by, as one number: precedence, then the narrower port key, then the exact peer. */
typedef uint64_t idm_rank;

static inline void idm_walk_start(struct idm_walk *walk, const struct idm_look *look)
{
	*walk = (struct idm_walk){.look = look};
}

bool idm_walk_next(struct idm_walk *walk, struct idm_refs *ret);

/* Fill in floors. Does nothing but clear them where no entry of the table passes. */
void idm_look_floors(struct idm_look *look);

/* Highest precedence of a reachable deny entry, or 0: lists below it do not count. */
uint32_t idm_deny_floor(const struct idm_look *look);

/* Ports an entry covers, less one; all traffic is wider than all ports. refs is the list it was found in. */
static inline uint32_t idm_entry_width(const struct idm_entry *entry, const struct idm_refs *refs)
{
	if (!entry->protocol)
		return 0x10000;
	if (!refs->named)
		return (uint32_t)(entry->last_port - entry->first_port);
	return entry->last_port > refs->resolved ? (uint32_t)(entry->last_port - refs->resolved) : 0;
}

static inline idm_rank idm_entry_rank(const struct idm_entry *entry, const struct idm_refs *refs)
{
	uint32_t narrow = 0x1ffff - idm_entry_width(entry, refs);

	return (idm_rank)entry->precedence << 32 | narrow << 1 | (entry->selector != IDM_ANY);
}

/* True if an entry may decide: it is no pass itself and none stands before it in its tier. */
static inline bool idm_reachable(const struct idm_look *look, const struct idm_entry *entry)
{
	return entry->verdict != IDM_ENTRY_PASS && entry->precedence >= look->floors[entry->tier];
}

#endif
