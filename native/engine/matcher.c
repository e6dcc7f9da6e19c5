// SPDX-License-Identifier: Apache-2.0
// Matching: one hash for the literals, then each automaton from its start until the text or the hope ends.
// The layout is idmesh/automaton.h's; idm_matcher_validate() (matcher_check.c) made sure that every entry leads
// to a node of its kind within the blob.
#include "idmesh/matcher.h"

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "idmesh/automaton.h"
#include "idmesh/engine.h"
#include "lanes.h"
#include "rest.h"

static inline uint32_t sparse_target(const struct idm_sparse *node, uint8_t class)
{
#ifdef __SSE2__
	__m128i keys = _mm_loadu_si128((const __m128i *)node->keys);
	unsigned int same = (unsigned int)_mm_movemask_epi8(_mm_cmpeq_epi8(keys, _mm_set1_epi8((char)class)));

	same &= (1u << node->count) - 1;
	return same ? node->targets[__builtin_ctz(same)] : node->other;
#else
	for (uint32_t i = 0; i < node->count; i++) {
		if (node->keys[i] == class)
			return node->targets[i];
	}
	return node->other;
#endif
}

static ALWAYS_INLINE uint64_t loop_step(const uint64_t *table, uint64_t state,
								 const struct cursor *c, size_t at)
{
	return table[cursor_byte(c, at)] >> state & 63;
}

// Steps while the text stays in the loop; returns the last member's shift. Most stays are short; long ones go in
// strides, whose single test does not wait for the steps before it.
static ALWAYS_INLINE uint64_t loop_run(const char *blob, const struct idm_loop *loop, struct cursor *c)
{
	const uint64_t *table = (const uint64_t *)(blob + loop->table);
	const size_t stride = 16;
	size_t near = c->size - c->at < stride ? c->size : c->at + stride;
	bool single = loop->count == 1;
	uint64_t state = loop->start;

	for (; c->at < near; c->at++) {
		uint64_t next = loop_step(table, state, c, c->at);

		if (next == IDM_LOOP_OUT)
			return state;
		state = next;
	}
	// A loop of one member stays or ends whatever the bytes before: the loads need not wait for each other.
	while (single && c->size - c->at >= stride) {
		uint64_t out = 0;

		for (size_t i = 0; i < stride; i++)
			out |= table[cursor_byte(c, c->at + i)];
		if (out & 63)
			break;
		c->at += stride;
	}
	if (loop->warm)
		state = lanes_loop(table, loop, state, c);
	while (!single && c->size - c->at >= stride) {
		uint64_t next = state;

		for (size_t i = 0; i < stride; i++)
			next = loop_step(table, next, c, c->at + i);
		if (next == IDM_LOOP_OUT)
			break;
		state = next;
		c->at += stride;
	}
	for (; c->at < c->size; c->at++) {
		uint64_t next = loop_step(table, state, c, c->at);

		if (next == IDM_LOOP_OUT)
			return state;
		state = next;
	}
	return state;
}

// Whether ".*" matches what is unread, but for some bytes at its far end.
static bool rest_matches(const struct cursor *c, struct rest *rest, size_t spared)
{
	return c->backward ? rest_is_clean(rest, spared, c->size - c->at) : rest_is_clean(rest, c->at, c->size - spared);
}

static uint32_t match_frame(const struct cursor *c, struct rest *rest, const struct idm_frame *frame)
{
	const uint8_t *far = c->backward ? c->text : c->text + c->size - frame->size;

	if (c->size - c->at < frame->size || memcmp(far, frame->bytes, frame->size))
		return IDM_NONE;
	return rest_matches(c, rest, frame->size) ? frame->outcome : IDM_NONE;
}

static ALWAYS_INLINE uint32_t walk(const char *blob, const struct idm_automaton *automaton,
				   struct rest *rest, bool backward)
{
	struct cursor c = {.text = rest->text, .size = rest->size, .backward = backward};
	const uint8_t *map = (const uint8_t *)blob + automaton->map;
	uint32_t entry = automaton->start;

