// SPDX-License-Identifier: Apache-2.0
// The HTTP filter: a verdict for each request, and for upgraded streams one more with each new policy.
//
// Filter names: "idmesh" judges a request where it comes in, "idmesh.upstream" judges it again for the host that
// the load balancer chose (as an upstream filter), "idmesh.empty" does nothing (what benchmarks compare with).

#include "http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"
#include "mesh.h"
#include "record.h"

enum kind { KIND_DOWNSTREAM, KIND_UPSTREAM, KIND_EMPTY };

struct http_config;

// One request's filter.
struct http_stream {
	struct http_config *config;
	struct envoy_http *envoy;
	struct envoy_http_scheduler *scheduler; // made only for streams that outlive their decision
	struct idm_http *facts; // of such a stream, as the client asked
	struct address upstream; // the host that was chosen for it; family 0: none
	struct mesh_open open;
	struct record_open record; // of an allowed one, until its response is recorded
};

struct http_config {
	enum kind kind;
	struct door door;
	size_t counters[COUNTS];
	struct http_stream empty; // stands for every stream of KIND_EMPTY
};

static bool define_counters(struct http_config *self, struct envoy_http_config *envoy)
{
	for (int i = 0; i < COUNTS; i++)
		if (CALLBACK(http_filter_config_define_counter)(envoy, counter_names[i], NULL, 0, &self->counters[i]))
			return false;
	return true;
}

static bool set_kind(struct http_config *self, struct idm_bytes name, struct idm_error *why)
{
	static const char *const names[] = {"idmesh", "idmesh.upstream", "idmesh.empty"};

	for (int i = 0; i < 3; i++) {
		if (name.size == strlen(names[i]) && !memcmp(name.ptr, names[i], name.size)) {
			self->kind = (enum kind)i;
			return true;
		}
	}
	snprintf(why->message, sizeof(why->message), "filter_name: must be idmesh, idmesh.upstream or idmesh.empty");
	return false;
}

IDM_HOOK void ON(http_filter_config_destroy)(struct http_config *self)
{
	door_deinit(&self->door);
	free(self);
}

static bool configure(struct http_config *self, struct envoy_http_config *envoy, struct idm_bytes name,
		      struct idm_bytes config, struct idm_error *why)
{
	if (!set_kind(self, name, why) || !door_init(&self->door, config, self->kind == KIND_UPSTREAM, why))
		return false;
	if (self->kind != KIND_EMPTY && !mesh_required(why))
		return false;
	self->empty.config = self;
	return define_counters(self, envoy);
}

IDM_HOOK void *ON(http_filter_config_new)(struct envoy_http_config *envoy, struct idm_bytes name,
					  struct idm_bytes config)
{
	struct http_config *self = calloc(1, sizeof(*self));
	struct idm_error why = {{0}};

	if (!self)
		return NULL;
	if (!configure(self, envoy, name, config, &why)) {
		mesh_log(ENVOY_ERROR, "HTTP filter refused: %s", why.message[0] ? why.message : "Envoy gave no stats");
		ON(http_filter_config_destroy)(self);
		return NULL;
	}
	return self;
}

// --- deciding ---

