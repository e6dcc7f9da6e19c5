/* SPDX-License-Identifier: Apache-2.0 */
/* What a ProcessingRequest says, borrowed from its bytes. */
#ifndef IDMESH_SERVICE_PROC_REQUEST_H
#define IDMESH_SERVICE_PROC_REQUEST_H

#include "authz_request.h"

/* Field numbers of the oneof `request`; the answer's are one less (ProcessingResponse). */
enum proc_kind {
	PROC_REQUEST_HEADERS = 2,
	PROC_RESPONSE_HEADERS = 3,
	PROC_REQUEST_BODY = 4,
	PROC_RESPONSE_BODY = 5,
	PROC_REQUEST_TRAILERS = 6,
	PROC_RESPONSE_TRAILERS = 7,
};

struct proc_message {
	uint32_t kind;
	bool observed; /* observability_mode: Envoy waits for no answer */
	bool streams_bodies; /* a body mode in which we would have to send bodies back */
	struct idm_bytes all;
	struct idm_bytes content; /* of the oneof */
};

/* What the headers or trailers of a response tell. */
struct proc_response {
	uint32_t code; /* :status, or grpc-status if has_grpc_status is set; 0: none */
	uint32_t grpc_status;
	bool has_grpc_status;
	bool is_last; /* nothing follows */
};

/* 0, or -EINVAL: no ProcessingRequest, or not exactly one message in it. */
int proc_read(struct idm_bytes data, struct proc_message *ret);

/**
 * Read the request's headers, with metadata and attributes.
 * @param[in] source_address The attribute source.address counts.
 * @param[out] ret Points into the bytes.
 * @return 0, or -EINVAL: malformed, a singular message or pseudo header twice, no method, or too many headers.
 */
int proc_read_request(const struct proc_message *message, bool source_address, struct request *ret);

/* Read a response's headers or trailers. 0 or -EINVAL. */
int proc_read_response(const struct proc_message *message, struct proc_response *ret);

/* True if the attribute response.code_details says that no upstream answered. */
bool proc_is_own_answer(const struct proc_message *message);

#endif
