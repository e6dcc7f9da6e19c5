/* SPDX-License-Identifier: Apache-2.0 */
/* Matching one request against one HTTP set, see struct idm_http_set. */
#include "http.h"

#include "headers.h"

int idm_http_dim_order(const struct idm_policies *policies, const struct idm_http_dim *a, const struct idm_http_dim *b)
{
	if (a->kind != b->kind)
		return a->kind < b->kind ? -1 : 1;
	return idm_header_name_order(idm_text(policies->strings, a->name), idm_text(policies->strings, b->name));
}

const struct idm_http_slot *idm_http_slot_find(const struct idm_policies *policies, const struct idm_http_set *set,
					       uint64_t hash)
{
	const struct idm_http_slot *slots = policies->http_slots + set->first_slot;
	uint32_t limit = set->probe_max < set->slot_count ? set->probe_max : set->slot_count;

	for (uint32_t i = 0; i < limit; i++) {
		const struct idm_http_slot *slot = &slots[(hash + i) & (set->slot_count - 1)];

		if (!slot->hash)
			return NULL;
		if (slot->hash == hash)
			return slot;
	}
	return NULL;
}

/* One pass over the groups a request may meet. */
struct scan {
	const struct idm_policies *policies;
	const struct idm_http_set *set;
	const struct idm_http *http;
	struct rest *path;
	struct idm_changes *changes; // NULL: only the lowest rule is wanted
	uint32_t best;
};

static bool predicate_holds(const struct idm_policies *policies, const struct idm_header_predicate *predicate,
			    const struct idm_http *http)
{
	struct idm_bytes name = idm_text(policies->strings, predicate->name);

	if (predicate->present)
		return idm_header_present(http, name);
	return idm_header_equals(http, name, idm_text(policies->strings, predicate->value));
}

static bool guard_holds(const struct idm_policies *policies, const struct idm_http_group *group,
			const struct idm_http *http)
{
	const struct idm_header_predicate *predicates = policies->http_predicates + group->first_predicate;

	for (uint32_t i = 0; i < group->predicate_count; i++) {
		if (predicates[i].never)
			return false;
		if (predicates[i].mismatch == IDM_MISMATCH_FAIL && !predicate_holds(policies, &predicates[i], http))
			return false;
	}
	if (group->method != IDM_NONE && !idm_matches(policies, group->method, http->method))
		return false;
	return group->host == IDM_NONE || idm_matches(policies, group->host, http->host);
}

static uint32_t group_match(const struct scan *scan, const struct idm_http_group *group)
{
	uint32_t outcome;

	if (!guard_holds(scan->policies, group, scan->http))
		return IDM_NONE;
	if (group->path == IDM_NONE)
		return group->first_rule;
	// No path (CONNECT): not even ".*" matches what is not there.
	if (!scan->path->size)
		return IDM_NONE;
	outcome = rest_match(idm_matcher_at(scan->policies, group->path), scan->path);
	return outcome < group->rule_count ? group->first_rule + outcome : IDM_NONE;
}

static bool is_same_change(const struct idm_header_change *a, const struct idm_header_change *b)
{
	return a->action == b->action && idm_bytes_equal(a->name, b->name) && idm_bytes_equal(a->value, b->value);
}

static void changes_add(struct idm_changes *changes, uint32_t rule, struct idm_header_change change)
{
	struct idm_verdict *verdict = changes->verdict;
	uint32_t at = verdict->change_count;

	for (uint32_t i = 0; i < verdict->change_count; i++)
		if (is_same_change(&verdict->changes[i], &change))
			return;
	if (at == IDM_CHANGES_MAX) {
		changes->overflow = true;
		return;
	}
	for (; at && changes->rules[at - 1] > rule; at--) {
		changes->rules[at] = changes->rules[at - 1];
		verdict->changes[at] = verdict->changes[at - 1];
	}
	changes->rules[at] = rule;
	verdict->changes[at] = change;
	verdict->change_count++;
}

