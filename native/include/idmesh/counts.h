/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is counted of flow records, for metrics. Every place is one of few: what a client can write (methods,
 * protocols, statuses) is folded into those that are known, so nobody can make a counter of their own.
 *
 * The end of a request or connection counts with what its beginning said; ends whose beginning was not seen, or is
 * too long ago, count with what they say themselves.
 */
#ifndef IDMESH_COUNTS_H
#define IDMESH_COUNTS_H

#include <stddef.h>
#include <stdint.h>

#include "idmesh/flow.h"

/* Columns. "Other" stands at 0 everywhere. */
enum idm_count_protocol {
	IDM_COUNT_OTHER = 0,
	IDM_COUNT_TCP = 1,
	IDM_COUNT_UDP = 2,
	IDM_COUNT_SCTP = 3,
	IDM_COUNT_ICMPV4 = 4,
	IDM_COUNT_ICMPV6 = 5,
	IDM_COUNT_HTTP = 6,
};
enum idm_count_verdict {
	IDM_COUNT_FORWARDED = 0,
	IDM_COUNT_DROPPED = 1,
	IDM_COUNT_AUDIT = 2, /* also what was dropped without being enforced */
	IDM_COUNT_REDIRECTED = 3,
	IDM_COUNT_ERROR = 4,
};
#define IDM_COUNT_PROTOCOLS 7
#define IDM_COUNT_VERDICTS 5
#define IDM_COUNT_TYPES 6    /* idm_flow_type */
#define IDM_COUNT_REASONS 256 /* drop reasons; the last one: any above */
#define IDM_COUNT_METHODS 10 /* other, CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE */
#define IDM_COUNT_VERSIONS 5 /* other, HTTP/1.0, HTTP/1.1, HTTP/2, HTTP/3 */
#define IDM_COUNT_STATUSES 501 /* other, 100 to 599 */
#define IDM_COUNT_MATCHES 8  /* idm_match_type; the last one: any above */
#define IDM_COUNT_BUCKETS 12 /* up to 5, 10, 25, 50, 100, 250, 500 ms, 1, 2.5, 5, 10 s, more */

struct idm_counts {
	uint64_t flows[IDM_COUNT_PROTOCOLS][IDM_COUNT_TYPES][IDM_COUNT_VERDICTS];
	uint64_t drops[IDM_COUNT_REASONS][IDM_COUNT_PROTOCOLS];
	uint64_t responses[IDM_COUNT_METHODS][IDM_COUNT_VERSIONS][IDM_COUNT_STATUSES][2]; /* by idm_direction */
	uint64_t durations[IDM_COUNT_METHODS][2][IDM_COUNT_BUCKETS];
	uint64_t durations_ns[IDM_COUNT_METHODS][2];
	uint64_t connections[2][IDM_COUNT_MATCHES][IDM_COUNT_VERDICTS]; /* by idm_direction */
	uint64_t malformed;
};

struct idm_counter;

/* NULL without memory. */
struct idm_counter *idm_counter_create(void);
void idm_counter_destroy(struct idm_counter *counter);
/**
 * Count a batch, as idm_ring_take() gave it. One thread at a time.
 * @return Records counted. Those that say what this version does not know count as malformed; behind a size that
 *         cannot be nothing more is read.
 */
size_t idm_counter_add(struct idm_counter *counter, const void *batch, size_t size);
/* As they stand; another thread may read them while they grow. Borrowed. */
const struct idm_counts *idm_counter_counts(const struct idm_counter *counter);

#endif
