// SPDX-License-Identifier: Apache-2.0
// Fills flow records (idmesh/flow.h) from what was judged.
#include <string.h>
#include <time.h>

#include "record.h"

#define TCP 6
#define UDP 17
#define FORBIDDEN 403

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint8_t verdict_of(const struct judged *judged)
{
	if (!judged->allowed)
		return IDM_DROPPED;
	return judged->audit ? IDM_AUDIT : IDM_FORWARDED;
}

// IPv4 in four bytes, also where it came mapped into IPv6.
static uint8_t put_address(const struct end *end, uint8_t ret[16])
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	if (end->family == 6 && !memcmp(end->address, mapped, sizeof(mapped))) {
		memcpy(ret, end->address + sizeof(mapped), 4);
		return 4;
	}
	memcpy(ret, end->address, end->family == 4 ? 4 : end->family == 6 ? 16 : 0);
	return (uint8_t)end->family;
}

static void put_ends(const struct request *request, const struct judged *judged, struct idm_flow_record *record)
{
	uint8_t source = put_address(&judged->source, record->source_address);
	uint8_t destination = put_address(&judged->destination, record->destination_address);

	record->family = source ? source : destination;
	// One family counts for both addresses: a destination of the other one is told by its endpoint alone.
	if (destination && destination != record->family)
		memset(record->destination_address, 0, sizeof(record->destination_address));
	record->source_identity = judged->source.identity;
	record->destination_identity = judged->destination.identity;
	record->source_endpoint = judged->source.endpoint;
	record->destination_endpoint = judged->destination.endpoint;
	record->source_port = (uint16_t)(request->source.port > 65535 ? 0 : request->source.port);
	record->destination_port = (uint16_t)(judged->port > 65535 ? 0 : judged->port);
	record->protocol = request->destination.udp ? UDP : TCP;
	record->evidence = (uint8_t)judged->peer.evidence;
}

// The verdict that speaks for both directions: the one that counts, but that a flow was let through for audit is not
// hidden by the other direction. Where both directions were judged, egress came first.
static const struct idm_verdict *counting(const struct judged *judged, uint8_t *direction)
{
	const struct idm_verdict *shown = &judged->verdicts[judged->shown];

	*direction = (uint8_t)judged->direction;
	if (!judged->allowed || judged->count != 2 || shown->verdict == IDM_AUDIT ||
	    judged->verdicts[0].verdict != IDM_AUDIT)
		return shown;
	*direction = IDM_EGRESS;
	return &judged->verdicts[0];
}

static void put_verdicts(const struct judged *judged, struct idm_flow_record *record)
{
	const struct idm_verdict *shown;

	record->egress_entry = record->ingress_entry = record->egress_rule = record->ingress_rule = IDM_NONE;
	for (uint32_t i = 0; i < judged->count; i++) {
		const struct idm_verdict *verdict = &judged->verdicts[i];
		bool egress = judged->count == 2 ? !i : judged->direction == IDM_EGRESS;

		*(egress ? &record->egress_entry : &record->ingress_entry) = verdict->entry;
		*(egress ? &record->egress_rule : &record->ingress_rule) = verdict->http_rule;
	}
	record->direction = (uint8_t)judged->direction;
	record->drop_reason = (uint16_t)judged->drop_reason;
	if (!judged->count)
		return;
	shown = counting(judged, &record->direction);
	if (judged->allowed)
		record->drop_reason = shown->drop_reason; // of an audit: what it would have been
	record->at = shown->at;
	record->match_type = shown->match_type;
	record->l7 = shown->l7;
	record->auth = shown->auth;
	record->dropped_by = shown->dropped_by;
}

// Only what rules name: other headers are nobody's business.
static void put_headers(const struct idm_snapshot *snapshot, const struct request *request, const struct judged *judged,
			struct idm_header_line lines[IDM_KEPT_LINES_MAX], struct idm_flow_facts *facts)
{
	uint32_t entries[IDM_KEPT_ENTRIES_MAX];
	size_t count = 0;
	int cut = 0;

