/* SPDX-License-Identifier: Apache-2.0 */
/* A decision in words: the dynamic metadata that access logs and other filters see. */
#ifndef IDMESH_ENVOY_REPORT_H
#define IDMESH_ENVOY_REPORT_H

#include "abi.h"
#include "door.h"

#define DECISION_ID_BYTES 16
#define DECISION_ID_SIZE 32 /* as text */
#define REPORT_PAIRS 12

struct report {
	struct envoy_pair pairs[REPORT_PAIRS];
	size_t count;
	size_t used;
	char id[DECISION_ID_SIZE];
	char text[1536];
};

/* 128 random bits; zeros where the system gives none, for an id only names a decision. */
void report_id(uint8_t ret[DECISION_ID_BYTES]);
/* In hex. */
void report_id_text(const uint8_t id[DECISION_ID_BYTES], char ret[DECISION_ID_SIZE]);
/**
 * Fill ret->pairs from a decision; ret->id must be set. While the decision's snapshot is still entered.
 * @param[in] again Metadata of an earlier decision stands there: what this one lacks is written as empty.
 */
void report_fill(struct report *ret, const struct idm_snapshot *snapshot, const struct decision *decision, bool again);

#endif
