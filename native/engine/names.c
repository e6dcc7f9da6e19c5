/* SPDX-License-Identifier: Apache-2.0 */
/* Server names and DNS queries: one spelling, and who may ask for which name. */
#include "names.h"

#include "decide.h"

static struct idm_bytes lower(struct idm_bytes name, char *buffer)
{
	for (size_t i = 0; i < name.size; i++)
		buffer[i] = idm_lower(name.ptr[i]);
	return (struct idm_bytes){.ptr = buffer, .size = name.size};
}

struct idm_bytes idm_sni_normal(struct idm_bytes name, char *buffer)
{
	if (name.size && name.ptr[name.size - 1] == '.')
		name.size--;
	if (name.size >= IDM_NAME_MAX)
		return (struct idm_bytes){.ptr = buffer};
	return lower(name, buffer);
}

struct idm_bytes idm_dns_normal(struct idm_bytes name, char *buffer)
{
	struct idm_bytes normal;

	if (name.size && name.ptr[name.size - 1] == '.')
		name.size--;
	if (name.size >= IDM_NAME_MAX)
		return (struct idm_bytes){.ptr = buffer};
	normal = lower(name, buffer);
	buffer[normal.size++] = '.';
	return normal;
}

static bool holds_name(const struct idm_policies *policies, const struct idm_entry *entry, struct idm_bytes name)
{
	uint32_t matcher;

	if (entry->verdict == IDM_ENTRY_ALLOW)
		return true;
	if (entry->l7 != IDM_L7_DNS)
		return false;
	if (entry->l7_set == IDM_NONE)
		return true;
	matcher = policies->dns_sets[entry->l7_set].matcher;
	return matcher == IDM_NONE || idm_matches(policies, matcher, name);
}

// Lists of all selectors that select the server count together, but only those of this very port.
bool idm_dns_allowed(const struct idm_look *look, struct idm_bytes name, struct idm_winner *ret)
{
	uint32_t floor = idm_deny_floor(look);
	char buffer[IDM_NAME_MAX];
	struct idm_bytes normal = idm_dns_normal(name, buffer);
	struct idm_walk walk;
	struct idm_refs list;

	*ret = (struct idm_winner){.index = IDM_NONE};
	if (!normal.size)
		return false;
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (entry->precedence < floor)
				break;
			if (entry->flags & IDM_ENTRY_FLAG_EXACT_PORT && idm_reachable(look, entry) &&
			    holds_name(look->policies, entry, normal))
				idm_winner_offer(ret, entry, list.refs[i], &list);
		}
	}
	return ret->entry;
}
