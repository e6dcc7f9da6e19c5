// SPDX-License-Identifier: Apache-2.0
// Everything a record says was found out for the decision anyway; here it only changes its place.

#include "record.h"

#include <string.h>

#define PROTOCOL_TCP 6

// The verdict that speaks for both directions: the last one, but that a flow was let through for audit is not hidden
// by the other direction.
static const struct idm_verdict *counting(const struct decision *decision, uint8_t *direction)
{
	const struct idm_verdict *last = decision_last(decision), *first = &decision->verdicts[0];

	*direction = decision->direction;
	if (!decision->allowed || last->verdict == IDM_AUDIT || first->verdict != IDM_AUDIT)
		return last;
	*direction = IDM_EGRESS;
	return first;
}

static void set_verdict(struct idm_flow_record *record, const struct decision *decision)
{
	const struct idm_verdict *verdict = counting(decision, &record->direction);

	record->verdict = verdict->verdict == IDM_AUDIT ? IDM_AUDIT : IDM_FORWARDED;
	if (!decision->allowed)
		record->verdict = IDM_DROPPED;
	record->drop_reason = verdict->drop_reason;
	record->at = verdict->at;
	record->match_type = verdict->match_type;
	record->l7 = verdict->l7;
	record->auth = verdict->auth;
	record->dropped_by = verdict->dropped_by;
}

// Two verdicts are egress and ingress in this order.
static void set_directions(struct idm_flow_record *record, const struct decision *decision)
{
	const struct idm_verdict *ingress = decision_last(decision), *egress = &decision->verdicts[0];

	record->egress_entry = record->ingress_entry = record->egress_rule = record->ingress_rule = IDM_NONE;
	if (decision->count == 2 || decision->direction == IDM_EGRESS) {
		record->egress_entry = egress->entry;
		record->egress_rule = egress->http_rule;
	}
	if (decision->count == 2 || decision->direction == IDM_INGRESS) {
		record->ingress_entry = ingress->entry;
		record->ingress_rule = ingress->http_rule;
	}
}

static void set_addresses(struct idm_flow_record *record, const struct connection *connection,
			  const struct address *target)
{
	record->family = connection->peer.family;
	memcpy(record->source_address, connection->peer.bytes, sizeof(record->source_address));
	record->source_port = connection->peer.port;
	if (target->family == connection->peer.family)
		memcpy(record->destination_address, target->bytes, sizeof(record->destination_address));
}

static void set_flow(struct idm_flow_record *record, const struct decision *decision)
{
	record->revision = decision->revision;
	record->source_identity = decision->source;
	record->destination_identity = decision->destination;
	record->source_endpoint = decision->source_endpoint;
	record->destination_endpoint = decision->destination_endpoint;
	record->destination_port = decision->target.port;
	record->protocol = PROTOCOL_TCP;
	record->evidence = decision->evidence;
}

static uint32_t duration(uint64_t from, uint64_t to)
{
	uint64_t took = to - from;

	return took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
}

static void set_texts(struct idm_flow_facts *facts, const struct record *record)
{
	if (record->http) {
		facts->method = record->http->method;
		facts->host = record->http->host;
		facts->path = record->http->path;
	}
	if (record->connection && record->connection->sni_known)
		facts->sni = (struct idm_bytes){record->connection->sni, record->connection->sni_size};
	facts->protocol = record->protocol;
	facts->traceparent = record->traceparent;
}

// Only what rules name: other headers are nobody's business.
static void set_headers(struct idm_flow_facts *facts, const struct idm_snapshot *snapshot, const struct record *record,
			struct idm_header_line lines[IDM_KEPT_LINES_MAX])
{
	const struct decision *decision = record->decision;
	uint32_t entries[IDM_KEPT_ENTRIES_MAX];
	size_t count = 0;
	int cut;

	if (!snapshot || !record->http)
		return;
	for (unsigned int i = 0; i < decision->count; i++) {
		entries[count++] = decision->verdicts[i].l4_entry;
		entries[count++] = decision->verdicts[i].entry;
	}
	facts->headers = lines;
	facts->header_count = idm_kept_headers(snapshot, entries, count, record->http, lines, &cut);
	if (cut)
		facts->fixed.flags |= IDM_RECORD_HEADERS_CUT;
}

void record_write(struct idm_ring *ring, const struct idm_snapshot *snapshot, const struct record *record)
{
	struct idm_header_line lines[IDM_KEPT_LINES_MAX];
	struct idm_flow_facts facts;
	struct idm_flow_record *fixed = &facts.fixed;

	memset(&facts, 0, sizeof(facts));
	fixed->type = record->type;
	fixed->door = IDM_DOOR_MODULE;
	fixed->code = record->code;
	fixed->flags = record->flags | (record->decision->error ? IDM_RECORD_ERROR : 0);
	fixed->time_ns = rings_unix_time(record->judged_ns);
	fixed->decision_ns = duration(record->asked_ns, record->judged_ns);
	memcpy(fixed->decision, record->id, sizeof(fixed->decision));
	set_flow(fixed, record->decision);
	set_verdict(fixed, record->decision);
	set_directions(fixed, record->decision);
	if (record->connection)
		set_addresses(fixed, record->connection, &record->decision->target);
	set_texts(&facts, record);
	set_headers(&facts, snapshot, record, lines);
	idm_ring_put(ring, &facts);
}

void record_begin(const struct record *record, struct record_open *ret)
{
	const struct idm_verdict *verdict = counting(record->decision, &ret->direction);

	ret->revision = record->decision->revision;
	ret->since_ns = record->judged_ns;
	ret->flags = record->flags;
	ret->verdict = verdict->verdict;
	memcpy(ret->id, record->id, sizeof(ret->id));
}

void record_end(struct idm_ring *ring, enum idm_flow_type type, uint16_t code, uint32_t flags,
		struct record_open *open)
{
	struct idm_flow_facts facts;
	struct idm_flow_record *fixed = &facts.fixed;
	uint64_t now = rings_clock();

	if (!open->since_ns)
		return;
	memset(&facts, 0, sizeof(facts));
	fixed->type = (uint8_t)type;
	fixed->door = IDM_DOOR_MODULE;
	fixed->verdict = open->verdict;
	fixed->direction = open->direction;
	fixed->time_ns = rings_unix_time(now);
	fixed->latency_ns = now - open->since_ns;
	fixed->revision = open->revision;
	fixed->code = code;
	fixed->flags = open->flags | flags;
	fixed->protocol = PROTOCOL_TCP;
	fixed->source_endpoint = fixed->destination_endpoint = IDM_NONE;
	fixed->egress_entry = fixed->ingress_entry = fixed->egress_rule = fixed->ingress_rule = IDM_NONE;
	memcpy(fixed->decision, open->id, sizeof(fixed->decision));
	open->since_ns = 0;
	idm_ring_put(ring, &facts);
}
