// SPDX-License-Identifier: Apache-2.0
// A request's way to its verdict. Whatever is doubtful denies; records and metadata follow the decision, never the
// other way round.

#include "stream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "tally.h"

// One request, and all that is known of it while it is judged.
struct judgement {
	struct idm_ring *ring; // NULL: nothing is recorded
	struct request request;
	struct connection connection;
	bool readable; // the request is
	bool known;    // the connection is
	uint64_t asked_ns; // around the engine, where there is a ring
	uint64_t judged_ns;
	struct decision decision;
	uint8_t id[DECISION_ID_BYTES]; // set only if somebody reads it
};

static void count(struct envoy_http *envoy, const struct http_config *self, const struct decision *decision)
{
	tally_add(decision);
	CALLBACK(http_filter_increment_counter)(envoy, self->counters[counter_of(decision)], NULL, 0, 1);
	if (counts_redirected(decision))
		CALLBACK(http_filter_increment_counter)(envoy, self->counters[COUNT_REDIRECTED], NULL, 0, 1);
}

static bool known_connection(struct envoy_http *envoy, const struct door *door, struct connection *ret)
{
	struct idm_bytes bytes;

	if (!CALLBACK(http_get_filter_state_bytes)(envoy, MESH_KEY, &bytes) || !connection_read(bytes, ret))
		return false;
	if (door->trust_domain && CALLBACK(http_get_filter_state_bytes)(envoy, CERTIFICATE_KEY, &bytes))
		ret->certificate = bytes;
	return true;
}

// A tunnel's bytes would pass unseen.
static bool is_connect(const struct idm_http *http)
{
	return http->method.size == 7 && !memcmp(http->method.ptr, "CONNECT", 7);
}

static void ask(struct http_config *self, const struct idm_snapshot *snapshot, const struct address *upstream,
		struct judgement *ret)
{
	if (ret->ring)
		ret->asked_ns = rings_clock();
	door_decide(&self->door, snapshot, &ret->connection, upstream, &ret->request.http, &ret->decision);
	if (ret->ring)
		ret->judged_ns = rings_clock();
}

static void decide(struct envoy_http *envoy, struct http_config *self, const struct idm_snapshot *snapshot,
		   const struct address *upstream, struct judgement *ret)
{
	decision_init(&ret->decision);
	ret->asked_ns = ret->judged_ns = 0;
	ret->known = false;
	// Read first: how a denial is written depends on it.
	ret->readable = request_read(envoy, &ret->request);
	if (!ret->readable) {
		door_refuse(IDM_DROP_POLICY_DENIED, true, &ret->decision);
		return;
	}
	ret->known = known_connection(envoy, &self->door, &ret->connection);
	if (!ret->known) {
		door_refuse(IDM_DROP_UNKNOWN_SENDER, false, &ret->decision);
		return;
	}
	ask(self, snapshot, upstream, ret);
	if (ret->decision.allowed && is_connect(&ret->request.http))
		door_refuse(IDM_DROP_PROXY_UNSUPPORTED, false, &ret->decision);
}

static bool shown(const struct door *door, const struct decision *decision)
{
	return door->metadata == SHOW_ALL || (door->metadata == SHOW_DENIED && !decision->allowed);
}

// The second point has a namespace of its own: both decisions can be read.
static struct idm_bytes name_space(const struct http_config *self)
{
	return self->kind == KIND_UPSTREAM ? IDM_TEXT("idmesh.upstream") : MESH_KEY;
}

static void tell(struct envoy_http *envoy, const struct http_config *self, const struct idm_snapshot *snapshot,
		 const struct decision *decision, const uint8_t id[DECISION_ID_BYTES])
{
	struct report report;

	report_id_text(id, report.id);
	report_fill(&report, snapshot, decision, false);
	request_report(envoy, name_space(self), &report);
}

// http: the request as the client sent it, whatever the verdict has changed of it since; NULL: unknown.
static void record(struct http_stream *stream, const struct idm_snapshot *snapshot, const struct judgement *judgement,
		   const struct idm_http *http)
{
	const struct decision *decision = &judgement->decision;
	bool grpc = judgement->readable && judgement->request.grpc;
	struct record record = {
		.type = IDM_FLOW_REQUEST,
		.asked_ns = judgement->asked_ns,
		.judged_ns = judgement->judged_ns,
		.id = judgement->id,
		.decision = decision,
		.connection = judgement->known ? &judgement->connection : NULL,
		.http = http,
	};

	if (http && judgement->request.traceparent)
		record.traceparent = http->headers[judgement->request.traceparent - 1].value;
	else if (!http)
		record.flags |= IDM_RECORD_CUT | IDM_RECORD_HEADERS_CUT;
	if (!record.judged_ns)
		record.asked_ns = record.judged_ns = rings_clock();
	if (stream->config->kind == KIND_UPSTREAM)
		record.flags |= IDM_RECORD_UPSTREAM;
	if (grpc)
		record.flags |= IDM_RECORD_GRPC;
	if (decision->allowed) {
		record_begin(&record, &stream->record);
	} else {
		record.code = grpc ? 7 : 403;
		record.flags |= grpc ? IDM_RECORD_GRPC_STATUS : 0;
	}
	// A loss is counted here: nothing more is gathered for it.
	if (!idm_ring_ready(judgement->ring))
		return;
	CALLBACK(http_filter_get_attribute_string)(stream->envoy, ENVOY_REQUEST_PROTOCOL, &record.protocol);
	record_write(judgement->ring, snapshot, &record);
}

