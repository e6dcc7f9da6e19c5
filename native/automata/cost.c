// SPDX-License-Identifier: Apache-2.0
// A bound, not an estimate: a text passes each part without a cycle at most once, and spends its bytes in the
// slowest part with one that it can still reach. Times were measured by tests/load/bench_matcher.py.
#include "cost.h"

#include <string.h>

#define PASS_PS 25000u      // a node met for the first time, far from the caches
#define LOOP_PS 620u        // a step by shifts
#define LOOP_LANES_PS 320u  // in lanes, or in a loop of one member
#define LOOP_AHEAD_PS 350000u
#define HASH_PS 200u        // hashing a byte of a text
#define REST_PS 270u        // looking whether ".*" matches
// A step in a table, by the cache it fits into, alone and in lanes.
static const struct {
	uint64_t bytes;
	uint32_t step_ps;
	uint32_t lanes_ps;
} tables[] = {
	{32u << 10, 1500, 520}, {1u << 20, 4400, 780}, {8u << 20, 15000, 1250}, {UINT64_MAX, 100000, 100000},
};

void cost_init(struct writer *w)
{
	w->costs = pool_alloc(w->dfa->pool, w->scc.count * sizeof(*w->costs));
}

// How far a text is clean is found out once for the matcher (cost_shared()); patterns that also match other text
// may have to look again.
static struct part_cost rest(const struct writer *w, uint32_t id)
{
	return (struct part_cost){.once_ps = PASS_PS, .byte_ps = w->dfa->nfa->code.at[id].clean ? 0 : REST_PS};
}

// The dearest of what can follow.
static struct part_cost after(const struct writer *w, uint32_t part)
{
	struct part_cost worst = {.byte_ps = 0};

	for (uint32_t i = w->scc.first[part]; i < w->scc.first[part + 1]; i++) {
		const struct dfa_state *state = &w->dfa->states.at[w->scc.members[i]];

		for (uint32_t m = 0; m < state->move_count; m++) {
			uint32_t target = w->dfa->moves.at[state->first_move + m].target;
			struct part_cost next;

			if (!(target & DFA_REST) && w->scc.part_of[target] == part)
				continue;
			next = target & DFA_REST ? rest(w, target & ~DFA_REST) : w->costs[w->scc.part_of[target]];
			if (next.once_ps > worst.once_ps)
				worst.once_ps = next.once_ps;
			if (next.byte_ps > worst.byte_ps)
				worst.byte_ps = next.byte_ps;
		}
	}
	return worst;
}

static void settle(struct writer *w, uint32_t part, uint64_t byte_ps, bool node)
{
	struct part_cost cost = after(w, part);

	cost.once_ps += node ? PASS_PS : 0;
	if (cost.once_ps > (uint64_t)PASS_PS * COST_TEXT)
		cost.once_ps = (uint64_t)PASS_PS * COST_TEXT;
	if (byte_ps > cost.byte_ps)
		cost.byte_ps = byte_ps;
	w->costs[part] = cost;
}

void cost_pass(struct writer *w, uint32_t part)
{
	settle(w, part, 0, !w->inside[w->scc.members[w->scc.first[part]]]);
}

void cost_loop(struct writer *w, uint32_t part, bool lanes)
{
	settle(w, part, lanes ? LOOP_LANES_PS : LOOP_PS, true);
	// Lanes read ahead, past where the loop may have ended.
	w->costs[part].once_ps += lanes ? LOOP_AHEAD_PS : 0;
}

void cost_rows(struct writer *w, uint32_t part, bool lanes)
{
	uint64_t bytes = (uint64_t)(w->scc.first[part + 1] - w->scc.first[part]) * 4 * (w->dfa->classes + 1);
	uint32_t size = 0;

	while (bytes > tables[size].bytes)
		size++;
	settle(w, part, lanes ? tables[size].lanes_ps : tables[size].step_ps, true);
}

uint64_t cost_shared(void)
{
	return (uint64_t)REST_PS * COST_TEXT;
}

uint64_t cost_literals(uint64_t longest)
{
	return (longest < COST_TEXT ? longest : COST_TEXT) * HASH_PS;
}

uint64_t cost_worst(const struct writer *w)
{
	uint32_t start = w->dfa->start;
	struct part_cost cost = {.once_ps = PASS_PS};

	if (start != DFA_DEAD)
		cost = start & DFA_REST ? rest(w, start & ~DFA_REST) : w->costs[w->scc.part_of[start]];
	return cost.once_ps + cost.byte_ps * COST_TEXT;
}
