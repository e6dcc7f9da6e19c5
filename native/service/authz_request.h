/* SPDX-License-Identifier: Apache-2.0 */
/* What a CheckRequest says, borrowed from its bytes. */
#ifndef IDMESH_SERVICE_AUTHZ_REQUEST_H
#define IDMESH_SERVICE_AUTHZ_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "idmesh/engine.h"

/* Envoy's own limit is 100 headers; a request with more than these is denied. */
#define REQUEST_HEADERS_MAX 512

/* An address as Envoy writes it; text is empty where there is none (a pipe, an internal listener). */
struct request_address {
	struct idm_bytes text;
	uint32_t port;
	uint32_t udp;
};

/* What our listener filter left in the connection's metadata, namespace "idmesh". */
struct request_metadata {
	bool present;
	bool has_identity;
	struct idm_bytes address; /* the peer's */
	struct idm_bytes local; /* where the client meant to go */
	uint32_t identity;
	uint32_t evidence;
	uint64_t domain;
	uint64_t expiry_ms;
};

struct request {
	struct request_address source;
	struct request_address destination;
	struct request_metadata metadata;
	struct idm_bytes named; /* context extension idmesh.destination */
	struct idm_bytes sni;
	struct idm_bytes protocol; /* "HTTP/1.1" */
	struct idm_bytes traceparent;
	bool has_sni;
	bool has_http;
	bool grpc;
	struct idm_http http;
	struct idm_header_line headers[REQUEST_HEADERS_MAX];
};

/**
 * Read a CheckRequest.
 * @param[out] ret Points into the bytes.
 * @return 0, or -EINVAL: not a CheckRequest, a singular message twice, or too many headers.
 */
int request_read(struct idm_bytes data, struct request *ret);

#endif
