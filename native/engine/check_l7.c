/* SPDX-License-Identifier: Apache-2.0 */
/* Checks table 3, second half: matchers and the rules that judge requests. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "http.h"
#include "kept.h"

static int check_matchers(struct idm_check *check, const struct idm_policies *table)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < table->matcher_count; i++) {
		const struct idm_matcher_ref *ref = &table->matchers[i];
		const struct idm_matcher *blob;

		// One after the other, so that checking costs no more than the bytes there are.
		if (ref->offset % 8 || ref->offset < end || !idm_in_range(ref->offset, ref->size, table->automata_size))
			return idm_bad(check, "MATCHERS", i, "not aligned, overlapping, or outside AUTOMATA");
		end = ref->offset + ref->size;
		if (ref->size < sizeof(*blob))
			return idm_bad(check, "MATCHERS", i, "too short");
		blob = (const void *)(table->automata + ref->offset);
		if (idm_matcher_validate(blob, ref->size))
			return idm_bad(check, "MATCHERS", i, "damaged, or made for another engine");
	}
	return 0;
}

static bool matcher_exists(const struct idm_policies *table, uint32_t index)
{
	return index == IDM_NONE || index < table->matcher_count;
}

static const char *group_fault(const struct idm_policies *table, const struct idm_http_group *group)
{
	if (!matcher_exists(table, group->method) || !matcher_exists(table, group->host) ||
	    !matcher_exists(table, group->path))
		return "no such matcher";
	if (!idm_in_range(group->first_predicate, group->predicate_count, table->http_predicate_count))
		return "predicates leave HTTP_PREDICATES";
	if (!group->rule_count || !idm_in_range(group->first_rule, group->rule_count, table->http_rule_count))
		return "rules missing or outside HTTP_RULES";
	if (group->path != IDM_NONE && idm_matcher_at(table, group->path)->outcomes > group->rule_count)
		return "fewer rules than its paths have outcomes";
	return NULL;
}

static int check_groups(struct idm_check *check, const struct idm_policies *table)
{
	for (uint32_t i = 0; i < table->http_group_count; i++) {
		const char *fault = group_fault(table, &table->http_groups[i]);

		if (fault)
			return idm_bad(check, "HTTP_GROUPS", i, fault);
	}
	for (uint32_t i = 0; i < table->http_group_ref_count; i++)
		if (table->http_group_refs[i] >= table->http_group_count)
			return idm_bad(check, "HTTP_GROUP_REFS", i, "no such group");
	for (uint32_t i = 0; i < table->http_predicate_count; i++) {
		const struct idm_header_predicate *predicate = &table->http_predicates[i];

		if (!idm_string_fits(check, predicate->name) || !idm_string_fits(check, predicate->value))
			return idm_bad(check, "HTTP_PREDICATES", i, "text leaves STRINGS");
		if (predicate->mismatch > IDM_MISMATCH_REPLACE || predicate->present > 1 || predicate->never > 1 ||
		    predicate->secret > 1)
			return idm_bad(check, "HTTP_PREDICATES", i, "unknown kind");
	}
	for (uint32_t i = 0; i < table->http_rule_count; i++) {
		const struct idm_http_rule *rule = &table->http_rules[i];

		if (!idm_string_fits(check, rule->method) || !idm_string_fits(check, rule->host) ||
		    !idm_string_fits(check, rule->path) || rule->rule >= table->rule_count)
			return idm_bad(check, "HTTP_RULES", i, "text leaves STRINGS, or no such rule");
	}
	return 0;
}

static int check_dims(struct idm_check *check, const struct idm_policies *table, const struct idm_http_set *set)
{
	for (uint32_t i = 0; i < set->dim_count; i++) {
		const struct idm_http_dim *dim = &table->http_dims[set->first_dim + i];

		if (dim->kind > IDM_DIM_HEADER_PRESENT || !idm_string_fits(check, dim->name))
			return idm_bad(check, "HTTP_DIMS", set->first_dim + i, "unknown kind, or name outside STRINGS");
		if (i && idm_http_dim_order(table, dim - 1, dim) >= 0)
			return idm_bad(check, "HTTP_DIMS", set->first_dim + i, "not rising by (kind, name)");
	}
	return 0;
}

// As with HOSTS: whatever is filed must be what a lookup of its hash finds.
static int check_slots(struct idm_check *check, const struct idm_policies *table, const struct idm_http_set *set)
{
	for (uint32_t i = 0; i < set->slot_count; i++) {
		const struct idm_http_slot *slot = &table->http_slots[set->first_slot + i];

		if (!slot->hash)
			continue;
		if (!idm_in_range(slot->first_group, slot->group_count, table->http_group_ref_count))
			return idm_bad(check, "HTTP_SLOTS", set->first_slot + i, "groups leave HTTP_GROUP_REFS");
		if (idm_http_slot_find(table, set, slot->hash) != slot)
			return idm_bad(check, "HTTP_SLOTS", set->first_slot + i, "a lookup does not find it");
	}
	return 0;
}

static int check_http_sets(struct idm_check *check, const struct idm_policies *table)
{
	uint64_t dims_end = 0, slots_end = 0;
	int r = 0;

	for (uint32_t i = 0; i < table->http_set_count && !r; i++) {
		const struct idm_http_set *set = &table->http_sets[i];

		if (set->dim_count && set->first_dim < dims_end)
			return idm_bad(check, "HTTP_SETS", i, "dims overlap those of another set");
		if (set->slot_count && set->first_slot < slots_end)
			return idm_bad(check, "HTTP_SETS", i, "slots overlap those of another set");
		if (!idm_in_range(set->first_dim, set->dim_count, table->http_dim_count) ||
		    !idm_in_range(set->first_slot, set->slot_count, table->http_slot_count) ||
		    !idm_in_range(set->first_always, set->always_count, table->http_group_ref_count))
			return idm_bad(check, "HTTP_SETS", i, "leaves HTTP_DIMS, HTTP_SLOTS or HTTP_GROUP_REFS");
		if (set->slot_count & (set->slot_count - 1) || set->probe_max > IDM_PROBE_LIMIT)
			return idm_bad(check, "HTTP_SETS", i, "slot_count no power of two, or probe_max over the limit");
		if (set->dim_count)
			dims_end = (uint64_t)set->first_dim + set->dim_count;
		if (set->slot_count)
			slots_end = (uint64_t)set->first_slot + set->slot_count;
		r = check_dims(check, table, set);
		if (!r)
			r = check_slots(check, table, set);
	}
	return r;
}

static int check_others(struct idm_check *check, const struct idm_policies *table)
{
	for (uint32_t i = 0; i < table->kafka_set_count; i++) {
		const struct idm_kafka_set *set = &table->kafka_sets[i];

		if (!idm_in_range(set->first_rule, set->rule_count, table->kafka_rule_count))
			return idm_bad(check, "KAFKA_SETS", i, "rules leave KAFKA_RULES");
	}
	for (uint32_t i = 0; i < table->kafka_rule_count; i++) {
		const struct idm_kafka_rule *rule = &table->kafka_rules[i];

		if (!idm_string_fits(check, rule->client_id) || !idm_string_fits(check, rule->topic) ||
		    rule->rule >= table->rule_count)
			return idm_bad(check, "KAFKA_RULES", i, "text leaves STRINGS, or no such rule");
	}
	for (uint32_t i = 0; i < table->dns_set_count; i++)
		if (!matcher_exists(table, table->dns_sets[i].matcher))
			return idm_bad(check, "DNS_SETS", i, "no such matcher");
	return 0;
}

static bool ref_reads(const struct idm_policies *table, uint32_t ref)
{
	return table->http_groups[table->http_group_refs[ref]].predicate_count;
}

static bool neither_reads(const void *context, uint32_t i)
{
	return !ref_reads(context, i - 1) && !ref_reads(context, i);
}

static bool refs_read(const struct idm_policies *table, const uint32_t *ends, uint32_t first, uint32_t count)
{
	return count && (ref_reads(table, first) || !idm_runs_hold(ends, first, count));
}

// Which sets look at headers, by runs of groups that do not: slots may share groups.
static int note_readers(struct idm_policies *table)
{
	uint32_t *ends;

	table->http_reads = calloc((size_t)table->http_set_count + 1, 1);
	if (!table->http_reads)
		return -ENOMEM;
	if (idm_runs_create(table, table->http_group_ref_count, neither_reads, &ends))
		return -ENOMEM;
	for (uint32_t i = 0; i < table->http_set_count; i++) {
		const struct idm_http_set *set = &table->http_sets[i];
		bool reads = refs_read(table, ends, set->first_always, set->always_count);

		for (uint32_t j = 0; j < set->slot_count && !reads; j++) {
			const struct idm_http_slot *slot = &table->http_slots[set->first_slot + j];

			reads = slot->hash && refs_read(table, ends, slot->first_group, slot->group_count);
		}
		table->http_reads[i] = reads;
	}
	free(ends);
	return 0;
}

int idm_check_l7(struct idm_check *check, struct idm_policies *policies)
{
	int r = check_matchers(check, policies);

	if (!r)
		r = check_groups(check, policies);
	if (!r)
		r = check_http_sets(check, policies);
	if (!r)
		r = check_others(check, policies);
	if (!r)
		r = note_readers(policies);
	return r ? r : idm_kept_create(policies);
}
