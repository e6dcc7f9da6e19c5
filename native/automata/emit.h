/* SPDX-License-Identifier: Apache-2.0 */
/* Writing automata as nodes (idmesh/automaton.h). */
#ifndef IDMESH_AUTOMATA_EMIT_H
#define IDMESH_AUTOMATA_EMIT_H

#include "dfa.h"

/* The blob being written. It has a pool of its own, longer lived than those of the automata. */
struct blob {
	struct pool *pool;
	VEC(uint8_t) bytes;
	VEC(uint32_t) tables; /* offsets of the loop tables */
	bool rests; /* some node asks whether ".*" matches */
};

/* Appends size zero bytes at a multiple of align; returns their offset. Moves the blob. */
uint32_t blob_add(struct blob *blob, size_t size, size_t align);
void *blob_at(struct blob *blob, uint32_t offset);

/*
 * Append the automaton's nodes.
 * @param[out] cost Worst time for a text of 8 KiB, ns.
 * @return Entry of its start.
 */
uint32_t emit_automaton(struct blob *blob, struct dfa *dfa, uint32_t *map, uint64_t *cost);

#endif
