/* SPDX-License-Identifier: Apache-2.0 */
/* The walk over the lists of entries that cover a flow: rows by selector, spans by port, named ports. */
#include "walk.h"

// First item from start on that is not below the wanted number; doubles its steps, so near hits are cheap. Items are
// stride numbers long and rise by their first.
static uint32_t gallop(const uint32_t *items, uint32_t stride, uint32_t start, uint32_t count, uint32_t wanted)
{
	uint32_t step = 1, low = start, high;

	while (low < count && items[(size_t)low * stride] < wanted) {
		start = low + 1;
		low = count - low > step ? low + step : count;
		step *= 2;
	}
	high = low;
	while (start < high) {
		uint32_t middle = start + (high - start) / 2;

		if (items[(size_t)middle * stride] < wanted)
			start = middle + 1;
		else
			high = middle;
	}
	return start;
}

// Next row whose selector selects the peer: both lists rise, each skips to the other's next number.
static const struct idm_row *next_common_row(struct idm_walk *walk)
{
	const struct idm_look *look = walk->look;
	const struct idm_row *rows = look->policies->rows + look->side->first_row;
	uint32_t row_count = look->side->row_count;

	while (walk->next_row < row_count && walk->next_selected < look->selected_count) {
		uint32_t row = rows[walk->next_row].selector;
		uint32_t selected = look->selected[walk->next_selected];

		if (row == selected) {
			walk->next_selected++;
			return &rows[walk->next_row++];
		}
		if (row < selected)
			walk->next_row = gallop(&rows->selector, sizeof(*rows) / sizeof(uint32_t), walk->next_row,
						row_count, selected);
		else
			walk->next_selected =
				gallop(look->selected, 1, walk->next_selected, look->selected_count, row);
	}
	return NULL;
}

static const struct idm_row *next_row(struct idm_walk *walk)
{
	const struct idm_row *row = walk->any_done ? NULL : next_common_row(walk);

	if (!row && !walk->any_done) {
		walk->any_done = true;
		if (walk->look->side->any_row != IDM_NONE)
			row = &walk->look->policies->rows[walk->look->side->any_row];
	}
	return row;
}

// The span that covers (protocol, port), else the row's span for all traffic, which sorts first.
static const struct idm_span *find_span(const struct idm_look *look, const struct idm_row *row)
{
	const struct idm_span *spans = look->policies->spans + row->first_span;
	uint32_t low = 0, high = row->span_count;
	uint32_t key = (uint32_t)look->protocol << 16 | look->port;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (((uint32_t)spans[middle].protocol << 16 | spans[middle].first_port) <= key)
			low = middle + 1;
		else
			high = middle;
	}
	if (low && spans[low - 1].protocol == look->protocol && spans[low - 1].last_port >= look->port)
		return &spans[low - 1];
	return row->span_count && !spans[0].protocol ? &spans[0] : NULL;
}

// The flow's port carries the name, or lies in the range that starts at a port of that name. *resolved: that port.
static bool name_covers(const struct idm_look *look, const struct idm_named_span *span, uint16_t *resolved)
{
	struct idm_bytes wanted = idm_text(look->policies->strings, span->name);
	bool found = false;

	if (span->protocol != look->protocol)
		return false;
	for (uint32_t i = 0; i < look->named_count; i++) {
		const struct idm_named_port *named = &look->named[i];

		if (named->protocol != look->protocol || named->port > look->port)
			continue;
		if (named->port != look->port && span->last_port < look->port)
			continue;
		if (!idm_bytes_equal(idm_text(look->named_strings, named->name), wanted))
			continue;
		// Ports rise: the last one found is the nearest, and gives the narrowest key.
		*resolved = named->port;
		found = true;
	}
	return found;
}

static bool next_in_row(struct idm_walk *walk, struct idm_refs *ret)
{
	const struct idm_policies *policies = walk->look->policies;

	if (!walk->span_done) {
		const struct idm_span *span = find_span(walk->look, walk->row);

		walk->span_done = true;
		if (span) {
			*ret = (struct idm_refs){.refs = policies->refs + span->first_ref, .count = span->ref_count};
			return true;
		}
	}
	while (walk->next_named < walk->row->named_count) {
		const struct idm_named_span *span = &policies->named[walk->row->first_named + walk->next_named++];
		uint16_t resolved;

		if (!name_covers(walk->look, span, &resolved))
			continue;
		*ret = (struct idm_refs){
			.refs = policies->refs + span->first_ref,
			.count = span->ref_count,
			.named = true,
			.resolved = resolved,
		};
		return true;
	}
	return false;
}

bool idm_walk_next(struct idm_walk *walk, struct idm_refs *ret)
{
	while (true) {
		if (!walk->row) {
			walk->row = next_row(walk);
			if (!walk->row)
				return false;
			walk->span_done = false;
			walk->next_named = 0;
		}
		if (next_in_row(walk, ret))
			return true;
		walk->row = NULL;
	}
}

void idm_look_floors(struct idm_look *look)
{
	struct idm_walk walk;
	struct idm_refs list;

	memset(look->floors, 0, sizeof(look->floors));
	if (!look->policies->has_pass)
		return;
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (entry->verdict == IDM_ENTRY_PASS && entry->precedence > look->floors[entry->tier])
				look->floors[entry->tier] = entry->precedence;
		}
	}
}

uint32_t idm_deny_floor(const struct idm_look *look)
{
	uint32_t floor = 0;
	struct idm_walk walk;
	struct idm_refs list;

	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (entry->precedence < floor)
				break;
			if (entry->verdict == IDM_ENTRY_DENY && idm_reachable(look, entry))
				floor = entry->precedence;
		}
	}
	return floor;
}
