// SPDX-License-Identifier: Apache-2.0
// Writes a CheckResponse, last field first (wire.h). The verdict travels as dynamic metadata; what a client is told is
// only that it was denied, and the decision's id.
#include <string.h>
#include <strings.h>

#include "metadata.h"
#include "respond.h"

enum { STATUS = 1, DENIED = 2, OK = 3, METADATA = 4 }; // CheckResponse
enum { PERMISSION_DENIED = 7, FORBIDDEN = 403 };

static bool same_name(struct idm_bytes a, struct idm_bytes b)
{
	return a.size == b.size && !strncasecmp(a.ptr, b.ptr, a.size);
}

// True if the request will have this header when change `index` of verdict `turn` is made.
static bool has_header(const struct request *request, const struct judged *judged, uint32_t turn, uint32_t index,
		       struct idm_bytes name)
{
	for (uint32_t t = 0; t <= turn; t++) {
		uint32_t count = t < turn ? judged->verdicts[t].change_count : index;

		for (uint32_t i = 0; i < count; i++) {
			const struct idm_header_change *change = &judged->verdicts[t].changes[i];

			if ((change->action == IDM_MISMATCH_ADD || change->action == IDM_MISMATCH_REPLACE) &&
			    same_name(change->name, name))
				return true;
		}
	}
	for (size_t i = 0; i < request->http.header_count; i++) {
		if (same_name(request->headers[i].name, name))
			return true;
	}
	return false;
}

// HeaderValueOption: header 1 {key 1, value 2}, append 2 (BoolValue). Envoy appends only to a header that is
// there and sets one only if append is false.
static void put_header(struct wire_writer *writer, uint32_t number, struct idm_bytes name, struct idm_bytes value,
		       bool append)
{
	const uint8_t *end = writer->start;
	const uint8_t *inner;

	if (append) {
		inner = writer->start;
		wire_put_number(writer, 1, 1);
		wire_close(writer, 2, inner);
	}
	inner = writer->start;
	wire_put_bytes(writer, 2, value);
	wire_put_bytes(writer, 1, name);
	wire_close(writer, 1, inner);
	wire_close(writer, number, end);
}

// OkHttpResponse: headers 2, headers_to_remove 5. Backwards, so that the changes keep their order.
static void put_changes(struct wire_writer *writer, const struct request *request, const struct judged *judged)
{
	for (uint32_t turn = judged->count; turn-- > 0;) {
		const struct idm_verdict *verdict = &judged->verdicts[turn];

		for (uint32_t i = verdict->change_count; i-- > 0;) {
			const struct idm_header_change *change = &verdict->changes[i];

			if (change->action == IDM_MISMATCH_DELETE)
				wire_put_bytes(writer, 5, change->name);
			else if (change->action == IDM_MISMATCH_REPLACE)
				put_header(writer, 2, change->name, change->value, false);
			else if (change->action == IDM_MISMATCH_ADD)
				put_header(writer, 2, change->name, change->value,
					   has_header(request, judged, turn, i, change->name));
		}
	}
}

static void put_allowed(struct wire_writer *writer, const struct request *request, const struct judged *judged)
{
	const uint8_t *end = writer->start;

	put_changes(writer, request, judged);
	wire_close(writer, OK, end);
	wire_put_bytes(writer, STATUS, (struct idm_bytes){ 0 });
}

// DeniedHttpResponse: status 1 {code 1}, headers 2, body 3. Envoy turns 403 into grpc-status 7 by itself.
static void put_denied(struct wire_writer *writer, const char decision_id[32])
{
	const uint8_t *end = writer->start;
	const uint8_t *inner;

	wire_put_bytes(writer, 3, BYTES("Access denied\r\n"));
	put_header(writer, 2, BYTES("x-idmesh-decision-id"), (struct idm_bytes){ decision_id, 32 }, false);
	inner = writer->start;
	wire_put_number(writer, 1, FORBIDDEN);
	wire_close(writer, 1, inner);
	wire_close(writer, DENIED, end);
	inner = writer->start;
	wire_put_number(writer, 1, PERMISSION_DENIED);
	wire_close(writer, STATUS, inner);
}

void respond(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct request *request,
	     const struct judged *judged, const char decision_id[32])
{
	const uint8_t *end = writer->start;

	metadata_put(writer, snapshot, judged, decision_id);
	wire_close(writer, METADATA, end);
	if (judged->allowed)
		put_allowed(writer, request, judged);
	else
		put_denied(writer, decision_id);
}
