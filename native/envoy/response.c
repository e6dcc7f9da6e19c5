// SPDX-License-Identifier: Apache-2.0
// The end of an allowed request: its second record, with the status of the answer.
//
// Upstream filters are never told that their stream is complete (tried in 1.38 to 1.40): theirs is written when the
// filter goes, with the status that its response headers showed.

#include "stream.h"

// At most `digits` of them; the backend wrote them.
static bool read_status(struct idm_bytes text, size_t digits, uint16_t *ret)
{
	uint16_t status = 0;

	if (!text.size || text.size > digits)
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
			return read_status(value, 2, ret);
	return false;
}

static void record_response(struct http_stream *stream)
{
	struct idm_ring *ring = rings_mine();
	uint32_t flags = 0;
	uint64_t status = 0;
	uint16_t code;

	if (!idm_ring_ready(ring)) {
		stream->record.since_ns = 0; // counted as lost
		return;
	}
	CALLBACK(http_filter_get_attribute_int)(stream->envoy, ENVOY_RESPONSE_CODE, &status);
	code = (uint16_t)status;
	if (stream->record.flags & IDM_RECORD_GRPC && grpc_status(stream->envoy, &code))
		flags = IDM_RECORD_GRPC_STATUS;
	record_end(ring, IDM_FLOW_RESPONSE, code, flags, &stream->record);
}

void stream_end(struct http_stream *stream)
{
	if (stream->record.since_ns)
		record_end(rings_mine(), IDM_FLOW_RESPONSE, stream->code, 0, &stream->record);
}

IDM_HOOK void ON(http_filter_stream_complete)(struct envoy_http *envoy, struct http_stream *stream)
{
	(void)envoy;
	if (stream && stream->record.since_ns)
		record_response(stream);
}

IDM_HOOK enum envoy_http_status ON(http_filter_response_headers)(struct envoy_http *envoy, struct http_stream *stream,
								 bool end)
{
	struct idm_bytes status;

	(void)end;
	if (!stream || stream->config->kind != KIND_UPSTREAM || !stream->record.since_ns)
		return ENVOY_HTTP_CONTINUE;
	if (CALLBACK(http_get_header)(envoy, ENVOY_RESPONSE_HEADERS, IDM_TEXT(":status"), &status, 0, NULL))
		read_status(status, 3, &stream->code);
	return ENVOY_HTTP_CONTINUE;
}
