// SPDX-License-Identifier: Apache-2.0
// Tables were checked when the snapshot was loaded; here indexes are only checked against their section.

#include "view.h"

#include <string.h>

struct table {
	const char *bytes;
	const struct idm_section *sections;
};

static bool open_table(const struct idm_snapshot *snapshot, uint32_t kind, struct table *ret)
{
	size_t size;

	ret->bytes = idm_snapshot_table(snapshot, kind, &size);
	ret->sections = (const void *)ret->bytes;
	return ret->bytes;
}

static const void *item(const struct table *table, uint32_t section, uint32_t index)
{
	const struct idm_section *found = &table->sections[section];

	return index < found->count ? table->bytes + found->offset + (uint64_t)index * found->item_size : NULL;
}

static struct idm_bytes text(const struct table *table, uint32_t section, const struct idm_string *string)
{
	return (struct idm_bytes){table->bytes + table->sections[section].offset + string->offset, string->size};
}

const struct idm_endpoint *view_endpoint(const struct idm_snapshot *snapshot, uint32_t index)
{
	struct table table;

	return open_table(snapshot, IDM_TABLE_IDENTITIES, &table) ? item(&table, IDM_ID_ENDPOINTS, index) : NULL;
}

static bool named(const struct table *table, uint32_t index, struct idm_bytes name)
{
	const struct idm_endpoint *endpoint = item(table, IDM_ID_ENDPOINTS, index);
	struct idm_bytes own;

	if (!endpoint || endpoint->name.size != name.size)
		return false;
	own = text(table, IDM_ID_STRINGS, &endpoint->name);
	return !memcmp(own.ptr, name.ptr, name.size);
}

uint32_t view_endpoint_by_name(const struct idm_snapshot *snapshot, struct idm_bytes name, uint32_t *hint)
{
	struct table table;

	if (!open_table(snapshot, IDM_TABLE_IDENTITIES, &table))
		return IDM_NONE;
	if (named(&table, *hint, name))
		return *hint;
	for (uint32_t i = 0; i < table.sections[IDM_ID_ENDPOINTS].count; i++) {
		if (named(&table, i, name)) {
			*hint = i;
			return i;
		}
	}
	return IDM_NONE;
}

static const struct idm_rule *find_rule(const struct table *table, uint32_t entry, uint32_t http_rule)
{
	const struct idm_http_rule *http = item(table, IDM_POL_HTTP_RULES, http_rule);
	const struct idm_entry *found;
	const uint32_t *origin;

	if (http)
		return item(table, IDM_POL_RULES, http->rule);
	found = item(table, IDM_POL_ENTRIES, entry);
	origin = found && found->origin_count ? item(table, IDM_POL_ORIGINS, found->first_origin) : NULL;
	return origin ? item(table, IDM_POL_RULES, *origin) : NULL;
}

bool view_rule(const struct idm_snapshot *snapshot, uint32_t entry, uint32_t http_rule, struct view_rule *ret)
{
	const struct idm_rule *rule;
	struct table table;

	if (!open_table(snapshot, IDM_TABLE_POLICIES, &table))
		return false;
	rule = find_rule(&table, entry, http_rule);
	if (!rule)
		return false;
	ret->kind = text(&table, IDM_POL_STRINGS, &rule->kind);
	ret->name_space = text(&table, IDM_POL_STRINGS, &rule->name_space);
	ret->name = text(&table, IDM_POL_STRINGS, &rule->name);
	ret->file = text(&table, IDM_POL_STRINGS, &rule->file);
	ret->line = rule->line;
	return true;
}
