/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decisions of this process by how they ended, beside Envoy's stats, which a module cannot read back. The status page
 * tells them: exact even where flow records are lost, or none are written.
 */
#ifndef IDMESH_ENVOY_TALLY_H
#define IDMESH_ENVOY_TALLY_H

#include <stdint.h>

#include "door.h"

struct tally {
	uint64_t allowed;
	uint64_t audit;  /* passed only because nothing was enforced; not among the allowed */
	uint64_t denied; /* errors included */
	uint64_t error;  /* denied because something inside failed */
};

/* From any thread. */
void tally_add(const struct decision *decision);
void tally_sum(struct tally *ret);

#endif
