// SPDX-License-Identifier: Apache-2.0
// Writes a ProcessingResponse, last field first (wire.h). An allow is told with the header changes, a denial is an
// answer of its own; the verdict's metadata goes with either.
#include "metadata.h"
#include "proc_request.h"
#include "proc_respond.h"

// The filter takes metadata only into namespaces that its receiving_namespaces lists; this one is its own name.
#define NAMESPACE BYTES("envoy.filters.http.ext_proc")

enum { IMMEDIATE = 7, METADATA = 8 }; // ProcessingResponse
enum { PERMISSION_DENIED = 7, FORBIDDEN = 403 };
enum { OVERWRITE_IF_EXISTS_OR_ADD = 2 }; // HeaderAppendAction

static void put_metadata(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct judged *judged,
			 const char decision_id[32])
{
	const uint8_t *end = writer->start;

	metadata_put(writer, snapshot, judged, decision_id);
	wire_close(writer, 5, end); // Value.struct_value
	wire_close(writer, 2, end); // the map entry's value
	wire_put_bytes(writer, 1, NAMESPACE);
	wire_close(writer, 1, end); // Struct.fields
	wire_close(writer, METADATA, end);
}

// HeaderMutation.set_headers 1: HeaderValueOption {header 1 {key 1, raw_value 3}, append 2 (BoolValue),
// append_action 3}. Envoy reads raw_value only, and what `append` says as long as append_action is its first value.
static void put_header(struct wire_writer *writer, struct idm_bytes name, struct idm_bytes value, bool append)
{
	const uint8_t *end = writer->start;
	const uint8_t *inner = writer->start;

	if (append) {
		wire_put_number(writer, 1, 1);
		wire_close(writer, 2, inner);
	} else {
		wire_put_number(writer, 3, OVERWRITE_IF_EXISTS_OR_ADD);
	}
	inner = writer->start;
	wire_put_bytes(writer, 3, value);
	wire_put_bytes(writer, 1, name);
	wire_close(writer, 1, inner);
	wire_close(writer, 1, end);
}

// HeaderMutation: set_headers 1, remove_headers 2. Backwards, so that the changes keep their order.
static void put_changes(struct wire_writer *writer, const struct judged *judged)
{
	for (uint32_t turn = judged->count; turn-- > 0;) {
		const struct idm_verdict *verdict = &judged->verdicts[turn];

		for (uint32_t i = verdict->change_count; i-- > 0;) {
			const struct idm_header_change *change = &verdict->changes[i];

			if (change->action == IDM_MISMATCH_DELETE)
				wire_put_bytes(writer, 2, change->name);
			else if (change->action == IDM_MISMATCH_REPLACE || change->action == IDM_MISMATCH_ADD)
				put_header(writer, change->name, change->value, change->action == IDM_MISMATCH_ADD);
		}
	}
}

// HeadersResponse: response 1 (CommonResponse): status 1 (CONTINUE is 0), header_mutation 2.
static void put_allowed(struct wire_writer *writer, const struct judged *judged)
{
	const uint8_t *end = writer->start;

	put_changes(writer, judged);
	if (writer->start != end) {
		wire_close(writer, 2, end);
		wire_close(writer, 1, end);
	}
	wire_close(writer, PROC_REQUEST_HEADERS - 1, end);
}

// ImmediateResponse: status 1 {code 1}, headers 2, body 3, grpc_status 4 {status 1}, details 5. For gRPC the body
// becomes grpc-message, in which the end of line would only be escaped.
static void put_denied(struct wire_writer *writer, bool grpc, const char decision_id[32])
{
	const uint8_t *end = writer->start;
	const uint8_t *inner;

	wire_put_bytes(writer, 5, BYTES("idmesh_denied"));
	if (grpc) {
		inner = writer->start;
		wire_put_number(writer, 1, PERMISSION_DENIED);
		wire_close(writer, 4, inner);
	}
	wire_put_bytes(writer, 3, grpc ? BYTES("Access denied") : BYTES("Access denied\r\n"));
	inner = writer->start;
	put_header(writer, BYTES("x-idmesh-decision-id"), (struct idm_bytes){ decision_id, 32 }, false);
	wire_close(writer, 2, inner);
	inner = writer->start;
	wire_put_number(writer, 1, FORBIDDEN);
	wire_close(writer, 1, inner);
	wire_close(writer, IMMEDIATE, end);
}

void proc_respond(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct request *request,
		  const struct judged *judged, const char decision_id[32])
{
	put_metadata(writer, snapshot, judged, decision_id);
	if (judged->allowed)
		put_allowed(writer, judged);
	else
		put_denied(writer, request->grpc, decision_id);
}

void proc_respond_empty(struct wire_writer *writer, uint32_t kind)
{
	wire_put_bytes(writer, kind - 1, (struct idm_bytes){ 0 });
}
