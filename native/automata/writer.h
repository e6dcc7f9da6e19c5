/* SPDX-License-Identifier: Apache-2.0 */
/* State of writing one automaton, shared by the writers of its kinds of parts. */
#ifndef IDMESH_AUTOMATA_WRITER_H
#define IDMESH_AUTOMATA_WRITER_H

#include "emit.h"
#include "scc.h"

/* Worst time from entering a part on. */
struct part_cost {
	uint64_t once_ps;  /* sum over the parts passed */
	uint64_t byte_ps;  /* for each byte, in the slowest part that can follow */
};

struct writer {
	struct blob *blob;
	struct dfa *dfa;
	struct scc scc;
	uint32_t *entries; /* by state */
	uint32_t *frame_entries; /* by frame */
	uint8_t *inside; /* by state: in the middle of a chain */
	uint32_t class_sizes[256];
	VEC(uint8_t) bytes;
	struct part_cost *costs; /* by part */
};

/* Entry of a target of the automaton. */
uint32_t writer_entry(struct writer *w, uint32_t target);
/* A node that takes one byte; targets by class. */
uint32_t writer_branch(struct writer *w, uint32_t accept, const uint32_t *targets);
/* As writer_branch(), of the moves that leave the state's part. */
uint32_t writer_exits(struct writer *w, uint32_t state);

#endif
