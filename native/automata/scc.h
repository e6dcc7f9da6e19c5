/* SPDX-License-Identifier: Apache-2.0 */
/* Strongly connected parts of a deterministic automaton: only inside one can a text stay for long. */
#ifndef IDMESH_AUTOMATA_SCC_H
#define IDMESH_AUTOMATA_SCC_H

#include "dfa.h"

struct scc {
	uint32_t *part_of; /* by state; parts are numbered so that moves lead to lower or equal numbers */
	uint32_t count;
	uint32_t *first;   /* by part, and one more: in members */
	uint32_t *members; /* states, by part, rising */
	uint8_t *cyclic;   /* by part */
};

void scc_find(const struct dfa *dfa, struct scc *ret);

#endif
