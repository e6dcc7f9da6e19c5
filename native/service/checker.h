/* SPDX-License-Identifier: Apache-2.0 */
/* What a thread that answers holds: its reader, its ring, and the room in which it judges. */
#ifndef IDMESH_SERVICE_CHECKER_H
#define IDMESH_SERVICE_CHECKER_H

#include "idmesh/check.h"
#include "idmesh/process.h"
#include "judge.h"

#define RANDOM_POOL 4096

struct idm_checker {
	struct idm_reader *reader;
	struct idm_ring *ring; /* flow records, or NULL */
	struct idm_stream *free_streams;
	struct name_cache names;
	size_t random_left;
	uint8_t random[RANDOM_POOL];
	/* Of the decision under way. */
	uint8_t id[16];
	uint64_t judged_ns; /* CLOCK_MONOTONIC, when it was given */
	uint32_t decision_ns;
	struct request request;
	struct judged judged;
};

/* A new decision's id, also as hexadecimal text. */
void checker_make_id(struct idm_checker *checker, char ret[32]);
/* Judge checker->request. */
void checker_judge(struct idm_checker *checker, const struct idm_snapshot *snapshot,
		   const struct idm_check_options *options);
/* Deny without asking. */
void checker_deny(struct idm_checker *checker, uint32_t error, uint32_t drop_reason);
/* Fill in all of a result but where the response is. */
void checker_report(const struct idm_checker *checker, const struct idm_snapshot *snapshot,
		    struct idm_check_result *ret);
/* Free the streams that nobody uses. */
void idm_streams_free(struct idm_checker *checker);

#endif
