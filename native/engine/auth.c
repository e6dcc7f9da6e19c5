/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Authentication that a flow's winner demands, see policy-semantics 15. Entries of one peer and port key are one entry
 * in Cilium's map, whichever selector brought them: of their modes the highest counts. If none of them names one, the
 * narrowest broader entry that matched the same flow lends its mode. An explicit "disabled" is a mode.
 */
#include "decide.h"

struct key {
	uint32_t first, last;
	uint8_t protocol;
};

static struct key key_of(const struct idm_entry *entry, const struct idm_refs *list)
{
	uint32_t first = list->named ? list->resolved : entry->first_port;

	return (struct key){
		.first = first,
		.last = entry->last_port > first ? entry->last_port : first,
		.protocol = entry->protocol,
	};
}

static bool covers(struct key broad, struct key narrow)
{
	if (!broad.protocol)
		return true;
	return broad.protocol == narrow.protocol && broad.first <= narrow.first && broad.last >= narrow.last;
}

static bool may_lend(const struct idm_look *look, const struct idm_entry *entry, const struct idm_refs *list,
		     const struct idm_winner *winner)
{
	if (entry->auth == IDM_AUTH_UNSET || entry->verdict == IDM_ENTRY_DENY || !idm_reachable(look, entry))
		return false;
	// Only the same identity's or anyone's: an entry for one peer says nothing of an entry for all.
	if (entry->selector != IDM_ANY && winner->entry->selector == IDM_ANY)
		return false;
	return covers(key_of(entry, list), key_of(winner->entry, &winner->list));
}

// Another selector's entry for the winner's own key.
static bool is_twin(const struct idm_entry *entry, const struct idm_refs *list, const struct idm_winner *winner)
{
	struct key one = key_of(entry, list), other = key_of(winner->entry, &winner->list);

	return (entry->selector == IDM_ANY) == (winner->entry->selector == IDM_ANY) &&
	       one.protocol == other.protocol && (!one.protocol || (one.first == other.first && one.last == other.last));
}

uint8_t idm_auth_demanded(const struct idm_look *look, const struct idm_winner *winner)
{
	uint32_t best_width = UINT32_MAX;
	uint8_t best = IDM_AUTH_UNSET, own = IDM_AUTH_UNSET;
	struct idm_walk walk;
	struct idm_refs list;

	if (!look->policies->has_auth)
		return IDM_AUTH_UNSET;
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];
			uint32_t width = idm_entry_width(entry, &list);

			if (!may_lend(look, entry, &list, winner))
				continue;
			if (is_twin(entry, &list, winner) && entry->auth > own)
				own = entry->auth;
			if (width > best_width)
				continue;
			if (width < best_width || entry->auth > best)
				best = entry->auth;
			best_width = width;
		}
	}
	return own != IDM_AUTH_UNSET ? own : best;
}
