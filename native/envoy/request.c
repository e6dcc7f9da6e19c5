// SPDX-License-Identifier: Apache-2.0
// A request's facts are Envoy's own bytes: one call fetches all headers for what three single lookups cost.

#include <stdlib.h>
#include <string.h>

#include "http.h"
#include "mesh.h"

static bool is(struct idm_bytes name, const char *wanted, size_t size)
{
	return name.size == size && !memcmp(name.ptr, wanted, size);
}

static void take_pseudo(struct idm_http *http, const struct idm_header_line *line)
{
	if (is(line->name, ":path", 5))
		http->path = line->value;
	else if (is(line->name, ":method", 7))
		http->method = line->value;
	else if (is(line->name, ":authority", 10))
		http->host = line->value;
}

// As Envoy tells them: application/grpc, perhaps with a message format; gRPC-Web is plain HTTP.
static bool is_grpc(struct idm_bytes type)
{
	return type.size >= 16 && !memcmp(type.ptr, "application/grpc", 16) && (type.size == 16 || type.ptr[16] == '+');
}

bool request_read(struct envoy_http *envoy, struct request *ret)
{
	size_t count = CALLBACK(http_get_headers_size)(envoy, ENVOY_REQUEST_HEADERS), kept = 0;

	ret->http = (struct idm_http){.headers = ret->headers};
	ret->upgrade = ret->grpc = false;
	ret->traceparent = 0;
	if (count > REQUEST_HEADERS_MAX || !CALLBACK(http_get_headers)(envoy, ENVOY_REQUEST_HEADERS, ret->headers))
		return false;
	for (size_t i = 0; i < count; i++) {
		const struct idm_header_line *line = &ret->headers[i];

		if (line->name.size && line->name.ptr[0] == ':') {
			take_pseudo(&ret->http, line);
			continue;
		}
		ret->upgrade |= is(line->name, "upgrade", 7);
		ret->grpc |= is(line->name, "content-type", 12) && is_grpc(line->value);
		ret->headers[kept++] = *line;
		if (is(line->name, "traceparent", 11))
			ret->traceparent = kept;
	}
	ret->http.header_count = kept;
	return true;
}

static size_t text_size(const struct idm_http *http)
{
	size_t size = http->method.size + http->path.size + http->host.size;

	for (size_t i = 0; i < http->header_count; i++)
		size += http->headers[i].name.size + http->headers[i].value.size;
	return size;
}

static void move_text(struct idm_bytes *text, char **room)
{
	if (text->size)
		memcpy(*room, text->ptr, text->size);
	text->ptr = *room;
	*room += text->size;
}

struct idm_http *request_copy(const struct idm_http *http)
{
	size_t lines_size = http->header_count * sizeof(*http->headers);
	struct idm_http *copy = malloc(sizeof(*copy) + lines_size + text_size(http));
	struct idm_header_line *lines;
	char *room;

	if (!copy)
		return NULL;
	lines = (struct idm_header_line *)(copy + 1);
	room = (char *)(lines + http->header_count);
	*copy = *http;
	if (lines_size)
		memcpy(lines, http->headers, lines_size);
	copy->headers = lines;
	move_text(&copy->method, &room);
	move_text(&copy->path, &room);
	move_text(&copy->host, &room);
	for (size_t i = 0; i < http->header_count; i++) {
		move_text(&lines[i].name, &room);
		move_text(&lines[i].value, &room);
	}
	return copy;
}

static bool change(struct envoy_http *envoy, const struct idm_header_change *change)
{
	const struct idm_bytes nothing = {NULL, 0};

	switch (change->action) {
	case IDM_MISMATCH_ADD:
		return CALLBACK(http_add_header)(envoy, ENVOY_REQUEST_HEADERS, change->name, change->value);
	case IDM_MISMATCH_DELETE:
		return CALLBACK(http_set_header)(envoy, ENVOY_REQUEST_HEADERS, change->name, nothing);
	case IDM_MISMATCH_REPLACE:
		return CALLBACK(http_set_header)(envoy, ENVOY_REQUEST_HEADERS, change->name, change->value);
	default:
		return true;
	}
}

bool request_change(struct envoy_http *envoy, const struct decision *decision)
{
	for (unsigned int i = 0; i < decision->count; i++)
		for (uint32_t j = 0; j < decision->verdicts[i].change_count; j++)
			if (!change(envoy, &decision->verdicts[i].changes[j]))
				return false;
	return true;
}

void request_report(struct envoy_http *envoy, struct idm_bytes name_space, const struct report *report)
{
	if (CALLBACK(http_set_dynamic_metadata_string_batch)) {
		CALLBACK(http_set_dynamic_metadata_string_batch)(envoy, name_space, report->pairs, report->count);
		return;
	}
	for (size_t i = 0; i < report->count; i++)
		CALLBACK(http_set_dynamic_metadata_string)(envoy, name_space, report->pairs[i].key,
							   report->pairs[i].value);
}

void request_deny(struct envoy_http *envoy, const char *body, bool grpc, const uint8_t id[DECISION_ID_BYTES])
{
	char text[DECISION_ID_SIZE];
	struct idm_header_line headers[] = {
		{IDM_TEXT("x-idmesh-decision-id"), {text, sizeof(text)}},
		{IDM_TEXT("grpc-status"), IDM_TEXT("7")},
	};
	size_t size = strlen(body);

	report_id_text(id, text);
	// In grpc-message the end of line would only be escaped.
	while (grpc && size && (body[size - 1] == '\r' || body[size - 1] == '\n'))
		size--;
	CALLBACK(http_send_response)(envoy, 403, headers, grpc ? 2 : 1, (struct idm_bytes){body, size},
				     IDM_TEXT("idmesh_denied"));
}