	if (!snapshot || !request->has_http)
		return;
	for (uint32_t i = 0; i < judged->count; i++) {
		entries[count++] = judged->verdicts[i].l4_entry;
		entries[count++] = judged->verdicts[i].entry;
	}
	facts->headers = lines;
	facts->header_count = idm_kept_headers(snapshot, entries, count, &request->http, lines, &cut);
	if (cut)
		facts->fixed.flags |= IDM_RECORD_HEADERS_CUT;
}

static void put_texts(const struct request *request, struct idm_flow_facts *facts)
{
	facts->method = request->http.method;
	facts->host = request->http.host;
	facts->path = request->http.path;
	facts->protocol = request->protocol;
	facts->sni = request->sni;
	facts->traceparent = request->traceparent;
}

static bool is_failure(uint32_t error)
{
	return error == IDM_CHECK_MALFORMED || error == IDM_CHECK_ENGINE || error == IDM_CHECK_TOO_LARGE;
}

void record_verdict(struct idm_checker *checker, const struct idm_snapshot *snapshot, uint32_t door, uint32_t flags)
{
	const struct request *request = &checker->request;
	const struct judged *judged = &checker->judged;
	struct idm_header_line lines[IDM_KEPT_LINES_MAX];
	struct idm_flow_facts facts;
	struct idm_flow_record *record = &facts.fixed;

	if (!checker->ring)
		return;
	memset(&facts, 0, sizeof(facts));
	record->type = request->has_http ? IDM_FLOW_REQUEST : IDM_FLOW_CONNECTION;
	record->door = (uint8_t)door;
	record->verdict = verdict_of(judged);
	record->time_ns = clock_ns(CLOCK_REALTIME);
	memcpy(record->decision, checker->id, sizeof(record->decision));
	record->revision = snapshot ? idm_snapshot_revision(snapshot) : 0;
	record->code = request->has_http && !judged->allowed && !(flags & IDM_RECORD_SHADOW) ? FORBIDDEN : 0;
	record->decision_ns = checker->decision_ns;
	record->flags = flags | (request->grpc ? IDM_RECORD_GRPC : 0) |
			(is_failure(judged->error) ? IDM_RECORD_ERROR : 0);
	put_ends(request, judged, record);
	put_verdicts(judged, record);
	put_texts(request, &facts);
	put_headers(snapshot, request, judged, lines, &facts);
	idm_ring_put(checker->ring, &facts);
}

void record_keep(const struct idm_checker *checker, const struct idm_snapshot *snapshot, uint32_t flags,
		 struct recorded *ret)
{
	const struct judged *judged = &checker->judged;

	memcpy(ret->id, checker->id, sizeof(ret->id));
	ret->judged_ns = checker->judged_ns;
	ret->revision = snapshot ? idm_snapshot_revision(snapshot) : 0;
	ret->source_identity = judged->source.identity;
	ret->destination_identity = judged->destination.identity;
	ret->flags = flags | (checker->request.grpc ? IDM_RECORD_GRPC : 0);
	ret->verdict = verdict_of(judged);
	counting(judged, &ret->direction);
}

void record_response(struct idm_checker *checker, const struct recorded *recorded, uint32_t code, uint32_t flags)
{
	struct idm_flow_facts facts;
	struct idm_flow_record *record = &facts.fixed;

	if (!checker->ring)
		return;
	memset(&facts, 0, sizeof(facts));
	record->type = IDM_FLOW_RESPONSE;
	record->door = IDM_DOOR_EXT_PROC;
	record->verdict = recorded->verdict;
	record->time_ns = clock_ns(CLOCK_REALTIME);
	memcpy(record->decision, recorded->id, sizeof(record->decision));
	record->revision = recorded->revision;
	record->source_identity = recorded->source_identity;
	record->destination_identity = recorded->destination_identity;
	record->source_endpoint = record->destination_endpoint = IDM_NONE;
	record->egress_entry = record->ingress_entry = record->egress_rule = record->ingress_rule = IDM_NONE;
	record->direction = recorded->direction;
	record->code = (uint16_t)code;
	record->latency_ns = clock_ns(CLOCK_MONOTONIC) - recorded->judged_ns;
	record->flags = recorded->flags | flags;
	idm_ring_put(checker->ring, &facts);
}
