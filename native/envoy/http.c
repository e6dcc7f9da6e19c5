// SPDX-License-Identifier: Apache-2.0
// The HTTP filter: a verdict for each request, and for upgraded streams one more with each new policy.
//
// Filter names: "idmesh" judges a request where it comes in, "idmesh.upstream" judges it again for the host that
// the load balancer chose (as an upstream filter), "idmesh.empty" does nothing (what benchmarks compare with).

#include "stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
			self->kind = (enum http_kind)i;
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

static enum envoy_http_status answer(struct http_stream *stream)
{
	struct http_config *self = stream->config;
	struct outcome outcome;

	stream_judge(stream, &outcome);
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
	stream_end(stream);
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
	if (event == EVENT_AGAIN && !stream_judge_again(stream))
		CALLBACK(http_filter_reset_stream)(envoy, ENVOY_RESET_LOCAL, IDM_TEXT("idmesh_denied"));
}
