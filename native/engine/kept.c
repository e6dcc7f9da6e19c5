/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Headers for flow records. A header is shown if a rule of a deciding list names it, and hidden wherever any rule of
 * the table compares that header with a Secret: another rule's interest in it must not disclose the value.
 */
#include "kept.h"

#include <errno.h>
#include <stdlib.h>

#include "headers.h"

struct kept_name {
	struct idm_bytes text; // lower case, in the table's strings
	bool secret;
};

struct kept_set {
	uint64_t sizes; // bit (size & 63) of each name: most headers of a request are passed over by it
	uint32_t first;
	uint32_t count;
	bool cut;
};

struct idm_kept {
	struct kept_name *names; // rising within a set
	uint32_t name_count, name_room;
	struct kept_set *sets;
	uint64_t work; // lists may share groups, and groups predicates: what reading all of them may cost
};

/* Names that some rule compares with a Secret, rising. */
struct secrets {
	struct idm_bytes *names;
	size_t count;
};

static int order(const void *a, const void *b)
{
	return idm_header_name_order(*(const struct idm_bytes *)a, *(const struct idm_bytes *)b);
}

static int find_secrets(const struct idm_policies *table, struct secrets *ret)
{
	ret->count = 0;
	ret->names = calloc((size_t)table->http_predicate_count + 1, sizeof(*ret->names));
	if (!ret->names)
		return -ENOMEM;
	for (uint32_t i = 0; i < table->http_predicate_count; i++)
		if (table->http_predicates[i].secret)
			ret->names[ret->count++] = idm_text(table->strings, table->http_predicates[i].name);
	qsort(ret->names, ret->count, sizeof(*ret->names), order);
	return 0;
}

static bool is_secret(const struct secrets *secrets, struct idm_bytes name)
{
	return bsearch(&name, secrets->names, secrets->count, sizeof(*secrets->names), order);
}

// Where a name stands among a set's, or would stand.
static uint32_t place(const struct idm_kept *kept, const struct kept_set *set, struct idm_bytes name, bool *found)
{
	uint32_t low = set->first, high = set->first + set->count;

	*found = false;
	while (low < high && !*found) {
		uint32_t middle = low + (high - low) / 2;
		int side = idm_header_name_order(name, kept->names[middle].text);

		*found = !side;
		if (side > 0)
			low = middle + 1;
		else
			high = middle;
	}
	return *found ? high : low;
}

static int make_room(struct idm_kept *kept)
{
	uint32_t room = kept->name_room ? kept->name_room * 2 : 64;
	struct kept_name *names;

	if (kept->name_count < kept->name_room)
		return 0;
	names = realloc(kept->names, room * sizeof(*names));
	if (!names)
		return -ENOMEM;
	kept->names = names;
	kept->name_room = room;
	return 0;
}

static int add_name(struct idm_kept *kept, struct kept_set *set, const struct secrets *secrets, struct idm_bytes name)
{
	bool found;
	uint32_t at = place(kept, set, name, &found);

	if (found)
		return 0;
	if (set->count == IDM_KEPT_NAMES_MAX) {
		set->cut = true;
		return 0;
	}
	if (make_room(kept))
		return -ENOMEM;
	memmove(&kept->names[at + 1], &kept->names[at], (kept->name_count - at) * sizeof(*kept->names));
	kept->names[at] = (struct kept_name){.text = name, .secret = is_secret(secrets, name)};
	kept->name_count++;
	set->count++;
	set->sizes |= UINT64_C(1) << (name.size & 63);
	return 0;
}

static int add_groups(const struct idm_policies *table, struct idm_kept *kept, struct kept_set *set,
		      const struct secrets *secrets, uint32_t first_ref, uint32_t count)
{
	int r = 0;

	for (uint32_t i = 0; i < count && !r; i++) {
		const struct idm_http_group *group = &table->http_groups[table->http_group_refs[first_ref + i]];

		if (kept->work <= group->predicate_count) {
			set->cut = true;
			return 0;
		}
		kept->work -= group->predicate_count + 1;
		for (uint32_t j = 0; j < group->predicate_count && !r; j++)
			r = add_name(kept, set, secrets,
				     idm_text(table->strings, table->http_predicates[group->first_predicate + j].name));
	}
	return r;
}

