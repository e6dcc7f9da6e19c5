/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a decision to its flow record, and from the end of what was allowed to the second one.
 *
 * A record is written while its snapshot is entered, and only then are its texts borrowed: nothing is kept of an
 * allowed request but what its second record says.
 */
#ifndef IDMESH_ENVOY_RECORD_H
#define IDMESH_ENVOY_RECORD_H

#include "door.h"
#include "report.h"
#include "rings.h"

/* One decision, as a filter knows it. */
struct record {
	uint8_t type; /* idm_flow_type */
	uint16_t code;
	uint32_t flags; /* idm_flow_record_flags */
	uint64_t asked_ns; /* rings_clock() before and after it was judged */
	uint64_t judged_ns;
	const uint8_t *id;
	const struct decision *decision;
	const struct connection *connection; /* NULL: nobody knows it */
	const struct idm_http *http;         /* NULL: none, or it could not be read */
	struct idm_bytes protocol;
	struct idm_bytes traceparent;
};
/* snapshot: the one that decided, or NULL. */
void record_write(struct idm_ring *ring, const struct idm_snapshot *snapshot, const struct record *record);

/* What is kept of an allowed request or connection until it ends. */
struct record_open {
	uint64_t revision;
	uint64_t since_ns; /* rings_clock(); 0: there is nothing to end */
	uint32_t flags;
	uint8_t verdict;
	uint8_t direction;
	uint8_t id[DECISION_ID_BYTES];
};
/* For one that is allowed. */
void record_begin(const struct record *record, struct record_open *ret);
/* Once; later calls do nothing. */
void record_end(struct idm_ring *ring, enum idm_flow_type type, uint16_t code, uint32_t flags,
		struct record_open *open);

#endif
