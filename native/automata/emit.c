// SPDX-License-Identifier: Apache-2.0
// Each strongly connected part becomes the nodes that suit it: what a text passes once is small (chains, sparse
// nodes), small loops are stepped by shifts, and only large loops are tables. Parts are written sinks first, so
// that a node's targets have their entries.
#include "emit.h"

#include <string.h>

#include "cost.h"
#include "idmesh/automaton.h"
#include "idmesh/snapshot.h"
#include "loop.h"
#include "scan.h"
#include "scc.h"
#include "writer.h"

uint32_t blob_add(struct blob *blob, size_t size, size_t align)
{
	uint32_t offset;

	while (blob->bytes.count % align)
		*VEC_ADD(blob->pool, blob->bytes) = 0;
	offset = (uint32_t)blob->bytes.count;
	for (size_t i = 0; i < size; i++)
		*VEC_ADD(blob->pool, blob->bytes) = 0;
	return offset;
}

void *blob_at(struct blob *blob, uint32_t offset)
{
	return blob->bytes.at + offset;
}

// A rest's own node, or none where the outcome fits the entry.
static uint32_t entry_of_rest(struct writer *w, uint32_t id)
{
	const struct instruction *in = &w->dfa->nfa->code.at[id];
	const struct frame *frame;
	struct idm_frame *node;
	uint32_t offset;

	w->blob->rests = true;
	if (in->other == NFA_NONE)
		return in->owner << 3 | IDM_NODE_REST;
	if (w->frame_entries[in->other])
		return w->frame_entries[in->other];
	frame = &w->dfa->nfa->frames.at[in->other];
	offset = blob_add(w->blob, sizeof(*node) + frame->size, 8);
	node = blob_at(w->blob, offset);
	node->outcome = in->owner;
	node->size = frame->size;
	memcpy(node->bytes, w->dfa->nfa->frame_bytes.at + frame->first, frame->size);
	w->frame_entries[in->other] = offset | IDM_NODE_FRAME;
	return w->frame_entries[in->other];
}

uint32_t writer_entry(struct writer *w, uint32_t target)
{
	if (target == DFA_DEAD)
		return IDM_NODE_DEAD;
	if (target & DFA_REST)
		return entry_of_rest(w, target & ~DFA_REST);
	return w->entries[target];
}

// Moves of a state that leave its part; all, if the part has no cycle.
static uint32_t outer_moves(struct writer *w, uint32_t state, uint32_t *targets)
{
	const struct dfa_state *at = &w->dfa->states.at[state];
	uint32_t part = w->scc.part_of[state], count = 0;

	memset(targets, 0xff, w->dfa->classes * sizeof(*targets));
	for (uint32_t i = 0; i < at->move_count; i++) {
		const struct dfa_move *move = &w->dfa->moves.at[at->first_move + i];

		if (!(move->target & DFA_REST) && w->scc.part_of[move->target] == part)
			continue;
		targets[move->class] = move->target;
		count++;
	}
	return count;
}

static uint32_t most_common(const uint32_t *targets, uint32_t classes, uint32_t *times)
{
	uint32_t best = DFA_DEAD;

	*times = 0;
	for (uint32_t i = 0; i < classes; i++) {
		uint32_t same = 0;

		if (i && targets[i] == targets[i - 1])
			continue;
		for (uint32_t j = 0; j < classes; j++)
			same += targets[j] == targets[i];
		if (same > *times || (same == *times && targets[i] == DFA_DEAD)) {
			*times = same;
			best = targets[i];
		}
	}
	return best;
}

static uint32_t write_row(struct writer *w, uint32_t accept, const uint32_t *targets)
{
	uint32_t offset = blob_add(w->blob, 4 * (w->dfa->classes + 1), 8);

	for (uint32_t i = 0; i < w->dfa->classes; i++) {
		uint32_t entry = writer_entry(w, targets[i]);

		((uint32_t *)blob_at(w->blob, offset))[i + 1] = entry;
	}
	*(uint32_t *)blob_at(w->blob, offset) = accept;
	return offset | IDM_NODE_ROW;
}

uint32_t writer_branch(struct writer *w, uint32_t accept, const uint32_t *targets)
{
	uint32_t times, entry, offset, count, at = 0;
	uint32_t other = most_common(targets, w->dfa->classes, &times);
	struct idm_sparse *node;

	count = w->dfa->classes - times;
	if (count > IDM_SPARSE_MAX)
		return write_row(w, accept, targets);
	// Frames are written on the way, so before this node has its place.
	for (uint32_t i = 0; i < w->dfa->classes; i++)
		writer_entry(w, targets[i]);
	offset = blob_add(w->blob, sizeof(*node) + 4 * count, 8);
	node = blob_at(w->blob, offset);
	node->accept = accept;
	node->other = writer_entry(w, other);
	node->count = count;
	for (uint32_t i = 0; i < w->dfa->classes; i++) {
		if (targets[i] == other)
			continue;
		entry = writer_entry(w, targets[i]);
		for (uint32_t j = at; j < IDM_SPARSE_MAX; j++)
			node->keys[j] = (uint8_t)i;
		node->targets[at++] = entry;
	}
	return offset | IDM_NODE_SPARSE;
}

