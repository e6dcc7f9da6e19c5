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

/*
 * Step a loop whose warm is not 0 over whole blocks of text, as long as the text stays in it.
 * @param[in] state Shift of the member at c->at.
 * @return Shift of the member then reached; c->at tells where.
 */
uint64_t lanes_loop(const uint64_t *table, const struct idm_loop *loop, uint64_t state, struct cursor *c);

#endif
