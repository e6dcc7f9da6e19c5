/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The prefix code ext_authz/compiler/regex.py makes of an expression; its numbers are the ones there.
 * A pattern is a sequence of elements; an element is an operator, its operands and its arguments' elements.
 */
#ifndef IDMESH_AUTOMATA_CODE_H
#define IDMESH_AUTOMATA_CODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum code_op {
	CODE_LITERAL = 1, /* count, bytes */
	CODE_CLASS = 2,   /* count, (low, high) code points, rising */
	CODE_CAT = 3,     /* count, elements */
	CODE_ALT = 4,     /* count, elements; 0 matches nothing */
	CODE_STAR = 5,
	CODE_PLUS = 6,
	CODE_QUEST = 7,
	CODE_REPEAT = 8, /* low, high (CODE_UNBOUNDED), element */
	CODE_ASSERT = 9, /* kind */
};
#define CODE_UNBOUNDED 0xffffffffu

enum code_assert {
	ASSERT_BEGIN_TEXT, ASSERT_END_TEXT, ASSERT_BEGIN_LINE, ASSERT_END_LINE, ASSERT_WORD, ASSERT_NO_WORD,
};

struct code {
	const uint32_t *at;
	size_t size;
};

/* One of the patterns of a matcher. */
struct pattern {
	struct code code;
	uint32_t outcome;
	bool clean; /* matches only what ".*" matches */
	uint32_t wide; /* unbounded repetitions of nearly any character */
};

/* Words of the element at `at`. */
size_t code_size(const uint32_t *at);
/* RE2's "." : any code point but the newline. */
bool code_is_dot(const uint32_t *at);
/* ".*" */
bool code_is_dot_star(const uint32_t *at);
/* An unbounded repetition of a class that holds nearly everything: where a scan begins. */
bool code_is_wide(const uint32_t *at);
/* No part matches a newline. */
bool code_is_clean(struct code code);

#endif
