// SPDX-License-Identifier: Apache-2.0
// Checks a blob so that matching may trust it: every node that can be reached is found once and its bounds looked at.
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "idmesh/automaton.h"
#include "idmesh/matcher.h"
#include "idmesh/snapshot.h"

// A bound on the work a blob can ask for: more than the builder makes.
#define AUTOMATA_MAX 64u

struct checker {
	const char *blob;
	uint32_t size;
	uint32_t outcomes;
	uint32_t classes; // of the automaton at work
	uint8_t *seen;    // by offset / 8: kind + 1
	uint32_t *open;   // entries to look at
	uint32_t open_count;
};

static bool within(const struct checker *c, uint64_t offset, uint64_t size)
{
	return offset <= c->size && size <= c->size - offset;
}

static bool good_outcome(const struct checker *c, uint32_t outcome)
{
	return outcome < c->outcomes;
}

static bool good_accept(const struct checker *c, uint32_t accept)
{
	return accept == IDM_NONE || good_outcome(c, accept);
}

// Notes the entry's node to be looked at. A place has one kind.
static bool note(struct checker *c, uint32_t entry)
{
	uint32_t kind = entry & 7, place = entry >> 3;

	if (kind == IDM_NODE_DEAD)
		return true;
	if (kind == IDM_NODE_REST)
		return good_outcome(c, place);
	if (!within(c, entry & ~7u, 8))
		return false;
	if (c->seen[place])
		return c->seen[place] == kind + 1;
	c->seen[place] = (uint8_t)(kind + 1);
	c->open[c->open_count++] = entry;
	return true;
}

static bool check_row(struct checker *c, uint32_t offset)
{
	const uint32_t *row = (const uint32_t *)(c->blob + offset);

	if (!within(c, offset, 4 * (uint64_t)(c->classes + 1)) || !good_accept(c, row[0]))
		return false;
	for (uint32_t i = 1; i <= c->classes; i++) {
		if (!note(c, row[i]))
			return false;
	}
	return true;
}

static bool check_sparse(struct checker *c, uint32_t offset)
{
	const struct idm_sparse *node = (const void *)(c->blob + offset);

	if (!within(c, offset, sizeof(*node)) || node->count > IDM_SPARSE_MAX ||
	    !within(c, offset, sizeof(*node) + 4 * (uint64_t)node->count))
		return false;
	for (uint32_t i = 0; i < node->count; i++) {
		if (!note(c, node->targets[i]))
			return false;
	}
	return good_accept(c, node->accept) && note(c, node->other);
}

static bool check_chain(struct checker *c, uint32_t offset)
{
	const struct idm_chain *node = (const void *)(c->blob + offset);

	return within(c, offset, sizeof(*node)) && node->size &&
	       within(c, offset, sizeof(*node) + (uint64_t)node->size) && good_accept(c, node->accept) &&
	       note(c, node->next);
}

static bool check_frame(struct checker *c, uint32_t offset)
{
	const struct idm_frame *node = (const void *)(c->blob + offset);

	return within(c, offset, sizeof(*node)) && within(c, offset, sizeof(*node) + (uint64_t)node->size) &&
	       good_outcome(c, node->outcome);
}

// Each shift a table gives from a member must be a member's, or OUT.
static bool check_table(const struct checker *c, uint32_t offset, uint32_t count)
{
	const uint64_t *table = (const uint64_t *)(c->blob + offset);

	if (offset % 8 || !within(c, offset, 2048))
		return false;
	for (uint32_t byte = 0; byte < 256; byte++) {
		if (table[byte] >> IDM_LOOP_OUT != IDM_LOOP_OUT)
			return false;
		for (uint32_t m = 0; m < count; m++) {
			uint64_t to = table[byte] >> (6 * m) & 63;

			if (to % 6 || (to >= 6 * count && to != IDM_LOOP_OUT))
				return false;
		}
	}
	return true;
}

// What follows a loop must consume the byte that left it, or the match might not end.
static bool consumes(uint32_t entry)
{
	uint32_t kind = entry & 7;

	return kind == IDM_NODE_ROW || kind == IDM_NODE_SPARSE || kind == IDM_NODE_DEAD;
}

