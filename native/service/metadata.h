/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_SERVICE_METADATA_H
#define IDMESH_SERVICE_METADATA_H

#include "judge.h"
#include "wire.h"

/**
 * Write the fields of the Struct that tells a verdict; the caller closes it. The names are the module's too
 * (native/envoy/report.c).
 * @param[in] snapshot The one that decided, or NULL.
 */
void metadata_put(struct wire_writer *writer, const struct idm_snapshot *snapshot, const struct judged *judged,
		  const char decision_id[32]);

#endif