uint32_t writer_exits(struct writer *w, uint32_t state)
{
	uint32_t targets[256];

	if (!outer_moves(w, state, targets))
		return IDM_NODE_DEAD;
	return writer_branch(w, IDM_NONE, targets);
}

// One move, under one byte.
static bool is_link(const struct writer *w, uint32_t state)
{
	const struct dfa_state *at = &w->dfa->states.at[state];

	return !w->scc.cyclic[w->scc.part_of[state]] && at->move_count == 1 &&
	       w->class_sizes[w->dfa->moves.at[at->first_move].class] == 1;
}

// States inside a chain get no node of their own.
static void find_chains(struct writer *w)
{
	uint32_t count = (uint32_t)w->dfa->states.count, *entered;

	w->inside = pool_alloc(w->dfa->pool, count);
	entered = pool_alloc(w->dfa->pool, count * sizeof(*entered));
	if (!(w->dfa->start & DFA_REST))
		entered[w->dfa->start]++;
	for (size_t i = 0; i < w->dfa->moves.count; i++) {
		if (!(w->dfa->moves.at[i].target & DFA_REST))
			entered[w->dfa->moves.at[i].target]++;
	}
	for (uint32_t i = 0; i < count; i++) {
		uint32_t next;

		if (!is_link(w, i))
			continue;
		next = w->dfa->moves.at[w->dfa->states.at[i].first_move].target;
		if (!(next & DFA_REST) && is_link(w, next) && entered[next] == 1 &&
		    w->dfa->states.at[next].accept == NFA_NONE)
			w->inside[next] = 1;
	}
	pool_free(w->dfa->pool, entered, count * sizeof(*entered));
}

static uint32_t write_chain(struct writer *w, uint32_t state)
{
	uint32_t accept = w->dfa->states.at[state].accept, next = state, size = 0, offset, entry;
	struct idm_chain *node;

	w->bytes.count = 0;
	do {
		const struct dfa_move *move = &w->dfa->moves.at[w->dfa->states.at[next].first_move];

		*VEC_ADD(w->dfa->pool, w->bytes) = w->dfa->byte_of[move->class];
		next = move->target;
		size++;
	} while (!(next & DFA_REST) && w->inside[next]);
	entry = writer_entry(w, next);
	offset = blob_add(w->blob, sizeof(*node) + size, 8);
	node = blob_at(w->blob, offset);
	node->accept = accept;
	node->next = entry;
	node->size = size;
	for (uint32_t i = 0; i < size; i++)
		node->bytes[w->dfa->nfa->backward ? size - 1 - i : i] = w->bytes.at[i];
	return offset | IDM_NODE_CHAIN;
}

static void write_single(struct writer *w, uint32_t state)
{
	uint32_t targets[256];

	if (w->inside[state])
		return;
	if (is_link(w, state)) {
		w->entries[state] = write_chain(w, state);
		return;
	}
	outer_moves(w, state, targets);
	w->entries[state] = writer_branch(w, w->dfa->states.at[state].accept, targets);
}

// A part too large for shifts: a row for each state.
static void write_rows(struct writer *w, uint32_t part)
{
	const uint32_t *members = w->scc.members + w->scc.first[part];
	uint32_t count = w->scc.first[part + 1] - w->scc.first[part];
	uint32_t size = (4 * (w->dfa->classes + 1) + 7) & ~7u;
	uint32_t offset = blob_add(w->blob, (size_t)size * count, 8);

	for (uint32_t i = 0; i < count; i++)
		w->entries[members[i]] = (offset + i * size) | IDM_NODE_ROW;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t row = offset + i * size;

		for (uint32_t class = 0; class < w->dfa->classes; class++) {
			uint32_t entry = writer_entry(w, dfa_target(w->dfa, members[i], class));

			((uint32_t *)blob_at(w->blob, row))[1 + class] = entry;
		}
		*(uint32_t *)blob_at(w->blob, row) = w->dfa->states.at[members[i]].accept;
	}
}

static void write_part(struct writer *w, uint32_t part)
{
	bool lanes;

	if (!w->scc.cyclic[part]) {
		write_single(w, w->scc.members[w->scc.first[part]]);
		cost_pass(w, part);
	} else if (loop_write(w, part, &lanes)) {
		cost_loop(w, part, lanes);
	} else {
		write_rows(w, part);
		cost_rows(w, part, scan_write(w, part));
	}
}

static uint32_t write_map(struct writer *w)
{
	uint32_t offset = blob_add(w->blob, 256, 8);

	memcpy(blob_at(w->blob, offset), w->dfa->map, 256);
	for (int byte = 0; byte < 256; byte++)
		w->class_sizes[w->dfa->map[byte]]++;
	return offset;
}

uint32_t emit_automaton(struct blob *blob, struct dfa *dfa, uint32_t *map, uint64_t *cost)
{
	struct writer w = {.blob = blob, .dfa = dfa};

	*map = write_map(&w);
	scc_find(dfa, &w.scc);
	w.entries = pool_alloc(dfa->pool, dfa->states.count * sizeof(*w.entries));
	w.frame_entries = pool_alloc(dfa->pool, dfa->nfa->frames.count * sizeof(*w.frame_entries));
	cost_init(&w);
	find_chains(&w);
	for (uint32_t part = 0; part < w.scc.count; part++)
		write_part(&w, part);
	*cost = cost_worst(&w);
	return writer_entry(&w, dfa->start);
}
