/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_SERVICE_RESPOND_H
#define IDMESH_SERVICE_RESPOND_H

#include "judge.h"
#include "wire.h"

/** Write the CheckResponse of a decision; `snapshot` is the one that decided, or NULL. */
void respond(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct request *request,
	     const struct judged *judged, const char decision_id[32]);

#endif