static bool check_loop(struct checker *c, uint32_t offset)
{
	const struct idm_loop *node = (const void *)(c->blob + offset);
	const struct idm_loop_member *members;

	if (!within(c, offset, sizeof(*node)) || node->count > IDM_LOOP_MEMBERS || node->start % 6 ||
	    node->start >= 6 * node->count || node->guess % 6 || node->guess >= 6 * node->count ||
	    node->warm > IDM_LOOP_WARM_MAX || node->members % 8 ||
	    !within(c, node->members, node->count * sizeof(*members)) || !check_table(c, node->table, node->count))
		return false;
	members = (const void *)(c->blob + node->members);
	for (uint32_t i = 0; i < node->count; i++) {
		if (!good_accept(c, members[i].accept) || !consumes(members[i].exit) || !note(c, members[i].exit))
			return false;
	}
	return true;
}

static bool check_scan(struct checker *c, uint32_t offset)
{
	const struct idm_scan *node = (const void *)(c->blob + offset);

	return within(c, offset, sizeof(*node)) && node->warm && node->warm <= IDM_SCAN_WARM_MAX && (node->row & 7) == IDM_NODE_ROW &&
	       (node->guess & 7) == IDM_NODE_ROW && note(c, node->row) && note(c, node->guess);
}

static bool check_node(struct checker *c, uint32_t entry)
{
	uint32_t offset = entry & ~7u;

	switch (entry & 7) {
	case IDM_NODE_ROW:
		return check_row(c, offset);
	case IDM_NODE_SPARSE:
		return check_sparse(c, offset);
	case IDM_NODE_CHAIN:
		return check_chain(c, offset);
	case IDM_NODE_FRAME:
		return check_frame(c, offset);
	case IDM_NODE_LOOP:
		return check_loop(c, offset);
	case IDM_NODE_SCAN:
		return check_scan(c, offset);
	default:
		return false;
	}
}

static bool check_automaton(struct checker *c, const struct idm_automaton *automaton)
{
	const uint8_t *map = (const uint8_t *)c->blob + automaton->map;

	if (!automaton->classes || automaton->classes > 256 || !within(c, automaton->map, 256) ||
	    automaton->flags & ~IDM_AUTOMATON_BACKWARD)
		return false;
	for (uint32_t byte = 0; byte < 256; byte++) {
		if (map[byte] >= automaton->classes)
			return false;
	}
	c->classes = automaton->classes;
	memset(c->seen, 0, c->size / 8);
	c->open_count = 0;
	if (!note(c, automaton->start))
		return false;
	while (c->open_count) {
		if (!check_node(c, c->open[--c->open_count]))
			return false;
	}
	return true;
}

static bool check_automata(struct checker *c, const struct idm_matcher_body *body)
{
	const struct idm_automaton *automata = (const void *)(c->blob + body->automata);

	if (body->automata % 8 || body->automaton_count > AUTOMATA_MAX ||
	    !within(c, body->automata, body->automaton_count * sizeof(*automata)))
		return false;
	for (uint32_t i = 0; i < body->automaton_count; i++) {
		if (!check_automaton(c, &automata[i]))
			return false;
	}
	return true;
}

static bool check_literals(const struct checker *c, const struct idm_matcher_body *body)
{
	const struct idm_literal *literals = (const void *)(c->blob + body->literals);

	if (body->literals % 8 || !within(c, body->literals, body->literal_count * (uint64_t)sizeof(*literals)))
		return false;
	if (body->literal_probes && (body->literal_probes > body->literal_count ||
				     (body->literal_count & (body->literal_count - 1))))
		return false;
	for (uint32_t i = 0; i < body->literal_count; i++) {
		if (!literals[i].text && body->literal_probes)
			continue;
		if (!within(c, literals[i].text, literals[i].size) || !good_outcome(c, literals[i].outcome))
			return false;
	}
	return true;
}

static int check(struct checker *c)
{
	const struct idm_matcher_body *body = (const void *)(c->blob + sizeof(struct idm_matcher));
	bool good;

	c->seen = malloc(c->size / 8 * (sizeof(*c->seen) + sizeof(*c->open)));
	if (!c->seen)
		return -ENOMEM;
	// The wider array first, for its alignment.
	c->open = (uint32_t *)c->seen;
	c->seen = (uint8_t *)(c->open + c->size / 8);
	good = check_literals(c, body) && check_automata(c, body);
	free(c->open);
	return good ? 0 : -EINVAL;
}

int idm_matcher_validate(const void *blob, size_t size)
{
	const struct idm_matcher *head = blob;
	struct checker c = {.blob = blob, .size = (uint32_t)size};

	if (size < sizeof(*head) + sizeof(struct idm_matcher_body) || size > UINT32_MAX || size % 8 ||
	    (uintptr_t)blob % 8)
		return -EINVAL;
	if (head->magic != IDM_MATCHER_MAGIC || head->size != size)
		return -EINVAL;
	c.outcomes = head->outcomes;
	return check(&c);
}
