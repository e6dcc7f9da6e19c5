/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many patterns as one nondeterministic automaton over bytes, reading forward or backward. Patterns share what
 * they have in common at their start (trie.c), so that a set of states stays small however many there are.
 */
#ifndef IDMESH_AUTOMATA_NFA_H
#define IDMESH_AUTOMATA_NFA_H

#include <stdbool.h>
#include <stdint.h>

#include "code.h"
#include "pool.h"

#define NFA_NONE 0xffffffffu

enum nfa_op {
	NFA_BYTES, /* low to high, then next */
	NFA_SPLIT, /* next and other */
	NFA_ASSERT, /* kind in low (of the reading direction), then next */
	NFA_MATCH, /* owner matches if the text ends */
	NFA_REST,  /* owner matches if the rest is ".*" and then frame `other`; next does the same bytewise */
};

struct instruction {
	uint8_t op;
	uint8_t low;
	uint8_t high;
	uint8_t clean;    /* all patterns that go through here are */
	uint8_t scanning; /* after a wide repetition */
	uint32_t next;
	uint32_t other;
	uint32_t owner; /* lowest outcome of the patterns that go through here */
};

/* The literal at the far end of a pattern, in the text's order. */
struct frame {
	uint32_t first; /* in frame_bytes */
	uint32_t size;
};

struct nfa {
	struct pool *pool;
	bool backward;
	bool asserts;
	uint32_t limit; /* instructions */
	uint32_t start;
	VEC(struct instruction) code;
	VEC(struct frame) frames;
	VEC(uint8_t) frame_bytes;
	/* Given to new instructions. */
	uint8_t clean;
	uint8_t scanning;
	uint32_t owner;
	/* Instructions of the class at work, to share tails of UTF-8 sequences. */
	uint32_t recent[256];
	uint32_t recent_from;
};

uint32_t nfa_emit(struct nfa *nfa, uint8_t op, uint32_t next, uint32_t other);
uint32_t nfa_byte(struct nfa *nfa, uint8_t low, uint8_t high, uint32_t next);
/* The element at `at`, followed by next. Returns where to start. */
uint32_t nfa_compile(struct nfa *nfa, const uint32_t *at, uint32_t next);
/* ".*" and then the frame (NFA_NONE: nothing), whose bytewise form starts at tail. */
uint32_t nfa_rest(struct nfa *nfa, uint32_t frame, uint32_t tail);
/* ".*" that goes on at next. */
uint32_t nfa_dot_star(struct nfa *nfa, uint32_t next);

/* Build from patterns; jumps out through pool->fail if they are too many or too large. */
void trie_compile(struct nfa *nfa, const struct pattern *const *patterns, uint32_t count);

#endif
