/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request at the HTTP filter: judged where it comes in or for the host that was chosen, once more with each new
 * policy if it was upgraded, and recorded.
 */
#ifndef IDMESH_ENVOY_STREAM_H
#define IDMESH_ENVOY_STREAM_H

#include "counters.h"
#include "http.h"
#include "mesh.h"
#include "record.h"

enum http_kind { KIND_DOWNSTREAM, KIND_UPSTREAM, KIND_EMPTY };

struct http_config;

/* One request's filter. */
struct http_stream {
	struct http_config *config;
	struct envoy_http *envoy;
	struct envoy_http_scheduler *scheduler; /* made only for streams that outlive their decision */
	struct idm_http *facts; /* of such a stream, as the client asked */
	struct address upstream; /* the host that was chosen for it; family 0: none */
	struct mesh_open open;
	struct record_open record; /* of an allowed one, until its response is recorded */
	uint16_t code; /* of the response to an upstream filter; 0: none seen */
};

struct http_config {
	enum http_kind kind;
	struct door door;
	size_t counters[COUNTS];
	struct http_stream empty; /* stands for every stream of KIND_EMPTY */
};

/* What the answer needs to know. */
struct outcome {
	bool allowed;
	bool upgrade;
	bool grpc;
	uint64_t revision;
	uint64_t expiry_ms;
	uint8_t id[DECISION_ID_BYTES];
};

/* Judge it and record that. Everything that reads the snapshot: the answer itself calls other hooks. */
void stream_judge(struct http_stream *stream, struct outcome *ret);
/* A newer policy, or the certificate's end: true if it may live on. */
bool stream_judge_again(struct http_stream *stream);
/* The end of an allowed one, as far as it is not recorded yet; Envoy can no longer be asked. */
void stream_end(struct http_stream *stream);

#endif
