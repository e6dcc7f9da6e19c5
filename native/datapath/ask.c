/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's list for a peer is made by asking idm_decide() itself, once for each interval between ports at which
 * any entry that could count begins or ends. So kernel and engine agree by construction: precedence, passes, audit
 * and inherited authentication are weighed in one place only.
 */
#include "ask.h"

#include <errno.h>
#include <stdlib.h>

#include "room.h"

#define PORTS 0x10000u

void idm_asking_deinit(struct idm_asking *asking)
{
	free(asking->points);
	free(asking->spans);
	memset(asking, 0, sizeof(*asking));
}

static int add_point(struct idm_asking *asking, uint8_t protocol, uint32_t port)
{
	if (idm_make_room((void **)&asking->points, &asking->point_room, (uint64_t)asking->point_count + 1,
			  sizeof(*asking->points)))
		return -ENOMEM;
	asking->points[asking->point_count++] = (struct idm_point){.port = port, .protocol = protocol};
	return 0;
}

static int add_range(struct idm_asking *asking, uint8_t protocol, uint32_t first, uint32_t last)
{
	return add_point(asking, protocol, first) ?: add_point(asking, protocol, last + 1);
}

// Inherited authentication looks at aligned blocks of ports (auth.c): it may change where such a block ends.
static int add_blocks(struct idm_asking *asking, uint8_t protocol, uint32_t first, uint32_t last)
{
	int r = 0;

	while (first <= last && !r) {
		uint32_t size = first ? first & -first : PORTS;

		while (first + size - 1 > last)
			size /= 2;
		r = add_range(asking, protocol, first, first + size - 1);
		first += size;
	}
	return r;
}

static int add_entries(struct idm_asking *asking, uint32_t first_ref, uint32_t ref_count, const uint16_t *resolved)
{
	const struct idm_policies *policies = idm_policies(asking->snapshot);
	int r = 0;

	if (!policies->has_auth)
		return 0;
	for (uint32_t i = 0; i < ref_count && !r; i++) {
		const struct idm_entry *entry = &policies->entries[policies->refs[first_ref + i]];
		uint32_t first = resolved ? *resolved : entry->first_port;

		if (entry->protocol)
			r = add_blocks(asking, entry->protocol, first,
				       entry->last_port > first ? entry->last_port : first);
	}
	return r;
}

static int add_named(struct idm_asking *asking, const struct idm_named_span *span)
{
	int r = 0;

	for (uint32_t i = 0; i < asking->name_count && !r; i++) {
		const struct idm_named_port *named = &asking->names[i];
		uint16_t port = named->port;

		if (named->protocol != span->protocol)
			continue;
		r = add_range(asking, span->protocol, port, port);
		if (!r && span->last_port > port)
			r = add_range(asking, span->protocol, port, span->last_port);
		r = r ? r : add_entries(asking, span->first_ref, span->ref_count, &port);
	}
	return r;
}

static int add_row(struct idm_asking *asking, uint32_t index)
{
	const struct idm_policies *policies = idm_policies(asking->snapshot);
	const struct idm_row *row = &policies->rows[index];
	int r = 0;

	for (uint32_t i = 0; i < row->span_count && !r; i++) {
		const struct idm_span *span = &policies->spans[row->first_span + i];

		if (span->protocol)
			r = add_range(asking, span->protocol, span->first_port, span->last_port);
		r = r ? r : add_entries(asking, span->first_ref, span->ref_count, NULL);
	}
	for (uint32_t i = 0; i < row->named_count && !r; i++)
		r = add_named(asking, &policies->named[row->first_named + i]);
	return r;
}

static int by_point(const void *left, const void *right)
{
	const struct idm_point *a = left, *b = right;

	if (a->protocol != b->protocol)
		return a->protocol < b->protocol ? -1 : 1;
	return a->port < b->port ? -1 : a->port > b->port;
}

// ---- asking ----

static struct idm_span_row answer(const struct idm_asking *asking, uint32_t peer, uint8_t protocol, uint16_t port)
{
	struct idm_flow flow = {
		.direction = asking->direction,
		.flags = IDM_FLOW_ENFORCE_AUTH,
		.endpoint = asking->endpoint,
		.subject_identity = IDM_NONE,
		.peer = {.identity = peer, .evidence = IDM_EVIDENCE_DATAPATH},
		.port = port,
		.protocol = protocol,
	};
	struct idm_verdict verdict;

