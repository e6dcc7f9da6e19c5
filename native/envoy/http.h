/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTP filter's parts: a request's facts out of Envoy, the answer back into it. */
#ifndef IDMESH_ENVOY_HTTP_H
#define IDMESH_ENVOY_HTTP_H

#include "abi.h"
#include "door.h"
#include "report.h"

/* HCM's own limit is 100 headers unless configured; a request with more than this is denied. */
#define REQUEST_HEADERS_MAX 512

struct request {
	struct idm_http http;
	bool upgrade;
	bool grpc;
	size_t traceparent; /* number of that header's line, from 1; 0: none */
	struct idm_header_line headers[REQUEST_HEADERS_MAX];
};

/* Borrow the request's facts from Envoy: valid until the hook ends or a header is changed. False: too many headers. */
bool request_read(struct envoy_http *envoy, struct request *ret);
/* A copy in one piece of memory, for free(): what Envoy holds, the router may rewrite. NULL without memory. */
struct idm_http *request_copy(const struct idm_http *http);
/* Apply the header changes that the verdicts ask for. */
bool request_change(struct envoy_http *envoy, const struct decision *decision);
void request_report(struct envoy_http *envoy, struct idm_bytes name_space, const struct report *report);
/* 403 (gRPC: status 7, PERMISSION_DENIED) with the decision's id. Calls other hooks before it returns. */
void request_deny(struct envoy_http *envoy, const char *body, bool grpc, const uint8_t id[DECISION_ID_BYTES]);

#endif
