/* SPDX-License-Identifier: Apache-2.0 */
/* Many flows at once: arrays in and out, every string an offset into one arena that is checked before it is read. */
#include <errno.h>

#include "internal.h"

/* Header lines of one flow; Envoy's own limit is 100 by default. */
#define LINES_MAX 256

struct arena {
	const char *data;
	size_t size;
	const struct idm_batch_header *headers;
	size_t header_count;
};

static bool take(const struct arena *arena, struct idm_string string, struct idm_bytes *ret)
{
	if (string.offset > arena->size || string.size > arena->size - string.offset)
		return false;
	*ret = (struct idm_bytes){.ptr = string.size ? arena->data + string.offset : NULL, .size = string.size};
	return true;
}

static bool take_lines(const struct arena *arena, const struct idm_batch_flow *flow, struct idm_header_line *lines)
{
	if (flow->header_count > LINES_MAX || flow->header_first > arena->header_count ||
	    flow->header_count > arena->header_count - flow->header_first)
		return false;
	for (uint32_t i = 0; i < flow->header_count; i++) {
		const struct idm_batch_header *header = &arena->headers[flow->header_first + i];

		if (!take(arena, header->name, &lines[i].name) || !take(arena, header->value, &lines[i].value))
			return false;
	}
	return true;
}

static bool unpack(const struct arena *arena, const struct idm_batch_flow *flow, struct idm_flow *ret,
		   struct idm_header_line *lines)
{
	*ret = (struct idm_flow){
		.direction = flow->direction,
		.flags = flow->flags,
		.endpoint = flow->endpoint,
		.subject_identity = flow->subject_identity,
		.peer = {.identity = flow->peer_identity, .evidence = flow->evidence},
		.port = flow->port,
		.protocol = flow->protocol,
		.http = {.headers = lines, .header_count = flow->header_count},
	};
	if (flow->flags & IDM_FLOW_KAFKA)
		return false;
	return take_lines(arena, flow, lines) && take(arena, flow->method, &ret->http.method) &&
	       take(arena, flow->path, &ret->http.path) && take(arena, flow->host, &ret->http.host) &&
	       take(arena, flow->dns, &ret->dns) && take(arena, flow->sni, &ret->sni);
}

static void pack(const struct idm_verdict *verdict, struct idm_batch_verdict *ret)
{
	*ret = (struct idm_batch_verdict){
		.verdict = verdict->verdict,
		.at = verdict->at,
		.auth = verdict->auth,
		.l7 = verdict->l7,
		.drop_reason = verdict->drop_reason,
		.match_type = verdict->match_type,
		.l4_verdict = verdict->l4_verdict,
		.entry = verdict->entry,
		.http_rule = verdict->http_rule,
	};
}

int idm_decide_batch(const struct idm_snapshot *snapshot, const struct idm_batch_flow *flows, size_t count,
		     const struct idm_batch_header *headers, size_t header_count, const char *arena, size_t arena_size,
		     struct idm_batch_verdict *verdicts)
{
	const struct arena source = {
		.data = arena,
		.size = arena_size,
		.headers = headers,
		.header_count = header_count,
	};
	struct idm_header_line lines[LINES_MAX];
	struct idm_verdict verdict;
	struct idm_flow flow;
	int r = 0;

	for (size_t i = 0; i < count; i++) {
		if (!unpack(&source, &flows[i], &flow, lines)) {
			verdicts[i] = (struct idm_batch_verdict){
				.verdict = IDM_DROPPED,
				.l4_verdict = IDM_DROPPED,
				.drop_reason = IDM_DROP_POLICY_DENIED,
				.entry = IDM_NONE,
				.http_rule = IDM_NONE,
			};
			r = -EINVAL;
			continue;
		}
		if (idm_decide(snapshot, &flow, &verdict))
			r = -EINVAL;
		pack(&verdict, &verdicts[i]);
	}
	return r;
}