	for (;;) {
		const void *node = blob + (entry & ~7u);

		switch (entry & 7) {
		case IDM_NODE_ROW: {
			const uint32_t *row = node;

			for (;;) {
				if (c.at == c.size)
					return row[0];
				entry = row[1 + map[cursor_byte(&c, c.at++)]];
				if (entry & 7)
					break;
				row = (const uint32_t *)(blob + entry);
			}
			break;
		}
		case IDM_NODE_SPARSE: {
			const struct idm_sparse *sparse = node;

			if (c.at == c.size)
				return sparse->accept;
			entry = sparse_target(sparse, map[cursor_byte(&c, c.at++)]);
			break;
		}
		case IDM_NODE_CHAIN: {
			const struct idm_chain *chain = node;

			if (c.at == c.size)
				return chain->accept;
			if (c.size - c.at < chain->size || memcmp(cursor_ahead(&c, chain->size), chain->bytes, chain->size))
				return IDM_NONE;
			c.at += chain->size;
			entry = chain->next;
			break;
		}
		case IDM_NODE_LOOP: {
			const struct idm_loop *loop = node;
			const struct idm_loop_member *members = (const void *)(blob + loop->members);
			uint64_t state = loop_run(blob, loop, &c) / 6;

			if (c.at == c.size)
				return members[state].accept;
			entry = members[state].exit;
			break;
		}
		case IDM_NODE_REST:
			return rest_matches(&c, rest, 0) ? entry >> 3 : IDM_NONE;
		case IDM_NODE_FRAME:
			return match_frame(&c, rest, node);
		case IDM_NODE_SCAN: {
			const struct idm_scan *scan = node;

			entry = scan->row;
			if (c.size - c.at < LANES_TEXT_MIN)
				break;
			entry = lanes_run(blob, map, scan, &c);
			break;
		}
		default:
			return IDM_NONE;
		}
	}
}

static bool literal_is(const char *blob, const struct idm_literal *literal, const char *text, size_t size)
{
	return literal->size == size && !memcmp(blob + literal->text, text, size);
}

static uint32_t match_literal(const char *blob, const struct idm_matcher_body *body, const char *text, size_t size)
{
	const struct idm_literal *literals = (const struct idm_literal *)(blob + body->literals);
	uint64_t hash;

	if (size > body->literal_max)
		return IDM_NONE;
	if (!body->literal_probes) {
		for (uint32_t i = 0; i < body->literal_count; i++) {
			if (literal_is(blob, &literals[i], text, size))
				return literals[i].outcome;
		}
		return IDM_NONE;
	}
	hash = idm_hash64(0, text, size);
	for (uint32_t i = 0; i < body->literal_probes; i++) {
		const struct idm_literal *literal = &literals[(hash + i) & (body->literal_count - 1)];

		if (!literal->text)
			return IDM_NONE;
		if (literal->hash == hash >> 32 && literal_is(blob, literal, text, size))
			return literal->outcome;
	}
	return IDM_NONE;
}

uint32_t rest_match(const struct idm_matcher *matcher, struct rest *rest)
{
	const char *blob = (const char *)matcher;
	const struct idm_matcher_body *body = (const struct idm_matcher_body *)(matcher + 1);
	const struct idm_automaton *automata = (const struct idm_automaton *)(blob + body->automata);
	uint32_t outcome = IDM_NONE;

	if (body->literal_count)
		outcome = match_literal(blob, body, (const char *)rest->text, rest->size);
	for (uint32_t i = 0; outcome == IDM_NONE && i < body->automaton_count; i++) {
		if (automata[i].flags & IDM_AUTOMATON_BACKWARD)
			outcome = walk(blob, &automata[i], rest, true);
		else
			outcome = walk(blob, &automata[i], rest, false);
	}
	return outcome;
}

uint32_t idm_matcher_match(const struct idm_matcher *matcher, const char *text, size_t size)
{
	struct rest rest = {.text = (const uint8_t *)text, .size = size};

	return rest_match(matcher, &rest);
}
