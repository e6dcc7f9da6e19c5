/* SPDX-License-Identifier: Apache-2.0 */
/* Checks table 1: identities, endpoints and the addresses that lead to them. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "resolve.h"

static int read_sections(struct idm_check *check, struct idm_identities *ret, uint32_t *meta_count)
{
	const struct idm_shape shapes[IDM_ID_SECTIONS] = {
		{"META", sizeof(*ret->meta), (const void **)&ret->meta, meta_count, NULL},
		{"IDENTITIES", sizeof(*ret->identities), (const void **)&ret->identities, &ret->identity_count, NULL},
		{"LABELS", sizeof(*ret->labels), (const void **)&ret->labels, &ret->label_count, NULL},
		{"NAMED", sizeof(*ret->named), (const void **)&ret->named, &ret->named_count, NULL},
		{"ENDPOINTS", sizeof(*ret->endpoints), (const void **)&ret->endpoints, &ret->endpoint_count, NULL},
		{"HOSTS", sizeof(*ret->hosts), (const void **)&ret->hosts, &ret->host_count, NULL},
		{"RANGES4", sizeof(*ret->ranges4), (const void **)&ret->ranges4, &ret->range4_count, NULL},
		{"RANGES6", sizeof(*ret->ranges6), (const void **)&ret->ranges6, &ret->range6_count, NULL},
		{"STRINGS", 1, (const void **)&ret->strings, &ret->string_size, NULL},
	};

	return idm_check_sections(check, shapes, IDM_ID_SECTIONS);
}

static bool named_rises(const void *context, uint32_t i)
{
	const struct idm_named_port *a = &((const struct idm_identities *)context)->named[i - 1];
	const struct idm_named_port *b = a + 1;

	return a->protocol < b->protocol || (a->protocol == b->protocol && a->port <= b->port);
}

static int check_owner(struct idm_check *check, const struct idm_identities *table, const uint32_t *named_ends,
		       uint32_t first, uint32_t count, const char *section, uint32_t index)
{
	if (!idm_in_range(first, count, table->named_count))
		return idm_bad(check, section, index, "named ports leave NAMED");
	if (!idm_runs_hold(named_ends, first, count))
		return idm_bad(check, section, index, "named ports do not rise by (protocol, port)");
	return 0;
}

static int check_items(struct idm_check *check, const struct idm_identities *table, const uint32_t *named_ends)
{
	int r = 0;

	for (uint32_t i = 0; i < table->identity_count && !r; i++) {
		const struct idm_identity *identity = &table->identities[i];

		if (i && identity[-1].id >= identity->id)
			return idm_bad(check, "IDENTITIES", i, "not rising by id");
		if (!idm_in_range(identity->first_label, identity->label_count, table->label_count))
			return idm_bad(check, "IDENTITIES", i, "labels leave LABELS");
		r = check_owner(check, table, named_ends, identity->first_named, identity->named_count, "IDENTITIES", i);
	}
	for (uint32_t i = 0; i < table->endpoint_count && !r; i++) {
		const struct idm_endpoint *endpoint = &table->endpoints[i];

		if (!idm_string_fits(check, endpoint->name))
			return idm_bad(check, "ENDPOINTS", i, "name leaves STRINGS");
		if (idm_identity_find(table, endpoint->identity) == IDM_NONE)
			return idm_bad(check, "ENDPOINTS", i, "its identity is not in IDENTITIES");
		r = check_owner(check, table, named_ends, endpoint->first_named, endpoint->named_count, "ENDPOINTS", i);
	}
	return r;
}

static int check_strings(struct idm_check *check, const struct idm_identities *table)
{
	for (uint32_t i = 0; i < table->label_count; i++)
		if (!idm_string_fits(check, table->labels[i]))
			return idm_bad(check, "LABELS", i, "text leaves STRINGS");
	for (uint32_t i = 0; i < table->named_count; i++)
		if (!idm_string_fits(check, table->named[i].name))
			return idm_bad(check, "NAMED", i, "name leaves STRINGS");
	return 0;
}

// Every host must be what a lookup of its own address finds: no item hidden behind an empty slot, a twin or the bound.
static int check_hosts(struct idm_check *check, const struct idm_identities *table)
{
	if (table->host_count & (table->host_count - 1))
		return idm_bad(check, "HOSTS", 0, "count is not a power of two");
	if (table->meta->host_probe_max > IDM_PROBE_LIMIT)
		return idm_bad(check, "META", 0, "host_probe_max over this engine's limit");
	for (uint32_t i = 0; i < table->host_count; i++) {
		const struct idm_host *host = &table->hosts[i];

		if (!host->family)
			continue;
		if (host->family != 4 && host->family != 6)
			return idm_bad(check, "HOSTS", i, "unknown family");
		if (host->endpoint != IDM_NONE && host->endpoint >= table->endpoint_count)
			return idm_bad(check, "HOSTS", i, "no such endpoint");
		if (idm_host_find(table, host->family, host->address) != host)
			return idm_bad(check, "HOSTS", i, "a lookup does not find it");
	}
	return 0;
}

static int check_ranges(struct idm_check *check, const struct idm_identities *table)
{
	static const uint8_t zero[16];

	if (table->range4_count && memcmp(table->ranges4[0].first, zero, 4) != 0)
		return idm_bad(check, "RANGES4", 0, "does not start at 0.0.0.0");
	if (table->range6_count && memcmp(table->ranges6[0].first, zero, 16) != 0)
		return idm_bad(check, "RANGES6", 0, "does not start at ::");
	for (uint32_t i = 1; i < table->range4_count; i++)
		if (memcmp(table->ranges4[i - 1].first, table->ranges4[i].first, 4) >= 0)
			return idm_bad(check, "RANGES4", i, "not rising");
	for (uint32_t i = 1; i < table->range6_count; i++)
		if (memcmp(table->ranges6[i - 1].first, table->ranges6[i].first, 16) >= 0)
			return idm_bad(check, "RANGES6", i, "not rising");
	return 0;
}

int idm_check_identities(struct idm_check *check, struct idm_identities *ret)
{
	uint32_t meta_count = 0, *named_ends;
	int r = read_sections(check, ret, &meta_count);

	if (r)
		return r;
	if (meta_count != 1)
		return idm_bad(check, "META", 0, "must hold exactly one item");
	r = check_strings(check, ret);
	if (r)
		return r;
	r = idm_runs_create(ret, ret->named_count, named_rises, &named_ends);
	if (r)
		return r;
	r = check_items(check, ret, named_ends);
	free(named_ends);
	if (!r)
		r = check_hosts(check, ret);
	return r ? r : check_ranges(check, ret);
}
