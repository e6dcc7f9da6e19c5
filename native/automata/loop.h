/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_AUTOMATA_LOOP_H
#define IDMESH_AUTOMATA_LOOP_H

#include "writer.h"

/*
 * Write a small part as IDM_NODE_LOOP; false if it is too large, or there are too many different ones.
 * @param[out] lanes Long texts can be read at several places at once.
 */
bool loop_write(struct writer *w, uint32_t part, bool *lanes);

#endif
