/* SPDX-License-Identifier: Apache-2.0 */
/* What a match can cost at most, from the shape of its automata. */
#ifndef IDMESH_AUTOMATA_COST_H
#define IDMESH_AUTOMATA_COST_H

#include "writer.h"

/* The length costs are given for, and the unit they are given in: the time of 64 steps of a table in the first cache. */
#define COST_TEXT 8192u
#define COST_UNIT_PS 96000u

void cost_init(struct writer *w);
/* A part without cycle. */
void cost_pass(struct writer *w, uint32_t part);
void cost_loop(struct writer *w, uint32_t part, bool lanes);
/* lanes: the part is also stepped in lanes. */
void cost_rows(struct writer *w, uint32_t part, bool lanes);
/* What all automata of a matcher share, ps. */
uint64_t cost_shared(void);
/* Finding literals of at most this length, ps. */
uint64_t cost_literals(uint64_t longest);
/* Worst for the whole automaton, ps. */
uint64_t cost_worst(const struct writer *w);

#endif