static int add_set(const struct idm_policies *table, struct idm_kept *kept, const struct secrets *secrets, uint32_t index)
{
	const struct idm_http_set *http = &table->http_sets[index];
	struct kept_set *set = &kept->sets[index];
	int r;

	set->first = kept->name_count;
	r = add_groups(table, kept, set, secrets, http->first_always, http->always_count);
	for (uint32_t i = 0; i < http->slot_count && !r; i++) {
		const struct idm_http_slot *slot = &table->http_slots[http->first_slot + i];

		if (slot->hash)
			r = add_groups(table, kept, set, secrets, slot->first_group, slot->group_count);
	}
	return r;
}

static bool reads_headers(const struct idm_policies *table)
{
	for (uint32_t i = 0; i < table->http_set_count; i++)
		if (table->http_reads[i])
			return true;
	return false;
}

int idm_kept_create(struct idm_policies *policies)
{
	struct secrets secrets;
	struct idm_kept *kept;
	int r;

	policies->kept = NULL;
	if (!reads_headers(policies))
		return 0;
	policies->kept = kept = calloc(1, sizeof(*kept));
	if (!kept)
		return -ENOMEM;
	kept->sets = calloc(policies->http_set_count, sizeof(*kept->sets));
	if (!kept->sets || find_secrets(policies, &secrets))
		return -ENOMEM;
	// What the compiler writes is read once each.
	kept->work = UINT64_C(16) * ((uint64_t)policies->http_group_ref_count + policies->http_predicate_count) + 65536;
	r = 0;
	for (uint32_t i = 0; i < policies->http_set_count && !r; i++)
		if (policies->http_reads[i])
			r = add_set(policies, kept, &secrets, i);
	free(secrets.names);
	return r;
}

void idm_kept_destroy(struct idm_kept *kept)
{
	if (!kept)
		return;
	free(kept->names);
	free(kept->sets);
	free(kept);
}

// --- one request ---

static const struct kept_name *find_name(const struct idm_kept *kept, const struct kept_set *set, struct idm_bytes name)
{
	bool found;
	uint32_t at;

	if (!(set->sizes >> (name.size & 63) & 1))
		return NULL;
	at = place(kept, set, name, &found);
	return found ? &kept->names[at] : NULL;
}

// The sets that judged requests of these entries; each once.
static size_t sets_of(const struct idm_policies *table, const uint32_t *entries, size_t count,
		      const struct kept_set *ret[IDM_KEPT_ENTRIES_MAX])
{
	size_t found = 0;

	for (size_t i = 0; i < count && found < IDM_KEPT_ENTRIES_MAX; i++) {
		const struct idm_entry *entry;
		const struct kept_set *set;
		bool known = false;

		if (entries[i] >= table->entry_count)
			continue;
		entry = &table->entries[entries[i]];
		if (entry->l7 != IDM_L7_HTTP || entry->l7_set == IDM_NONE)
			continue;
		set = &table->kept->sets[entry->l7_set];
		for (size_t j = 0; j < found; j++)
			known |= ret[j] == set;
		if (!known && (set->count || set->cut))
			ret[found++] = set;
	}
	return found;
}

size_t idm_kept_headers(const struct idm_snapshot *snapshot, const uint32_t *entries, size_t entry_count,
			const struct idm_http *http, struct idm_header_line lines[IDM_KEPT_LINES_MAX], int *cut)
{
	static const struct idm_bytes hidden = {.ptr = NULL, .size = 1};
	const struct idm_policies *table = idm_policies(snapshot);
	const struct kept_set *sets[IDM_KEPT_ENTRIES_MAX];
	size_t set_count, kept = 0;

	*cut = 0;
	if (!table->kept)
		return 0;
	set_count = sets_of(table, entries, entry_count, sets);
	for (size_t j = 0; j < set_count; j++)
		*cut |= sets[j]->cut;
	for (size_t i = 0; i < http->header_count && set_count; i++) {
		const struct idm_header_line *line = &http->headers[i];
		const struct kept_name *name = NULL;

		for (size_t j = 0; j < set_count && !name; j++)
			name = find_name(table->kept, sets[j], line->name);
		if (!name)
			continue;
		if (kept == IDM_KEPT_LINES_MAX) {
			*cut = 1;
			break;
		}
		lines[kept].name = line->name;
		lines[kept++].value = name->secret ? hidden : line->value;
	}
	return kept;
}
