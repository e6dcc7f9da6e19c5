/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_SERVICE_PROC_RESPOND_H
#define IDMESH_SERVICE_PROC_RESPOND_H

#include "judge.h"
#include "wire.h"

/** Write the ProcessingResponse of a decision; `snapshot` is the one that decided, or NULL. */
void proc_respond(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct request *request,
		  const struct judged *judged, const char decision_id[32]);

/** Write the answer to a message that passes untouched. */
void proc_respond_empty(struct wire_writer *writer, uint32_t kind);

#endif
