/* SPDX-License-Identifier: Apache-2.0 */
/* Checks table 3, first half: from subjects to entries. What judges requests is in check_l7.c. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"

static int read_sections(struct idm_check *check, struct idm_policies *ret, uint32_t *meta_count)
{
#define SECTION(name, items, count) {name, sizeof(*ret->items), (const void **)&ret->items, count, NULL}
	const struct idm_shape shapes[IDM_POL_SECTIONS] = {
		SECTION("META", meta, meta_count),
		SECTION("SUBJECTS", subjects, &ret->subject_count),
		SECTION("POLICIES", policies, &ret->policy_count),
		SECTION("ROWS", rows, &ret->row_count),
		SECTION("SPANS", spans, &ret->span_count),
		SECTION("NAMED", named, &ret->named_count),
		SECTION("REFS", refs, &ret->ref_count),
		SECTION("ENTRIES", entries, &ret->entry_count),
		SECTION("ORIGINS", origins, &ret->origin_count),
		SECTION("RULES", rules, &ret->rule_count),
		SECTION("HTTP_SETS", http_sets, &ret->http_set_count),
		SECTION("HTTP_DIMS", http_dims, &ret->http_dim_count),
		SECTION("HTTP_SLOTS", http_slots, &ret->http_slot_count),
		SECTION("HTTP_GROUP_REFS", http_group_refs, &ret->http_group_ref_count),
		SECTION("HTTP_GROUPS", http_groups, &ret->http_group_count),
		SECTION("HTTP_PREDICATES", http_predicates, &ret->http_predicate_count),
		SECTION("HTTP_RULES", http_rules, &ret->http_rule_count),
		SECTION("KAFKA_SETS", kafka_sets, &ret->kafka_set_count),
		SECTION("KAFKA_RULES", kafka_rules, &ret->kafka_rule_count),
		SECTION("DNS_SETS", dns_sets, &ret->dns_set_count),
		SECTION("MATCHERS", matchers, &ret->matcher_count),
		{"AUTOMATA", 1, (const void **)&ret->automata, NULL, &ret->automata_size},
		{"STRINGS", 1, (const void **)&ret->strings, &ret->string_size, NULL},
	};
#undef SECTION

	return idm_check_sections(check, shapes, IDM_POL_SECTIONS);
}

// The formula above struct idm_entry: what sorts an entry must agree with what it says of itself.
static bool precedence_fits(const struct idm_entry *entry)
{
	uint32_t low = entry->precedence & 0xff;
	uint32_t order = (uint32_t)entry->tier << 22 | entry->priority;

	if (entry->priority > 0x3fffff || entry->precedence >> 8 != 0xffffff - order)
		return false;
	switch (entry->verdict) {
	case IDM_ENTRY_DENY:
		return low == 255;
	case IDM_ENTRY_REDIRECT:
		return low >= 2 && low <= 254;
	default:
		return low == (entry->verdict == IDM_ENTRY_ALLOW);
	}
}

static uint32_t set_count(const struct idm_policies *table, uint8_t l7)
{
	switch (l7) {
	case IDM_L7_HTTP:
		return table->http_set_count;
	case IDM_L7_DNS:
		return table->dns_set_count;
	case IDM_L7_KAFKA:
		return table->kafka_set_count;
	default:
		return 0;
	}
}

static const char *entry_ports_fault(const struct idm_entry *entry)
{
	if (entry->port_name.size)
		return entry->first_port || !entry->protocol ? "a named port with a number or without protocol" : NULL;
	if (entry->first_port > entry->last_port)
		return "ports end before they start";
	if (!entry->protocol && (entry->first_port || entry->last_port != 0xffff))
		return "all traffic with ports";
	return NULL;
}

static const char *entry_fault(const struct idm_check *check, const struct idm_policies *table,
			       const struct idm_entry *entry)
{
	if (entry->verdict > IDM_ENTRY_DENY || entry->tier > IDM_TIER_DEFAULT || entry->l7 > IDM_L7_LISTENER ||
	    entry->auth > IDM_AUTH_ALWAYS_FAIL)
		return "unknown verdict, tier, l7 or auth";
	if (entry->l7 && entry->verdict != IDM_ENTRY_REDIRECT)
		return "l7 without redirect";
	if (!precedence_fits(entry))
		return "precedence differs from verdict, tier and priority";
	if (entry->l7_set != IDM_NONE && entry->l7_set >= set_count(table, entry->l7))
		return "no such set of its l7 kind";
	if (entry->sni != IDM_NONE && entry->sni >= table->matcher_count)
		return "no such matcher of server names";
	if (!idm_string_fits(check, entry->port_name) || !idm_string_fits(check, entry->listener))
		return "text leaves STRINGS";
	if (!idm_in_range(entry->first_origin, entry->origin_count, table->origin_count))
		return "origins leave ORIGINS";
	return entry_ports_fault(entry);
}

static int check_entries(struct idm_check *check, struct idm_policies *table)
{
	for (uint32_t i = 0; i < table->entry_count; i++) {
		const struct idm_entry *entry = &table->entries[i];
		const char *fault = entry_fault(check, table, entry);

		if (fault)
			return idm_bad(check, "ENTRIES", i, fault);
		if (entry->selector != IDM_ANY && entry->selector >= table->selector_bound)
			table->selector_bound = entry->selector + 1;
		table->has_pass |= entry->verdict == IDM_ENTRY_PASS;
		table->has_auth |= entry->auth != IDM_AUTH_UNSET;
	}
	for (uint32_t i = 0; i < table->ref_count; i++)
		if (table->refs[i] >= table->entry_count)
			return idm_bad(check, "REFS", i, "no such entry");
	for (uint32_t i = 0; i < table->origin_count; i++)
		if (table->origins[i] >= table->rule_count)
			return idm_bad(check, "ORIGINS", i, "no such rule");
	return 0;
}

static int check_rules(struct idm_check *check, const struct idm_policies *table)
{
	for (uint32_t i = 0; i < table->rule_count; i++) {
		const struct idm_rule *rule = &table->rules[i];

		if (!idm_string_fits(check, rule->kind) || !idm_string_fits(check, rule->name_space) ||
		    !idm_string_fits(check, rule->name) || !idm_string_fits(check, rule->file) ||
		    !idm_string_fits(check, rule->path) || !idm_string_fits(check, rule->log))
			return idm_bad(check, "RULES", i, "text leaves STRINGS");
	}
	return 0;
}

static bool refs_fall(const void *context, uint32_t i)
{
	const struct idm_policies *table = context;

	return table->entries[table->refs[i - 1]].precedence >= table->entries[table->refs[i]].precedence;
}

static int check_spans(struct idm_check *check, const struct idm_policies *table, const uint32_t *ref_ends)
{
	for (uint32_t i = 0; i < table->span_count; i++) {
		const struct idm_span *span = &table->spans[i];

		if (span->first_port > span->last_port)
			return idm_bad(check, "SPANS", i, "ends before it starts");
		if (!span->protocol && (span->first_port || span->last_port != 0xffff))
			return idm_bad(check, "SPANS", i, "protocol 0 must cover all ports");
		if (!idm_in_range(span->first_ref, span->ref_count, table->ref_count))
			return idm_bad(check, "SPANS", i, "entries leave REFS");
		if (!idm_runs_hold(ref_ends, span->first_ref, span->ref_count))
			return idm_bad(check, "SPANS", i, "entries do not fall in precedence");
	}
	for (uint32_t i = 0; i < table->named_count; i++) {
		const struct idm_named_span *span = &table->named[i];

		if (!idm_string_fits(check, span->name) || !span->name.size || !span->protocol)
			return idm_bad(check, "NAMED", i, "name missing or outside STRINGS, or no protocol");
		if (!idm_in_range(span->first_ref, span->ref_count, table->ref_count))
			return idm_bad(check, "NAMED", i, "entries leave REFS");
		if (!idm_runs_hold(ref_ends, span->first_ref, span->ref_count))
			return idm_bad(check, "NAMED", i, "entries do not fall in precedence");
	}
	return 0;
}

static bool spans_rise(const void *context, uint32_t i)
{
	const struct idm_span *a = &((const struct idm_policies *)context)->spans[i - 1];
	const struct idm_span *b = a + 1;

	return a->protocol < b->protocol || (a->protocol == b->protocol && a->last_port < b->first_port);
}

static int check_rows(struct idm_check *check, struct idm_policies *table, const uint32_t *span_ends)
{
	for (uint32_t i = 0; i < table->row_count; i++) {
		const struct idm_row *row = &table->rows[i];

		if (!idm_in_range(row->first_span, row->span_count, table->span_count))
			return idm_bad(check, "ROWS", i, "leaves SPANS");
		if (!idm_runs_hold(span_ends, row->first_span, row->span_count))
			return idm_bad(check, "ROWS", i, "spans overlap or do not rise");
		if (!idm_in_range(row->first_named, row->named_count, table->named_count))
			return idm_bad(check, "ROWS", i, "leaves NAMED");
		if (row->selector != IDM_ANY && row->selector >= table->selector_bound)
			table->selector_bound = row->selector + 1;
	}
	return 0;
}

static bool rows_rise(const void *context, uint32_t i)
{
	const struct idm_row *a = &((const struct idm_policies *)context)->rows[i - 1];

	return a[0].selector < a[1].selector;
}

static const char *side_fault(const struct idm_policies *table, const struct idm_side *side, const uint32_t *row_ends)
{
	if (!idm_in_range(side->first_row, side->row_count, table->row_count))
		return "rows leave ROWS";
	if (!idm_runs_hold(row_ends, side->first_row, side->row_count))
		return "rows do not rise by selector";
	// IDM_ANY is the greatest number, so only the last row could be one.
	if (side->row_count && table->rows[side->first_row + side->row_count - 1].selector == IDM_ANY)
		return "a row for any peer among the selectors";
	if (side->any_row == IDM_NONE)
		return NULL;
	if (side->any_row >= table->row_count || table->rows[side->any_row].selector != IDM_ANY)
		return "any_row is not a row for any peer";
	return NULL;
}

static int check_subjects(struct idm_check *check, const struct idm_policies *table, const uint32_t *row_ends)
{
	for (uint32_t i = 0; i < table->policy_count; i++) {
		for (int direction = 0; direction < 2; direction++) {
			const char *fault = side_fault(table, &table->policies[i].side[direction], row_ends);

			if (fault)
				return idm_bad(check, "POLICIES", i, fault);
		}
	}
	for (uint32_t i = 0; i < table->subject_count; i++) {
		const struct idm_subject *subject = &table->subjects[i];

		if (i && subject[-1].identity >= subject->identity)
			return idm_bad(check, "SUBJECTS", i, "not rising by identity");
		if (subject->policy >= table->policy_count)
			return idm_bad(check, "SUBJECTS", i, "no such policy");
	}
	return 0;
}

// One ordered level: make its runs, use them, drop them.
static int check_ordered(struct idm_check *check, struct idm_policies *table)
{
	uint32_t *ends;
	int r = idm_runs_create(table, table->ref_count, refs_fall, &ends);

	if (r)
		return r;
	r = check_spans(check, table, ends);
	free(ends);
	if (r || (r = idm_runs_create(table, table->span_count, spans_rise, &ends)))
		return r;
	r = check_rows(check, table, ends);
	free(ends);
	if (r || (r = idm_runs_create(table, table->row_count, rows_rise, &ends)))
		return r;
	r = check_subjects(check, table, ends);
	free(ends);
	return r;
}

int idm_check_policies(struct idm_check *check, struct idm_policies *ret)
{
	uint32_t meta_count = 0;
	int r = read_sections(check, ret, &meta_count);

	if (r)
		return r;
	if (meta_count != 1)
		return idm_bad(check, "META", 0, "must hold exactly one item");
	r = check_rules(check, ret);
	if (!r)
		r = check_entries(check, ret);
	if (!r)
		r = check_ordered(check, ret);
	return r ? r : idm_check_l7(check, ret);
}