static void count(struct envoy_http *envoy, const struct http_config *self, const struct decision *decision)
{
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

struct outcome {
	bool allowed;
	bool upgrade;
	bool grpc;
	uint64_t revision;
	uint64_t expiry_ms;
	uint8_t id[DECISION_ID_BYTES];
};

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
	CALLBACK(http_filter_get_attribute_string)(stream->envoy, ENVOY_REQUEST_PROTOCOL, &record.protocol);
	if (decision->allowed) {
		record_begin(&record, &stream->record);
	} else {
		record.code = grpc ? 7 : 403;
		record.flags |= grpc ? IDM_RECORD_GRPC_STATUS : 0;
	}
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

// What must be done for an allowed request before it goes on; what cannot be done denies it.
static void fulfil(struct http_stream *stream, struct judgement *judgement)
{
	if (!keep(stream, &judgement->request) || !request_change(stream->envoy, &judgement->decision))
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

// Everything that reads the snapshot; the answer itself is sent after it was left, for that calls other hooks.
static void judge(struct http_stream *stream, struct outcome *ret)
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

// --- streams that live on ---

enum event { EVENT_AGAIN };

// Any thread; Envoy carries it to the stream's worker.
static void again(void *subject)
{
	struct http_stream *stream = subject;

	CALLBACK(http_filter_scheduler_commit)(stream->scheduler, EVENT_AGAIN);
}

// From now on a new policy judges it again, and the end of the peer's certificate; so does a policy that came since
// it was judged.
static void follow(struct http_stream *stream, uint64_t judged, uint64_t expiry_ms)
{
	const struct idm_snapshot *snapshot;
	bool changed;

	if (!stream->open.next)
		mesh_open_add(&stream->open, again, stream);
	mesh_open_ends(&stream->open, expiry_ms);
	snapshot = mesh_enter();
	changed = !snapshot || idm_snapshot_revision(snapshot) != judged;
	mesh_leave();
	if (changed)
		again(stream);
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

static void judge_again(struct http_stream *stream)
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
	if (!decision.allowed)
		CALLBACK(http_filter_reset_stream)(stream->envoy, ENVOY_RESET_LOCAL, IDM_TEXT("idmesh_denied"));
}

static enum envoy_http_status answer(struct http_stream *stream)
{
	struct http_config *self = stream->config;
	struct outcome outcome;

	judge(stream, &outcome);
	if (!outcome.allowed) {
		request_deny(stream->envoy, self->door.body, outcome.grpc, outcome.id);
		return ENVOY_HTTP_STOP;
	}
	if (outcome.upgrade)
		follow(stream, outcome.revision, outcome.expiry_ms);
	return ENVOY_HTTP_CONTINUE;
}

static bool chosen_host(struct envoy_http *envoy, struct address *ret)
{
	struct idm_bytes text;

	return CALLBACK(http_filter_get_attribute_string)(envoy, ENVOY_UPSTREAM_ADDRESS, &text) &&
	       address_parse(text, ret);
}

static enum envoy_http_status answer_upstream(struct http_stream *stream)
{
	if (!chosen_host(stream->envoy, &stream->upstream))
		stream->upstream.family = 0;
	return answer(stream);
}

// --- the end of an allowed request ---

// One or two digits; the backend wrote them.
static bool read_status(struct idm_bytes text, uint16_t *ret)
{
	uint16_t status = 0;

	if (!text.size || text.size > 2)
		return false;
	for (size_t i = 0; i < text.size; i++) {
		if (text.ptr[i] < '0' || text.ptr[i] > '9')
			return false;
		status = (uint16_t)(status * 10 + (text.ptr[i] - '0'));
	}
	*ret = status;
	return true;
}

static bool grpc_status(struct envoy_http *envoy, uint16_t *ret)
{
	static const enum envoy_header_map maps[] = {ENVOY_RESPONSE_TRAILERS, ENVOY_RESPONSE_HEADERS};
	struct idm_bytes value;

	for (unsigned int i = 0; i < 2; i++)
		if (CALLBACK(http_get_header)(envoy, maps[i], IDM_TEXT("grpc-status"), &value, 0, NULL))
			return read_status(value, ret);
	return false;
}

static void record_response(struct http_stream *stream)
{
	struct idm_ring *ring = rings_mine();
	uint32_t flags = 0;
	uint64_t status = 0;
	uint16_t code;

	CALLBACK(http_filter_get_attribute_int)(stream->envoy, ENVOY_RESPONSE_CODE, &status);
	code = (uint16_t)status;
	if (stream->record.flags & IDM_RECORD_GRPC && grpc_status(stream->envoy, &code))
		flags = IDM_RECORD_GRPC_STATUS;
	record_end(ring, IDM_FLOW_RESPONSE, code, flags, &stream->record);
}

// --- hooks ---

IDM_HOOK void *ON(http_filter_new)(struct http_config *config, struct envoy_http *envoy)
{
	struct http_stream *stream;

	if (config->kind == KIND_EMPTY)
		return &config->empty;
	stream = calloc(1, sizeof(*stream));
	if (!stream)
		return NULL;
	stream->config = config;
	stream->envoy = envoy;
	return stream;
}

IDM_HOOK void ON(http_filter_destroy)(struct http_stream *stream)
{
	if (stream->config->kind == KIND_EMPTY)
		return;
	mesh_open_remove(&stream->open);
	if (stream->scheduler)
		CALLBACK(http_filter_scheduler_delete)(stream->scheduler);
	free(stream->facts);
	free(stream);
}

IDM_HOOK enum envoy_http_status ON(http_filter_request_headers)(struct envoy_http *envoy, struct http_stream *stream,
							   bool end)
{
	(void)end;
	// Without memory for the filter Envoy asks all the same.
	if (!stream) {
		CALLBACK(http_send_response)(envoy, 503, NULL, 0, IDM_TEXT(""), IDM_TEXT("idmesh_no_memory"));
		return ENVOY_HTTP_STOP;
	}
	switch (stream->config->kind) {
	case KIND_DOWNSTREAM:
		return answer(stream);
	case KIND_UPSTREAM:
		return answer_upstream(stream);
	case KIND_EMPTY:
		break;
	}
	return ENVOY_HTTP_CONTINUE;
}

IDM_HOOK void ON(http_filter_stream_complete)(struct envoy_http *envoy, struct http_stream *stream)
{
	(void)envoy;
	if (stream && stream->record.since_ns)
		record_response(stream);
}

IDM_HOOK void ON(http_filter_scheduled)(struct envoy_http *envoy, struct http_stream *stream, uint64_t event)
{
	(void)envoy;
	if (event == EVENT_AGAIN)
		judge_again(stream);
}
