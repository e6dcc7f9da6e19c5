/* SPDX-License-Identifier: Apache-2.0 */
/* Which headers a flow record keeps: per HTTP set the names that its rules read, found once when a table is loaded. */
#ifndef IDMESH_ENGINE_KEPT_H
#define IDMESH_ENGINE_KEPT_H

#include "internal.h"

/* Names that a set may have kept; of a set with more the rest is not. */
#define IDM_KEPT_NAMES_MAX 64

/* After the table was checked and http_reads is there. 0 or -ENOMEM; policies->kept stays NULL if no set reads headers. */
int idm_kept_create(struct idm_policies *policies);
void idm_kept_destroy(struct idm_kept *kept);

#endif
