/* SPDX-License-Identifier: Apache-2.0 */
/* Flow records of the gRPC doors. Without a ring nothing is written; nothing here changes a decision. */
#ifndef IDMESH_SERVICE_RECORD_H
#define IDMESH_SERVICE_RECORD_H

#include "checker.h"

/* The verdict just given, on a request or a connection. */
void record_verdict(struct idm_checker *checker, const struct idm_snapshot *snapshot, uint32_t door, uint32_t flags);

/* What of a verdict its response's record repeats. */
struct recorded {
	uint8_t id[16];
	uint64_t judged_ns;
	uint64_t revision;
	uint32_t source_identity;
	uint32_t destination_identity;
	uint32_t flags; /* idm_flow_record_flags */
	uint8_t verdict;
	uint8_t direction;
};

void record_keep(const struct idm_checker *checker, const struct idm_snapshot *snapshot, uint32_t flags,
		 struct recorded *ret);
/* The end of a request that was let through; code 0: nobody saw one. */
void record_response(struct idm_checker *checker, const struct recorded *recorded, uint32_t code, uint32_t flags);

#endif
