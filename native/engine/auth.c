/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Authentication that a flow demands, see policy-semantics 9 and 15. Cilium keeps two maps of longest prefixes, one for
 * the peer's own identity and one for anybody, and a range stands in them as aligned blocks of ports. Within a map a
 * prefix without a mode inherits the next broader written one; between the maps a mode passes only at equal precedence.
 * An explicit "disabled" is a mode.
 */
#include "decide.h"

// All traffic, all ports, then blocks of half the size each, down to the single port.
#define PREFIXES 18

struct prefix {
	uint32_t precedence; // 0: nothing here
	uint8_t auth;
};

// What one map answers. prefix is -1 if it holds nothing for the flow.
struct answer {
	int prefix;
	uint32_t precedence;
	uint8_t auth;
	bool written; // the mode stands on the prefix itself
};

// How many bits longer than all traffic the key's block around the flow's port is.
static int prefix_of(const struct idm_look *look, const struct idm_entry *entry, const struct idm_refs *list)
{
	uint32_t first = list->named ? list->resolved : entry->first_port, port = look->port;
	uint32_t last = entry->last_port > first ? entry->last_port : first;
	int prefix = PREFIXES - 1;

	if (!entry->protocol)
		return 0;
	for (uint32_t size = 2; size <= 0x10000 && prefix > 1; size *= 2, prefix--) {
		uint32_t start = port & ~(size - 1);

		if (start < first || start + size - 1 > last)
			break;
	}
	return prefix;
}

static void note(struct prefix *prefix, const struct idm_entry *entry)
{
	if (entry->precedence > prefix->precedence)
		prefix->precedence = entry->precedence;
	if (entry->auth > prefix->auth)
		prefix->auth = entry->auth;
}

// A narrower prefix below a broader one's precedence is not there, unless a mode is written on it: then it is lifted.
static struct answer ask_map(const struct prefix *prefixes)
{
	struct answer ret = {.prefix = -1, .auth = IDM_AUTH_UNSET};
	uint8_t lent = IDM_AUTH_UNSET;

	for (int i = 0; i < PREFIXES; i++) {
		const struct prefix *prefix = &prefixes[i];
		bool written = prefix->auth != IDM_AUTH_UNSET;

		if (!prefix->precedence || (!written && prefix->precedence < ret.precedence))
			continue;
		if (written)
			lent = prefix->auth;
		ret.prefix = i;
		ret.auth = lent;
		ret.written = written;
		if (prefix->precedence > ret.precedence)
			ret.precedence = prefix->precedence;
	}
	return ret;
}

static uint8_t of_both(struct answer own, struct answer any)
{
	const struct answer *chosen = any.prefix > own.prefix ? &any : &own;
	const struct answer *other = chosen == &own ? &any : &own;

	if (own.precedence != any.precedence)
		return own.precedence > any.precedence ? own.auth : any.auth;
	return chosen->written || chosen->auth > other->auth ? chosen->auth : other->auth;
}

uint8_t idm_auth_demanded(const struct idm_look *look)
{
	struct prefix own[PREFIXES] = {{0}}, any[PREFIXES] = {{0}};
	struct idm_walk walk;
	struct idm_refs list;

	if (!look->policies->has_auth)
		return IDM_AUTH_UNSET;
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];
			struct prefix *prefixes = entry->selector == IDM_ANY ? any : own;

			if (entry->verdict != IDM_ENTRY_DENY && idm_reachable(look, entry))
				note(&prefixes[prefix_of(look, entry, &list)], entry);
		}
	}
	return of_both(ask_map(own), ask_map(any));
}
