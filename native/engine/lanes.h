/* SPDX-License-Identifier: Apache-2.0 */
/* Long texts through a table: several places at once, because one place waits for memory at each step. */
#ifndef IDMESH_ENGINE_LANES_H
#define IDMESH_ENGINE_LANES_H

#include "cursor.h"
#include "idmesh/automaton.h"

/* Shorter texts are not worth it. */
#define LANES_TEXT_MIN 512u

/*
 * Step rows from scan's on, over text of at least LANES_TEXT_MIN bytes, to nearly its end or to an entry that
 * is not a row.
 * @return The entry then reached; c->at tells where.
 */
uint32_t lanes_run(const char *blob, const uint8_t *map, const struct idm_scan *scan, struct cursor *c);

#endif