	idm_decide(asking->snapshot, &flow, &verdict);
	return (struct idm_span_row){
		.protocol = protocol,
		.verdict = verdict.verdict,
		.drop_reason = (uint8_t)verdict.drop_reason,
		.l7 = verdict.l7,
		.entry = verdict.entry,
		.auth = verdict.auth,
		.match_type = verdict.match_type,
	};
}

static bool same_answer(const struct idm_span_row *a, const struct idm_span_row *b)
{
	return a->verdict == b->verdict && a->drop_reason == b->drop_reason && a->l7 == b->l7 &&
	       a->entry == b->entry && a->auth == b->auth && a->match_type == b->match_type;
}

// Grows the last span where it goes on with the same answer.
static int add_span(struct idm_asking *asking, uint32_t first, uint32_t last, struct idm_span_row row, uint32_t start)
{
	struct idm_span_row *before = asking->span_count > start ? &asking->spans[asking->span_count - 1] : NULL;

	row.first_port = (uint16_t)first;
	row.last_port = (uint16_t)last;
	if (before && before->last_port + 1u == first && same_answer(before, &row)) {
		before->last_port = row.last_port;
		return 0;
	}
	if (idm_make_room((void **)&asking->spans, &asking->span_room, (uint64_t)asking->span_count + 1,
			  sizeof(*asking->spans)))
		return -ENOMEM;
	asking->spans[asking->span_count++] = row;
	return 0;
}

// Spans of one protocol from start on: those that say what the kernel says anyway go, unless none were left and the
// protocol's silence would hand it to the span for all others.
static void fold_protocol(struct idm_asking *asking, uint32_t start, const struct idm_span_row *others)
{
	uint32_t kept = start, count = asking->span_count;
	struct idm_span_row whole = asking->spans[start];

	if (count - start == 1 && same_answer(&whole, others)) {
		asking->span_count = start;
		return;
	}
	for (uint32_t i = start; i < count; i++) {
		if (!same_answer(&asking->spans[i], &asking->miss))
			asking->spans[kept++] = asking->spans[i];
	}
	if (kept == start && !same_answer(others, &asking->miss))
		kept++; // asking->spans[start] still is the protocol's one span
	asking->span_count = kept;
}

// All ports of one protocol; points hold its own, rising.
static int ask_protocol(struct idm_asking *asking, uint32_t peer, const struct idm_point *points, uint32_t count,
			const struct idm_span_row *others)
{
	uint32_t start = asking->span_count, first = 0;
	uint8_t protocol = points->protocol;
	int r = 0;

	for (uint32_t i = 0; i <= count && !r; i++) {
		uint32_t end = i < count ? points[i].port : PORTS;

		if (end <= first)
			continue;
		r = add_span(asking, first, end - 1, answer(asking, peer, protocol, (uint16_t)first), start);
		first = end;
	}
	if (!r)
		fold_protocol(asking, start, others);
	return r;
}

static uint8_t unnamed_protocol(const struct idm_asking *asking)
{
	uint8_t protocol = 255;

	// Points rise by protocol: step below the highest as long as it is named.
	for (uint32_t i = asking->point_count; i && asking->points[i - 1].protocol >= protocol; i--) {
		if (asking->points[i - 1].protocol == protocol)
			protocol--;
	}
	return protocol;
}

static int ask_all(struct idm_asking *asking, uint32_t peer)
{
	struct idm_span_row others = answer(asking, peer, unnamed_protocol(asking), 0);
	int r = 0;

	others.protocol = 0;
	if (!same_answer(&others, &asking->miss))
		r = add_span(asking, 0, PORTS - 1, others, 0);
	for (uint32_t i = 0, end; i < asking->point_count && !r; i = end) {
		for (end = i; end < asking->point_count && asking->points[end].protocol == asking->points[i].protocol;)
			end++;
		r = ask_protocol(asking, peer, asking->points + i, end - i, &others);
	}
	return r;
}

int idm_ask_peer(struct idm_asking *asking, uint32_t peer, const uint32_t *rows, uint32_t row_count)
{
	int r = 0;

	asking->point_count = asking->span_count = 0;
	for (uint32_t i = 0; i < row_count && !r; i++)
		r = add_row(asking, rows[i]);
	if (!r && asking->side->any_row != IDM_NONE)
		r = add_row(asking, asking->side->any_row);
	if (r)
		return r;
	if (asking->point_count)
		qsort(asking->points, asking->point_count, sizeof(*asking->points), by_point);
	return ask_all(asking, peer);
}