// An upgraded stream can be judged again only by facts that are kept: without them it may not live on.
static bool keep(struct http_stream *stream, const struct request *request)
{
	if (!request->upgrade)
		return true;
	if (!stream->scheduler)
		stream->scheduler = CALLBACK(http_filter_scheduler_new)(stream->envoy);
	free(stream->facts);
	stream->facts = request_copy(&request->http);
	return stream->scheduler && stream->facts;
}

static bool asks_changes(const struct decision *decision)
{
	for (unsigned int i = 0; i < decision->count; i++)
		if (decision->verdicts[i].change_count)
			return true;
	return false;
}

// The server's side must know whose request comes: never by a connection that was opened for somebody else.
static bool mark(struct http_stream *stream, const struct steered *steered)
{
	return !steered->known || stream->config->kind == KIND_UPSTREAM ||
	       CALLBACK(http_set_socket_option_int)(stream->envoy, SOL_SOCKET, SO_MARK, ENVOY_PREBIND, ENVOY_UPSTREAM,
						    steered->mark);
}

// What must be done for an allowed request before it goes on; what cannot be done denies it.
static void fulfil(struct http_stream *stream, struct judgement *judgement)
{
	if (!keep(stream, &judgement->request) || !mark(stream, &judgement->connection.steered) ||
	    !request_change(stream->envoy, &judgement->decision))
		door_refuse(IDM_DROP_POLICY_DENIED, true, &judgement->decision);
}

static void settle(struct http_stream *stream, const struct idm_snapshot *snapshot, struct judgement *judgement)
{
	const struct idm_http *http = judgement->readable ? &judgement->request.http : NULL;
	const struct http_config *self = stream->config;
	struct decision *decision = &judgement->decision;
	struct idm_http *copy = NULL;

	if (decision->allowed) {
		// What is borrowed ends with the first change.
		if (judgement->ring && asks_changes(decision))
			http = copy = request_copy(http);
		fulfil(stream, judgement);
	}
	count(stream->envoy, self, decision);
	if (judgement->ring || !decision->allowed || shown(&self->door, decision))
		report_id(judgement->id);
	if (shown(&self->door, decision))
		tell(stream->envoy, self, snapshot, decision, judgement->id);
	if (judgement->ring)
		record(stream, snapshot, judgement, http);
	free(copy);
}

void stream_judge(struct http_stream *stream, struct outcome *ret)
{
	const struct address *upstream = stream->upstream.family ? &stream->upstream : NULL;
	const struct idm_snapshot *snapshot = mesh_enter();
	struct judgement judgement; // too large to be cleared for each request

	judgement.ring = rings_mine();
	judgement.request.upgrade = false;
	// If it cannot be read: a grpc-status too many harms nobody, one too few says success.
	judgement.request.grpc = true;
	decide(stream->envoy, stream->config, snapshot, upstream, &judgement);
	settle(stream, snapshot, &judgement);
	mesh_leave();
	ret->allowed = judgement.decision.allowed;
	ret->revision = judgement.decision.revision;
	ret->expiry_ms = judgement.decision.expiry_ms;
	ret->upgrade = judgement.request.upgrade;
	ret->grpc = judgement.request.grpc;
	if (!ret->allowed)
		memcpy(ret->id, judgement.id, sizeof(ret->id));
}

// Only a change of mind is counted and recorded.
static void record_again(struct http_stream *stream, const struct idm_snapshot *snapshot,
			 const struct connection *connection, const struct decision *decision)
{
	struct idm_ring *ring = rings_mine();
	uint8_t id[DECISION_ID_BYTES];
	struct record record = {
		.type = IDM_FLOW_REQUEST,
		.flags = IDM_RECORD_AGAIN | (stream->config->kind == KIND_UPSTREAM ? IDM_RECORD_UPSTREAM : 0),
		.id = id,
		.decision = decision,
		.connection = connection,
		.http = stream->facts,
	};

	if (!ring)
		return;
	report_id(id);
	record.asked_ns = record.judged_ns = rings_clock();
	record_write(ring, snapshot, &record);
}

bool stream_judge_again(struct http_stream *stream)
{
	struct http_config *self = stream->config;
	const struct idm_snapshot *snapshot = mesh_enter();
	struct connection connection;
	struct decision decision;
	bool known = known_connection(stream->envoy, &self->door, &connection);

	decision_init(&decision);
	if (known)
		door_decide(&self->door, snapshot, &connection, stream->upstream.family ? &stream->upstream : NULL,
			    stream->facts, &decision);
	else
		door_refuse(IDM_DROP_UNKNOWN_SENDER, false, &decision);
	if (!decision.allowed) {
		count(stream->envoy, self, &decision);
		record_again(stream, snapshot, known ? &connection : NULL, &decision);
	}
	mesh_leave();
	return decision.allowed;
}
