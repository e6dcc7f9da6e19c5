/* SPDX-License-Identifier: Apache-2.0 */
/* The deterministic automaton of a union of patterns, by the subset construction. */
#ifndef IDMESH_AUTOMATA_DFA_H
#define IDMESH_AUTOMATA_DFA_H

#include "nfa.h"

/* Targets: a state's number; DFA_DEAD; or DFA_REST and the number of an NFA_REST instruction. */
#define DFA_DEAD 0xffffffffu
#define DFA_REST 0x80000000u

struct dfa_move {
	uint32_t target;
	uint8_t class;
};

struct dfa_state {
	uint32_t accept; /* outcome if the text ends here, or NFA_NONE */
	uint32_t first_move; /* moves by rising class; classes without one are dead */
	uint32_t move_count;
	uint32_t first_id; /* in ids: the instructions it stands for, rising */
	uint32_t id_count;
	uint8_t before; /* enum dfa_before; 0 where no assertion waits */
};

struct dfa {
	struct nfa *nfa;
	struct pool *pool;
	uint64_t *work; /* steps left to the build; jumps out when spent */
	uint32_t state_limit;
	uint32_t start; /* target */
	uint8_t map[256]; /* class of a byte */
	uint32_t classes;
	uint8_t byte_of[256]; /* lowest byte of a class */
	VEC(struct dfa_state) states;
	VEC(struct dfa_move) moves;
	VEC(uint32_t) ids;
	struct subset *subset;
};

void dfa_build(struct dfa *dfa);
/* Target of a state under a class. */
uint32_t dfa_target(const struct dfa *dfa, uint32_t state, uint32_t class);

#endif
