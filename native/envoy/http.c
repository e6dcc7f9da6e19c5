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

static bool known_connection(struct envoy_http *envoy, struct connection *ret)
{
	struct idm_bytes bytes;

	return CALLBACK(http_get_filter_state_bytes)(envoy, MESH_KEY, &bytes) && connection_read(bytes, ret);
}

// A tunnel's bytes would pass unseen.
static bool is_connect(const struct idm_http *http)
{
	return http->method.size == 7 && !memcmp(http->method.ptr, "CONNECT", 7);
}

static void decide(struct envoy_http *envoy, struct http_config *self, const struct idm_snapshot *snapshot,
		   const struct address *upstream, struct request *request, struct decision *ret)
{
	struct connection connection;

	ret->source = ret->destination = 0;
	ret->direction = IDM_INGRESS;
	ret->revision = 0;
	// Read first: how a denial is written depends on it.
	if (!request_read(envoy, request)) {
		door_refuse(IDM_DROP_POLICY_DENIED, true, ret);
		return;
	}
	if (!known_connection(envoy, &connection)) {
		door_refuse(IDM_DROP_UNKNOWN_SENDER, false, ret);
		return;
	}
	door_decide(&self->door, snapshot, &connection, upstream, &request->http, ret);
	if (ret->allowed && is_connect(&request->http))
		door_refuse(IDM_DROP_PROXY_UNSUPPORTED, false, ret);
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
	char id[DECISION_ID_SIZE];
};

// The second point has a namespace of its own: both decisions can be read.
static struct idm_bytes name_space(const struct http_config *self)
{
	return self->kind == KIND_UPSTREAM ? IDM_TEXT("idmesh.upstream") : MESH_KEY;
}

static void tell(struct envoy_http *envoy, const struct http_config *self, const struct idm_snapshot *snapshot,
		 const struct decision *decision, struct outcome *ret)
{
	const struct door *door = &self->door;
	struct report report;

	if (!shown(door, decision) && decision->allowed)
		return;
	report_id(report.id);
	memcpy(ret->id, report.id, sizeof(ret->id));
	if (!shown(door, decision))
		return;
	report_fill(&report, snapshot, decision, false);
	request_report(envoy, name_space(self), &report);
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

// Everything that reads the snapshot; the answer itself is sent after it was left, for that calls other hooks.
static void judge(struct http_stream *stream, struct outcome *ret)
{
	const struct address *upstream = stream->upstream.family ? &stream->upstream : NULL;
	const struct idm_snapshot *snapshot = mesh_enter();
	struct http_config *self = stream->config;
	struct envoy_http *envoy = stream->envoy;
	struct decision decision;
	struct request request;

	request.upgrade = false;
	request.grpc = true; // if it cannot be read: a grpc-status too many harms nobody, one too few says success
	decide(envoy, self, snapshot, upstream, &request, &decision);
	if (decision.allowed && !(keep(stream, &request) && request_change(envoy, &decision)))
		door_refuse(IDM_DROP_POLICY_DENIED, true, &decision);
	count(envoy, self, &decision);
	tell(envoy, self, snapshot, &decision, ret);
	mesh_leave();
	ret->allowed = decision.allowed;
	ret->revision = decision.revision;
	ret->upgrade = request.upgrade;
	ret->grpc = request.grpc;
}

// --- streams that live on ---

enum event { EVENT_AGAIN };

// Any thread; Envoy carries it to the stream's worker.
static void again(void *subject)
{
	struct http_stream *stream = subject;

	CALLBACK(http_filter_scheduler_commit)(stream->scheduler, EVENT_AGAIN);
}

// From now on a new policy judges it again; so does one that came since it was judged.
static void follow(struct http_stream *stream, uint64_t judged)
{
	const struct idm_snapshot *snapshot;
	bool changed;

	if (!stream->open.next)
		mesh_open_add(&stream->open, again, stream);
	snapshot = mesh_enter();
	changed = !snapshot || idm_snapshot_revision(snapshot) != judged;
	mesh_leave();
	if (changed)
		again(stream);
}

static void judge_again(struct http_stream *stream)
{
	struct http_config *self = stream->config;
	const struct idm_snapshot *snapshot = mesh_enter();
	struct connection connection;
	struct decision decision;

	if (known_connection(stream->envoy, &connection))
		door_decide(&self->door, snapshot, &connection, stream->upstream.family ? &stream->upstream : NULL,
			    stream->facts, &decision);
	else
		door_refuse(IDM_DROP_UNKNOWN_SENDER, false, &decision);
	if (!decision.allowed)
		count(stream->envoy, self, &decision);
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
		follow(stream, outcome.revision);
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

IDM_HOOK void ON(http_filter_scheduled)(struct envoy_http *envoy, struct http_stream *stream, uint64_t event)
{
	(void)envoy;
	if (event == EVENT_AGAIN)
		judge_again(stream);
}
