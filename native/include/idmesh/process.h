/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ext_proc door: one stream a request, the bytes of a ProcessingRequest in, the bytes of a ProcessingResponse out.
 *
 * Request headers are judged as a CheckRequest is (check.h); everything else passes untouched, and of the response's
 * headers and trailers the flow record keeps the status. What comes out of order, or cannot be read, ends the stream
 * with an error, which Envoy answers as a failure: nothing passes. A stream never ends well before its request was
 * judged, since Envoy would let that request go on unasked. It ends well as soon as the response's status is known:
 * Envoy then passes what follows by itself.
 *
 * Source: envoy/service/ext_proc/v3/external_processor.proto.
 */
#ifndef IDMESH_PROCESS_H
#define IDMESH_PROCESS_H

#include <stddef.h>
#include <stdint.h>

#include "idmesh/check.h"

struct idm_stream;

struct idm_process_result {
	/* size 0: nothing is to be sent. The verdict is there only if `judged` is set. */
	struct idm_check_result check;
	uint8_t judged;   /* 1: this message brought the verdict */
	uint8_t observed; /* 1: Envoy only tells us (observability_mode) and waits for nothing */
	uint8_t ends;     /* 1: send what there is, then end the stream with `status` */
	uint8_t status;   /* a gRPC status */
	uint32_t reserved;
};

/* Why a stream ends with an error; grpc-message in words. Static text, "" if it goes on. */
const char *idm_process_reason(const struct idm_process_result *result);

/**
 * A stream's state, from the checker's own store.
 * @return NULL without memory.
 */
struct idm_stream *idm_stream_open(struct idm_checker *checker);
/* End a stream, however it came about; writes the flow record of a response that nobody saw. */
void idm_stream_close(struct idm_checker *checker, struct idm_stream *stream);
/* 1 once the request was let through: to end the stream with OK changes nothing any more. */
int idm_stream_is_judged(const struct idm_stream *stream);

/**
 * Answer one ProcessingRequest. Allocates nothing.
 * @param[in] options As for idm_check(); read only with the request's headers.
 * @param[out] room   At least IDM_CHECK_RESPONSE_MAX bytes; the response is written at its end.
 * @return 0, or -EINVAL: the stream ends with an error, or was denied with one (ret->check.error).
 */
int idm_process(struct idm_checker *checker, struct idm_stream *stream, const struct idm_check_options *options,
		const char *message, size_t size, char *room, size_t room_size, struct idm_process_result *ret);

#endif