static void collect_group(struct scan *scan, const struct idm_http_group *group, uint32_t rule)
{
	const struct idm_policies *policies = scan->policies;

	for (uint32_t i = 0; i < group->predicate_count; i++) {
		const struct idm_header_predicate *predicate = &policies->http_predicates[group->first_predicate + i];
		struct idm_bytes name = idm_text(policies->strings, predicate->name);

		if (predicate->mismatch == IDM_MISMATCH_FAIL || predicate_holds(policies, predicate, scan->http))
			continue;
		// Nothing to remove: the header is not there (a presence test that failed says the same).
		if (predicate->mismatch == IDM_MISMATCH_DELETE && !idm_header_present(scan->http, name))
			continue;
		changes_add(scan->changes, rule,
			    (struct idm_header_change){
				    .name = name,
				    .value = idm_text(policies->strings, predicate->value),
				    .action = predicate->mismatch,
				    .secret = predicate->secret,
			    });
	}
}

static void scan_groups(struct scan *scan, uint32_t first_ref, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct idm_http_group *group =
			&scan->policies->http_groups[scan->policies->http_group_refs[first_ref + i]];
		uint32_t rule;

		// Its rules are all later than one that is known to match.
		if (!scan->changes && group->first_rule >= scan->best)
			continue;
		rule = group_match(scan, group);
		if (rule < scan->best)
			scan->best = rule;
		if (rule != IDM_NONE && scan->changes)
			collect_group(scan, group, rule);
	}
}

static void scan_hash(struct scan *scan, uint64_t hash)
{
	const struct idm_http_slot *slot = idm_http_slot_find(scan->policies, scan->set, hash);

	if (slot)
		scan_groups(scan, slot->first_group, slot->group_count);
}

// Index of the dim (within the set) of this kind and header, or IDM_NONE.
static uint32_t find_dim(const struct scan *scan, uint32_t kind, struct idm_bytes name)
{
	const struct idm_http_dim *dims = scan->policies->http_dims + scan->set->first_dim;
	uint32_t low = 0, high = scan->set->dim_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		int order = dims[middle].kind < kind ? 1 : dims[middle].kind > kind ? -1 : 0;

		if (!order)
			order = idm_header_name_order(name, idm_text(scan->policies->strings, dims[middle].name));
		if (!order)
			return middle;
		if (order > 0)
			low = middle + 1;
		else
			high = middle;
	}
	return IDM_NONE;
}

static void scan_header(struct scan *scan, size_t index)
{
	struct idm_bytes name = scan->http->headers[index].name;
	uint32_t value = find_dim(scan, IDM_DIM_HEADER_VALUE, name);
	uint32_t present = find_dim(scan, IDM_DIM_HEADER_PRESENT, name);

	if ((value == IDM_NONE && present == IDM_NONE) || !idm_header_is_first(scan->http, index))
		return;
	if (value != IDM_NONE)
		scan_hash(scan, idm_header_hash(scan->http, index, value));
	if (present != IDM_NONE)
		scan_hash(scan, idm_hash64(present, "", 0));
}

static void scan_set(struct scan *scan)
{
	const struct idm_http_dim *dims = scan->policies->http_dims + scan->set->first_dim;
	uint32_t dim = 0;

	// Dims rise by kind: method and host come first, the rest are headers.
	for (; dim < scan->set->dim_count && dims[dim].kind <= IDM_DIM_HOST; dim++) {
		struct idm_bytes text = dims[dim].kind == IDM_DIM_METHOD ? scan->http->method : scan->http->host;

		scan_hash(scan, idm_hash64(dim, text.ptr, text.size));
	}
	if (dim < scan->set->dim_count)
		for (size_t i = 0; i < scan->http->header_count; i++)
			scan_header(scan, i);
	scan_groups(scan, scan->set->first_always, scan->set->always_count);
}

uint32_t idm_http_set_match(const struct idm_policies *policies, uint32_t set, const struct idm_http *http,
			    struct rest *path)
{
	struct scan scan = {
		.policies = policies,
		.set = &policies->http_sets[set],
		.http = http,
		.path = path,
		.best = IDM_NONE,
	};

	scan_set(&scan);
	return scan.best;
}

void idm_http_set_collect(const struct idm_policies *policies, uint32_t set, const struct idm_http *http,
			  struct rest *path, struct idm_changes *changes)
{
	struct scan scan = {
		.policies = policies,
		.set = &policies->http_sets[set],
		.http = http,
		.path = path,
		.changes = changes,
		.best = IDM_NONE,
	};

	scan_set(&scan);
}
